"""`CachedFunction`: a decorated function as a type checker sees it, and the methods' own form of it at run time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Iterable
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    overload,
)

from cachewright.core.engine import Inspection
from cachewright.key_template import KeyMaker

if TYPE_CHECKING:
    from cachewright.schedule import Refresh
    from cachewright.warm_plan import Progress, WarmReport

__all__ = ["ATTRIBUTES", "CacheInfo", "CachedFunction"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R_co = TypeVar("R_co", covariant=True)  # results only come out
Awaited = TypeVar("Awaited")


class Part(Protocol):
    """What stands behind it: `decorator.Decorated`."""

    function: Callable[..., Any]
    maker: KeyMaker

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...
    def bound_to(self, instance: object) -> Part: ...
    def invalidate(self, *args: Any, **kwargs: Any) -> bool: ...
    def refresh(self, *args: Any, **kwargs: Any) -> Any: ...
    def inspect(self, *args: Any, **kwargs: Any) -> Inspection: ...
    def key_for(self, *args: Any, **kwargs: Any) -> str: ...
    def cache_info(self) -> CacheInfo: ...
    def cache_clear(self) -> None: ...
    async def ainvalidate(self, *args: Any, **kwargs: Any) -> bool: ...
    async def arefresh(self, *args: Any, **kwargs: Any) -> Any: ...
    async def ainspect(self, *args: Any, **kwargs: Any) -> Inspection: ...
    async def acache_clear(self) -> None: ...
    def warm(
        self, arguments: Iterable[Any], *, concurrency: int = ..., progress: Progress | None = ...
    ) -> WarmReport[str]: ...
    async def awarm(
        self, arguments: Iterable[Any], *, concurrency: int = ..., progress: Progress | None = ...
    ) -> WarmReport[str]: ...
    def keep_fresh(self, *args: Any, **kwargs: Any) -> Refresh: ...
    async def akeep_fresh(self, *args: Any, **kwargs: Any) -> Refresh: ...


class CacheInfo(NamedTuple):
    """As `functools.lru_cache` has it; ``hits`` are this process's hits in memory."""

    hits: int
    misses: int
    maxsize: int | None
    currsize: int


class CachedFunction(Generic[P, R_co]):
    """What ``cached`` returns, as a type checker sees it; at run time a plain function has the same attributes.

    A method's attributes are bound with it: ``service.get_user.invalidate(1)``.
    """

    __wrapped__: Callable[P, R_co]
    __name__: str

    def __init__(self, part: Part) -> None:
        self._part = part
        functools.update_wrapper(cast(Any, self), part.function)

    def __repr__(self) -> str:
        return f"<cached {self._part.maker.name} key={self._part.maker.template or 'automatic'}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """The cached result."""
        return cast(R_co, self._part.call(args, kwargs))

    @overload
    def __get__(self, instance: None, owner: type) -> CachedFunction[P, R_co]: ...

    @overload
    def __get__(
        self: CachedFunction[Concatenate[Any, Q], R_co], instance: object, owner: type | None = None
    ) -> CachedFunction[Q, R_co]: ...

    def __get__(self, instance: object | None, owner: type | None = None) -> Any:
        return self if instance is None else CachedFunction(self._part.bound_to(instance))

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Drops the entry of these arguments in every tier; True if there was one."""
        return self._part.invalidate(*args, **kwargs)

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Loads anew, even over a fresh entry, and returns the value; a failure keeps the last good one."""
        return cast(R_co, self._part.refresh(*args, **kwargs))

    def inspect(self, *args: P.args, **kwargs: P.kwargs) -> Inspection:
        """What every tier holds for these arguments."""
        return self._part.inspect(*args, **kwargs)

    def key_for(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key of these arguments."""
        return self._part.key_for(*args, **kwargs)

    def cache_info(self) -> CacheInfo:
        """Hits in memory, misses there, the memory's size and how many entries it holds."""
        return self._part.cache_info()

    def cache_clear(self) -> None:
        """Drops all entries of this function, in all processes."""
        self._part.cache_clear()

    async def ainvalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """`invalidate`, awaited."""
        return await self._part.ainvalidate(*args, **kwargs)

    @overload
    async def arefresh(
        self: CachedFunction[P, Coroutine[Any, Any, Awaited]], *args: P.args, **kwargs: P.kwargs
    ) -> Awaited: ...

    @overload
    async def arefresh(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    async def arefresh(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """`refresh`, awaited."""
        return await self._part.arefresh(*args, **kwargs)

    async def ainspect(self, *args: P.args, **kwargs: P.kwargs) -> Inspection:
        """`inspect`, awaited."""
        return await self._part.ainspect(*args, **kwargs)

    async def acache_clear(self) -> None:
        """`cache_clear`, awaited."""
        await self._part.acache_clear()

    def warm(
        self, arguments: Iterable[Any], *, concurrency: int = 8, progress: Progress | None = None
    ) -> WarmReport[str]:
        """Runs the function for those of ``arguments`` that are not fresh, a few at a time; `Cache.warm` tells more.

        Args:
            arguments: one item a call: a tuple of arguments, a dict of them by name, or the only argument itself.
            concurrency: how many run at once, 1 to 64.
            progress: ``progress(done, total, failed)``; return False to stop.

        Returns:
            A report; its ``failed`` is by key.

        Raises:
            ConfigurationError: arguments that cannot work, or an ``async def`` (await `awarm`).
        """
        return self._part.warm(arguments, concurrency=concurrency, progress=progress)

    async def awarm(
        self, arguments: Iterable[Any], *, concurrency: int = 8, progress: Progress | None = None
    ) -> WarmReport[str]:
        """`warm`, awaited."""
        return await self._part.awarm(arguments, concurrency=concurrency, progress=progress)

    def keep_fresh(self, *args: P.args, **kwargs: P.kwargs) -> Refresh:
        """Schedules these arguments by the ``refresh_every`` of ``cached``; the handle. A second call gives the same one.

        Raises:
            ConfigurationError: ``cached`` was given no ``refresh_every``, or an ``async def`` (await `akeep_fresh`).
        """
        return self._part.keep_fresh(*args, **kwargs)

    async def akeep_fresh(self, *args: P.args, **kwargs: P.kwargs) -> Refresh:
        """`keep_fresh` on the running event loop."""
        return await self._part.akeep_fresh(*args, **kwargs)


ATTRIBUTES = (
    "invalidate", "refresh", "inspect", "key_for", "cache_info", "cache_clear",
    "ainvalidate", "arefresh", "ainspect", "acache_clear", "warm", "awarm", "keep_fresh", "akeep_fresh",
)  # fmt: skip
