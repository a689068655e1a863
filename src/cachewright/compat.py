"""`lru_cache` and `cache` as `functools` has them, for code that is being moved over: one import changes, nothing else.

An exact LRU in this process, by hash and equality of the arguments, without a ttl: what `functools` promises and no
more. It passes CPython's own tests of ``functools.lru_cache``. For a ttl, other tiers, one load for all who ask at
once, or ``async def``, go on to `Cache.cached`; ``docs/how-to/from-functools.md`` says how.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from cachewright.decorator import CacheInfo

__all__ = ["LruFunction", "cache", "lru_cache"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class LruFunction(Protocol[P, R_co]):
    """What `lru_cache` returns, as a type checker sees it; at run time it is a plain function with these attributes."""

    @property
    def __wrapped__(self) -> Callable[P, R_co]:
        """The function itself."""

    @property
    def __name__(self) -> str:
        """The function's name."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """The cached result."""

    @overload
    def __get__(self, instance: None, owner: type) -> LruFunction[P, R_co]: ...

    @overload
    def __get__(
        self: LruFunction[Concatenate[Any, Q], R_co], instance: object, owner: type | None = None
    ) -> LruFunction[Q, R_co]: ...

    def cache_info(self) -> CacheInfo:
        """Hits, misses, the bound and how many results are held."""

    def cache_clear(self) -> None:
        """Drops all results and sets the counters to zero."""

    def cache_parameters(self) -> dict[str, Any]:
        """A new dict of ``maxsize`` and ``typed``."""


@overload
def lru_cache(maxsize: Callable[P, R], typed: bool = False) -> LruFunction[P, R]: ...


@overload
def lru_cache(
    maxsize: int | None = 128, typed: bool = False
) -> Callable[[Callable[P, R]], LruFunction[P, R]]: ...


def lru_cache(maxsize: Any = 128, typed: bool = False) -> Any:
    """Keeps the results of the ``maxsize`` calls that were asked for last; `functools.lru_cache` in every respect.

    Args:
        maxsize: how many results; None keeps all, 0 or less none. Without parentheses: the function.
        typed: arguments of different types are different calls, even where they are equal, as ``3`` and ``3.0``.

    Raises:
        TypeError: ``maxsize`` is none of these; or, at a call, an argument that cannot be hashed.
    """
    if isinstance(maxsize, int):
        maxsize = max(0, maxsize)
    elif callable(maxsize) and isinstance(typed, bool):
        return _cached(maxsize, 128, typed)
    elif maxsize is not None:
        raise TypeError(
            f"lru_cache(maxsize={maxsize!r}): expected an int, None (no bound), or the function to be cached"
        )

    def decorate(function: Callable[..., Any]) -> LruFunction[..., Any]:
        return _cached(function, maxsize, typed)

    return decorate


def cache(user_function: Callable[P, R], /) -> LruFunction[P, R]:
    """`lru_cache` without a bound; `functools.cache` in every respect."""
    return lru_cache(maxsize=None)(user_function)


class _Key(list[Any]):
    """Several arguments as one key that is hashed once: a slow ``__hash__`` of an argument runs once a call."""

    __slots__ = ("hashed",)

    def __init__(self, parts: tuple[Any, ...]) -> None:
        self[:] = parts
        self.hashed = hash(parts)

    def __hash__(self) -> int:  # type: ignore[override]
        return self.hashed


_NAMED = (object(),)  # between positional and named arguments: f("a", 1) is not f(a=1)
_PLAIN = {int, str}  # alone, these are their own key: quick to hash, and nothing else equals what they equal


def _make_key(args: tuple[Any, ...], kwargs: dict[str, Any], typed: bool) -> _Key:
    """The general way; one plain argument alone never comes here, except where types count."""
    parts = args
    if kwargs:
        # In the order in which they were given, so f(a=1, b=2) and f(b=2, a=1) are two keys, as functools has it.
        parts += _NAMED
        for item in kwargs.items():
            parts += item
    if typed:
        parts += tuple(map(type, args)) + tuple(map(type, kwargs.values()))
    return _Key(parts)


_BEFORE, _AFTER, _RESULT, _KEY = range(4)  # fields of a link in the ring, least recently used first


class _Held:
    """What one function's results are held in, and the lock on it.

    The lock is reentrant, since looking a key up may run an argument's ``__eq__``, and that may call the function
    again. So each change of the ring is a straight run of list stores, in which nobody else's code can run.
    """

    __slots__ = ("found", "hits", "lock", "maxsize", "misses", "root")

    def __init__(self, maxsize: int | None) -> None:
        self.maxsize = maxsize
        self.found: dict[Any, Any] = {}  # key -> link; without a bound key -> result
        self.lock = threading.RLock()
        self.hits = self.misses = 0
        self.root: list[Any] = []
        self.root[:] = [self.root, self.root, None, None]

    def store(self, key: Any, result: Any) -> None:
        """Under the lock, as the most recently used; then drops what is too much."""
        found, root = self.found, self.root
        if key in found:
            return  # another call was faster, or this one called itself
        found[key] = link = [None, None, result, key]
        last = root[_BEFORE]
        link[_BEFORE], link[_AFTER] = last, root
        last[_AFTER] = root[_BEFORE] = link
        # A key whose __eq__ stored an equal one meanwhile has two links in the ring: hence `while`, and a default.
        # Not len(): that name may stand for a cached function by now.
        while found.__len__() > cast(int, self.maxsize) and root[_AFTER] is not root:
            oldest = root[_AFTER]
            root[_AFTER] = after = oldest[_AFTER]
            after[_BEFORE] = root
            found.pop(oldest[_KEY], None)

    def cache_info(self) -> CacheInfo:
        """Report cache statistics"""
        with self.lock:
            return CacheInfo(self.hits, self.misses, self.maxsize, self.found.__len__())

    def cache_clear(self) -> None:
        """Clear the cache and cache statistics"""
        with self.lock:
            links = list(self.found.values()) if self.maxsize is not None else []
            self.root[_BEFORE] = self.root[_AFTER] = self.root
            self.hits = self.misses = 0
            for link in links:
                link[_BEFORE] = link[_AFTER] = None  # else results would wait for the garbage collector
            self.found.clear()

    def after_fork(self) -> None:
        """In a forked child: the lock may be held by a thread that is not here, its change half done."""
        if self.lock.acquire(blocking=False):
            self.lock.release()
        else:
            self.lock = threading.RLock()
            self.cache_clear()


for _shown in (_Held.cache_info, _Held.cache_clear):
    _shown.__annotations__.clear()  # so that their signatures read "()", as those of functools


def _cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> LruFunction[..., Any]:
    held = _Held(maxsize)
    wrapper: Any
    if maxsize == 0:
        wrapper = _uncached(function, held)
    elif maxsize is None:
        wrapper = _unbounded(function, held, typed)
    else:
        wrapper = _bounded(function, held, typed)
    functools.update_wrapper(wrapper, function)
    # After that: the function may be cached itself, and it keeps its own.
    wrapper.cache_info, wrapper.cache_clear = held.cache_info, held.cache_clear
    wrapper.cache_parameters = lambda: {"maxsize": maxsize, "typed": typed}
    wrapper._after_fork = held.after_fork
    _FUNCTIONS.add(wrapper)
    return cast("LruFunction[..., Any]", wrapper)


def _uncached(function: Callable[..., Any], held: _Held) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with held.lock:
            held.misses += 1
        return function(*args, **kwargs)

    return wrapper


def _unbounded(function: Callable[..., Any], held: _Held, typed: bool) -> Callable[..., Any]:
    """Without the lock, as `functools` does it: there is no order to keep, and each step is one operation of a dict.

    Where threads run without a global lock, ``hits`` and ``misses`` may miss a count; the results never.
    """
    missing = object()
    found, get, count = held.found, held.found.get, len

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not kwargs and not typed and count(args) == 1 and type(args[0]) in _PLAIN:
            key = args[0]
        else:
            key = _make_key(args, kwargs, typed)
        result = get(key, missing)
        if result is not missing:
            held.hits += 1
            return result
        held.misses += 1
        result = found[key] = function(*args, **kwargs)
        return result

    return wrapper


def _bounded(function: Callable[..., Any], held: _Held, typed: bool) -> Callable[..., Any]:
    # Bound now: the function to be cached may be `len` itself.
    get, root, count = (
        held.found.get,
        held.root,
        len,
    )

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not kwargs and not typed and count(args) == 1 and type(args[0]) in _PLAIN:
            key = args[0]
        else:
            key = _make_key(args, kwargs, typed)
        with held.lock:
            link = get(key)
            if link is not None:
                held.hits += 1
                before, after, result, _ = link
                if after is not root:  # else it is the last one used already
                    before[_AFTER] = after
                    after[_BEFORE] = before
                    last = root[_BEFORE]
                    last[_AFTER] = root[_BEFORE] = link
                    link[_BEFORE] = last
                    link[_AFTER] = root
                return result
            held.misses += 1
        result = function(*args, **kwargs)
        with held.lock:
            held.store(key, result)
        return result

    return wrapper


_FUNCTIONS: weakref.WeakSet[Any] = weakref.WeakSet()


def _after_fork() -> None:
    for function in list(_FUNCTIONS):
        function._after_fork()


os.register_at_fork(after_in_child=_after_fork)
