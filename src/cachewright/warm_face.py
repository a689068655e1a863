"""``warm`` and ``awarm`` of a `Cache`. How keys are warmed is in `warming`, imported by whoever warms."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack, cast

from cachewright.core.engine import Engine
from cachewright.errors import ConfigurationError
from cachewright.keys import check_key
from cachewright.options import Freshness, Options
from cachewright.runtime.base import Runtime, drive
from cachewright.runtime.threads import is_async

if TYPE_CHECKING:
    from cachewright.warm_plan import Progress, WarmPlan, WarmReport

__all__ = ["WarmFace"]


class WarmFace:
    """Base of `Cache`."""

    engine: Engine
    _threads: Runtime
    _aio: Runtime
    _parts: set[Any]

    def _load_options(self, given: Freshness, loader: Callable[..., Any], *, many: bool = False) -> Options:
        raise NotImplementedError

    def warm(
        self,
        keys: Iterable[str],
        loader: Callable[[str], Any] | None = None,
        *,
        load_many: Callable[[list[str]], Mapping[str, Any]] | None = None,
        concurrency: int = 8,
        batch_size: int = 100,
        progress: Progress | None = None,
        **options: Unpack[Freshness],
    ) -> WarmReport[str]:
        """Loads those of ``keys`` that are not fresh, a few at a time; a second call goes on where one stopped.

        One key's error does not stop the others, and neither does one that cannot be a key: the report's ``failed`` tells.
        Interrupted (Ctrl-C, a cancelled task, `close`), it begins no further
        load and gives those under way up to five seconds to end.

        Args:
            keys: the keys, once each; a generator is read as it is needed.
            loader: ``loader(key)`` loads one.
            load_many: ``load_many(keys)`` loads many and returns a mapping; keys that it leaves out are absent.
            concurrency: how many loads run at once, 1 to 64.
            batch_size: how many keys ``load_many`` is given at once.
            progress: called as ``progress(done, total, failed)`` by the one who warms, at least four times a second;
                ``total`` is None for a generator. Return False to stop.
            **options: freshness options of the loads.

        Raises:
            ConfigurationError: arguments that cannot work together, or an ``async def`` (await `awarm`).
        """
        if any(is_async(one) for one in (loader, load_many) if one is not None):
            raise ConfigurationError("warm(…) with an async loader: await cache.awarm(…)")
        plan = self._warm_plan(loader, load_many, options)
        return drive(self._warm(self._threads, keys, plan, concurrency, batch_size, progress))

    async def awarm(
        self,
        keys: Iterable[str],
        loader: Callable[[str], Any] | None = None,
        *,
        load_many: Callable[[list[str]], Awaitable[Mapping[str, Any]] | Mapping[str, Any]] | None = None,
        concurrency: int = 8,
        batch_size: int = 100,
        progress: Progress | None = None,
        **options: Unpack[Freshness],
    ) -> WarmReport[str]:
        """`warm`, awaited; an ``async def`` is awaited, a plain loader runs in worker threads."""
        plan = self._warm_plan(loader, load_many, options)
        return await self._warm(self._aio, keys, plan, concurrency, batch_size, progress)

    def _warm_plan(
        self, loader: Callable[[str], Any] | None, load_many: Callable[..., Any] | None, given: Freshness
    ) -> WarmPlan:
        from cachewright.warm_plan import WarmPlan

        if (loader is None) == (load_many is None):
            how = "both" if loader is not None else "neither"
            raise ConfigurationError(
                f"warm needs loader= (called with one key) or load_many= (called with a list), and was given {how}"
            )
        function = cast(Callable[..., Any], loader if loader is not None else load_many)
        if not callable(function):
            raise ConfigurationError(f"warm(keys, {function!r}): the loader is a function of a key")
        options = self._load_options(given, function, many=loader is None)
        return WarmPlan(
            key_of=check_key,
            options_of=lambda *_: options,
            one=lambda _rt, _item, key: partial(function, key),
            many=None if load_many is None else lambda *_: function,
        )

    async def _warm(
        self,
        rt: Runtime,
        keys: Iterable[str],
        plan: WarmPlan,
        concurrency: int,
        batch_size: int,
        progress: Progress | None,
    ) -> WarmReport[str]:
        from cachewright.warm_plan import check_items
        from cachewright.warming import Warming

        check_items("the keys", keys)
        warming = Warming(
            self.engine,
            rt,
            plan,
            keys,
            self._parts,
            concurrency=concurrency,
            batch_size=batch_size,
            progress=progress,
        )
        return await warming.run()
