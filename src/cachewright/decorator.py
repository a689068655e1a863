"""``cached``: the read-through decorator for functions and methods, plain or ``async def``.

A hit never enters the core. A decorated function keeps an index from its arguments to the *node* of process memory that
held their value; a node dies in place, so the index needs no telling: a look at the node's deadline is enough. Only
int, str, bytes, bool and None go into the index, with their exact types beside the node (``1``, ``True`` and ``1.0`` are
one dict key); all else makes its key and looks it up.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Coroutine
from dataclasses import replace
from types import FunctionType
from typing import Any

from cachewright.codecs.annotations import loader_type
from cachewright.core.engine import Engine, Inspection
from cachewright.decorator_ahead import Ahead, Keeping
from cachewright.decorator_function import ATTRIBUTES, CachedFunction, CacheInfo
from cachewright.errors import ConfigurationError
from cachewright.key_template import KeyMaker, build_key_maker, function_name
from cachewright.keys import check_tag
from cachewright.options import MISSING, Entry, Options
from cachewright.runtime.base import Runtime, drive
from cachewright.runtime.threads import is_async
from cachewright.wrappers import INDEXED, make_wrapper

__all__ = ["CacheInfo", "CachedFunction", "decorate"]


class Decorated(Ahead):
    """One decorated function: its key, tags and options, and the way of a call that the index did not answer."""

    def __init__(
        self,
        function: Callable[..., Any],
        engine: Engine,
        threads: Runtime,
        aio: Runtime,
        options: Options,
        maker: KeyMaker,
        tag_makers: tuple[KeyMaker, ...],
        *,
        typed: bool,
        parts: set[Any],
        keeping: Keeping | None,
    ) -> None:
        self.parts, self.keeping = parts, keeping
        self.function, self.engine, self.threads, self.aio = function, engine, threads, aio
        self.maker, self.tag_makers = maker, tag_makers
        self.is_async = is_async(function)
        self.own_tag = f"\0f:{maker.name}"
        self.bound: tuple[Any, ...] = ()
        self.counts = {"hits": 0, "misses": 0}  # of all bound forms of a method together
        self.hits: Callable[[], int] = lambda: 0  # those that the wrapper answered by itself
        self._options, self._typed = options, typed
        self.memory = engine.state.chain.memory
        self.index: dict[Any, Any] = {}

    @property
    def options(self) -> Options:
        """With the type that the function's annotation names, looked up late: it may be defined below."""
        if not self._typed:
            self._options = replace(self._options, type=loader_type(self.function, wrappers=(Entry,)))
            self._typed = True
        return self._options

    @property
    def total_hits(self) -> int:
        """Hits in this process's memory."""
        return self.hits() + self.counts["hits"]

    def bound_to(self, instance: object) -> Decorated:
        """The same for a method of ``instance``."""
        copy = Decorated.__new__(Decorated)
        copy.__dict__.update(self.__dict__)
        copy.bound = (instance,)
        return copy

    # ------------------------------------------------------------------------------------------ the call

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call, or a coroutine of one."""
        args = self.bound + args
        return self.acall(args, kwargs) if self.is_async else self.scall(args, kwargs)

    def scall(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A blocking call that the index did not answer."""
        if self.keeping is not None:
            self.keeping.begin(self, self.threads)
        key = self.maker(args, kwargs)
        found, value = self._local(key, args, kwargs)
        if found:
            return value
        self.counts["misses"] += 1
        value = drive(self._load(self.threads, key, args, kwargs))
        self._remember(key, args, kwargs)
        return value

    async def acall(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An awaited call that the index did not answer."""
        if self.keeping is not None:
            self.keeping.begin(self, self.aio)
        key = self.maker(args, kwargs)
        found, value = self._local(key, args, kwargs)
        if found:
            return value
        self.counts["misses"] += 1
        value = await self._load(self.aio, key, args, kwargs)
        self._remember(key, args, kwargs)
        return value

    def _load(
        self, rt: Runtime, key: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, forced: bool = False
    ) -> Coroutine[Any, Any, Any]:
        loader = functools.partial(self.function, *args, **kwargs)
        return self.engine.load(
            rt, key, loader, self.options_for(key, args, kwargs), implicit=(self.own_tag,), forced=forced
        )

    def options_for(self, key: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Options:
        """With the tags of these arguments; what is kept fresh by a schedule never expires, unless ``ttl`` was given."""
        options = self.options
        if self.keeping is not None:
            options = self.keeping.lasting(key, options)
        if not self.tag_makers:
            return options
        return replace(
            options, tags=(*options.tags, *(check_tag(make(args, kwargs)) for make in self.tag_makers))
        )

    def _local(self, key: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, Any]:
        value = self.memory.peek(key, self.options.type) if self.memory is not None else MISSING
        if value is MISSING:
            return False, None
        self.counts["hits"] += 1
        self._remember(key, args, kwargs)
        return True, value

    def _remember(self, key: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Points the index at the node that memory holds now."""
        if self.keeping is not None:
            return  # each call must see whether the schedule runs in this process and on this loop
        memory = self.memory
        if (
            memory is None
            or memory.copy
            or not self.maker.simple
            or kwargs
            or len(args) != len(self.maker.parameters)
        ):
            return
        if any(type(arg) not in INDEXED for arg in args):
            return
        node = memory.table.get(key)
        if node is None or node.entry is None or node.entry.as_type is not self.options.type:
            return
        if len(self.index) >= 2 * memory.max_entries:
            for known, (old, _) in list(self.index.items()):
                if old.entry is None:
                    self.index.pop(known, None)
            if len(self.index) >= 2 * memory.max_entries:
                self.index.clear()
        kinds = tuple(type(arg) for arg in args)
        if len(args) == 1:
            self.index[args[0]] = (node, kinds[0])
        else:
            self.index[args] = (node, kinds)

    # ------------------------------------------------------------------------------------- the attributes

    def key_for(self, *args: Any, **kwargs: Any) -> str:
        return self.maker(self.bound + args, kwargs)

    def invalidate(self, *args: Any, **kwargs: Any) -> bool:
        return drive(self.engine.drop_many(self.threads, [self.key_for(*args, **kwargs)]))[0]

    async def ainvalidate(self, *args: Any, **kwargs: Any) -> bool:
        return (await self.engine.drop_many(self.aio, [self.key_for(*args, **kwargs)]))[0]

    def refresh(self, *args: Any, **kwargs: Any) -> Any:
        args = self.bound + args
        return drive(self._load(self.threads, self.maker(args, kwargs), args, kwargs, forced=True))

    async def arefresh(self, *args: Any, **kwargs: Any) -> Any:
        args = self.bound + args
        return await self._load(self.aio, self.maker(args, kwargs), args, kwargs, forced=True)

    def inspect(self, *args: Any, **kwargs: Any) -> Inspection:
        return drive(self.engine.inspect(self.threads, self.key_for(*args, **kwargs)))

    async def ainspect(self, *args: Any, **kwargs: Any) -> Inspection:
        return await self.engine.inspect(self.aio, self.key_for(*args, **kwargs))

    def cache_info(self) -> CacheInfo:
        memory = self.memory
        size = memory.tagged(self.own_tag) if memory is not None else 0
        return CacheInfo(
            self.total_hits, self.counts["misses"], memory.max_entries if memory is not None else None, size
        )

    def cache_clear(self) -> None:
        drive(self.engine.invalidate_tags(self.threads, [self.own_tag]))

    async def acache_clear(self) -> None:
        await self.engine.invalidate_tags(self.aio, [self.own_tag])


def decorate(
    function: Any,
    engine: Engine,
    threads: Runtime,
    aio: Runtime,
    options: Options,
    *,
    key: str | Callable[..., str] | None,
    ignore: Collection[str],
    typed: bool,
    parts: set[Any],
    keeping: Keeping | None,
) -> Any:
    """The cached form of a function, staticmethod, classmethod or method.

    Raises:
        ConfigurationError: not a function, or a key that cannot work for it.
    """
    if isinstance(function, staticmethod | classmethod):
        inner = decorate(
            function.__func__,
            engine,
            threads,
            aio,
            options,
            key=key,
            ignore=ignore,
            typed=typed,
            parts=parts,
            keeping=keeping,
        )
        return type(function)(inner) if isinstance(function, staticmethod) else _ClassMethod(inner)
    if not callable(function):
        raise ConfigurationError(f"cached() takes a function, not {function!r}")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigurationError(
            f"{function_name(function)} is a generator: cache a function that returns a list"
        )
    maker = build_key_maker(function, key, ignore)
    if maker.prefix and getattr(function, "__closure__", None):
        _refuse_namesake(engine, function, maker)
    plain = tuple(tag for tag in options.tags if "{" not in tag)
    templates = tuple(build_key_maker(function, tag) for tag in options.tags if "{" in tag)
    part = Decorated(
        function,
        engine,
        threads,
        aio,
        replace(options, tags=plain),
        maker,
        templates,
        typed=typed,
        parts=parts,
        keeping=keeping,
    )
    if keeping is not None:
        keeping.check(part, owner=_takes_owner(function))
    engine.state.decorated.add(part)
    if _takes_owner(function):
        return CachedFunction[Any, Any](part)
    wrapper = make_wrapper(part)
    functools.update_wrapper(wrapper, function)
    for name in ATTRIBUTES:
        setattr(wrapper, name, getattr(part, name))
    return wrapper


def _refuse_namesake(engine: Engine, function: Callable[..., Any], maker: KeyMaker) -> None:
    """Two closures that one factory made share their name and so their automatic keys, but not what they close over."""
    for other in engine.state.decorated:
        if other.maker.prefix == maker.prefix and other.function is not function:
            raise ConfigurationError(
                f"{maker.name} is cached already and closes over variables of its own: the two would share their "
                'entries; give each a key= that tells them apart, such as key=f"rates-{currency}:{{day}}"'
            )


def _takes_owner(function: Callable[..., Any]) -> bool:
    """Whether it is written in a class's body: its attributes must then be bound with it."""
    if not isinstance(function, FunctionType):
        return False
    scope, _, _ = function.__qualname__.rpartition(".")
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return bool(scope) and not scope.endswith("<locals>") and bool(names) and names[0] in ("self", "cls")


class _ClassMethod:
    """``@cached`` over ``@classmethod``: binds the class, also where `classmethod` itself no longer chains."""

    def __init__(self, inner: CachedFunction[Any, Any]) -> None:
        self._inner = inner

    def __get__(self, instance: object | None, owner: type | None = None) -> Any:
        return self._inner.__get__(owner if owner is not None else type(instance), type)
