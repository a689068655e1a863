"""``get_or_set``: the value if it is cached, else loaded once for all who ask."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar, Unpack, overload

from cachewright.core.ahead import is_for_core
from cachewright.core.engine import Engine
from cachewright.errors import ConfigurationError
from cachewright.keys import check_key, check_keys, shorten
from cachewright.options import MISSING, Entry, Freshness, Options
from cachewright.runtime.base import Runtime, drive
from cachewright.strategies import Strategies

__all__ = ["CacheAside"]

T = TypeVar("T")


class CacheAside(Strategies):
    """Base of `Cache`."""

    def __init__(self, engine: Engine, threads: Runtime, aio: Runtime) -> None:
        super().__init__(engine, threads, aio)
        self._memory = engine.state.chain.memory
        self._stats = engine.state.stats

    def _local(self, key: str, type_: Any) -> Any:
        """The fresh value that process memory holds, or `MISSING`. No lock, no coroutine."""
        if self._memory is None or key.__class__ is not str:
            return MISSING
        value = self._memory.peek(key, type_)
        if value is not MISSING:
            self._stats.local_hits += 1
        return value

    @overload
    def get_or_set(self, key: str, loader: Callable[[], Entry[T]], **options: Unpack[Freshness]) -> T: ...

    @overload
    def get_or_set(self, key: str, loader: Callable[[], T], **options: Unpack[Freshness]) -> T: ...

    def get_or_set(self, key: str, loader: Callable[[], Any], **options: Unpack[Freshness]) -> Any:
        """The value of ``key``; where it is not cached, ``loader()`` runs once for all who ask.

        Args:
            key: the key.
            loader: takes nothing; returns the value, or an `Entry` that says how long it is good.
            **options: freshness options of this load.

        Raises:
            LoadTimeout: ``load_timeout`` passed and no stale value may be used.
            RecursiveLoadError: the loader asked for its own key.
            Exception: whatever the loader raised, where no stale value may be used.
        """
        return drive(self._get_or_set(self._threads, key, loader, options))

    @overload
    async def aget_or_set(
        self, key: str, loader: Callable[[], Awaitable[Entry[T]]], **options: Unpack[Freshness]
    ) -> T: ...

    @overload
    async def aget_or_set(
        self, key: str, loader: Callable[[], Awaitable[T]], **options: Unpack[Freshness]
    ) -> T: ...

    @overload
    async def aget_or_set(
        self, key: str, loader: Callable[[], Entry[T]], **options: Unpack[Freshness]
    ) -> T: ...

    @overload
    async def aget_or_set(self, key: str, loader: Callable[[], T], **options: Unpack[Freshness]) -> T: ...

    async def aget_or_set(self, key: str, loader: Callable[[], Any], **options: Unpack[Freshness]) -> Any:
        """`get_or_set`, awaited; an ``async def`` loader is awaited, a plain one runs in a worker thread."""
        return await self._get_or_set(self._aio, key, loader, options)

    def _for_core(self, rt: Runtime, key: str, options: Options) -> bool:
        """Whether ``refresh_ahead`` of this very call wants the core to see it, whatever the entry was stored with."""
        node = self._memory.table.get(key) if self._memory is not None and key.__class__ is str else None
        return node is not None and is_for_core(rt, node.entry, options)

    async def _get_or_set(self, rt: Runtime, key: str, loader: Callable[[], Any], given: Freshness) -> Any:
        if not callable(loader):
            raise ConfigurationError(
                f"get_or_set({shorten(key)}, {shorten(loader)}): the second argument is a function"
            )
        merged = self._load_options(given, loader)
        if merged.refresh_ahead is False or not self._for_core(rt, key, merged):
            value = self._local(key, merged.type)
            if value is not MISSING:
                return value
        return await self.engine.load(rt, check_key(key), loader, merged)

    def get_or_set_many(
        self,
        keys: Iterable[str],
        loader: Callable[[list[str]], Mapping[str, T]],
        **options: Unpack[Freshness],
    ) -> dict[str, T]:
        """The values of many keys; ``loader(missing_keys)`` returns a mapping for all that is not cached.

        A key that it leaves out is absent and not stored; an exception instance as a value fails that key alone (it is
        raised after the others were stored). ``soft_timeout`` and ``load_timeout`` bound the whole call: stale values
        answer where every missing key has one.
        """
        return drive(self._get_or_set_many(self._threads, keys, loader, options))

    async def aget_or_set_many(
        self,
        keys: Iterable[str],
        loader: Callable[[list[str]], Awaitable[Mapping[str, T]] | Mapping[str, T]],
        **options: Unpack[Freshness],
    ) -> dict[str, T]:
        """`get_or_set_many`, awaited."""
        return await self._get_or_set_many(self._aio, keys, loader, options)

    async def _get_or_set_many(
        self, rt: Runtime, keys: Iterable[str], loader: Callable[[list[str]], Any], given: Freshness
    ) -> dict[str, Any]:
        merged = self._load_options(given, loader, many=True)
        asked = names = check_keys(keys)
        if merged.refresh_ahead is not False:
            asked = [key for key in names if not self._for_core(rt, key, merged)]
        found = {key: value for key in asked if (value := self._local(key, merged.type)) is not MISSING}
        rest = [key for key in names if key not in found]
        if rest:
            found.update(await self.engine.load_many(rt, rest, loader, merged))
        return {key: found[key] for key in names if key in found}
