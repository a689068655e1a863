"""The part of a `Repository` that warms: ``warm`` and ``awarm``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cachewright.core.engine import Engine
from cachewright.errors import ConfigurationError
from cachewright.options import Options
from cachewright.runtime.base import Runtime, drive
from cachewright.runtime.threads import is_async
from cachewright.write_modes import Origin

if TYPE_CHECKING:
    from cachewright.warm_plan import Progress, WarmReport

__all__ = ["WarmIdsFace"]

Id = TypeVar("Id")


class WarmIdsFace(Generic[Id]):
    """Base of `Repository`."""

    name: str
    _engine: Engine
    _threads: Runtime
    _aio: Runtime
    _origin: Origin
    _tag: str
    _warmings: set[Any]

    @property
    def options(self) -> Options:
        """The options of its loads."""
        raise NotImplementedError

    def key_for(self, id: Id) -> str:
        """The key of an id."""
        raise NotImplementedError

    def _loader(self, rt: Runtime, id: Id, key: str) -> Callable[[], Any]:
        raise NotImplementedError

    def _many_loader(self, rt: Runtime, by_key: Mapping[str, Id]) -> Callable[[list[str]], Any]:
        raise NotImplementedError

    @property
    def warmed_by(self) -> Callable[..., Any]:
        """The function of the origin that ``warm`` calls: ``load_many`` where there is one."""
        load = self._origin.load_many or self._origin.load
        assert load is not None  # its maker sees to that
        return load

    @property
    def loads_many(self) -> bool:
        """Whether ``warm`` loads in batches."""
        return self._origin.load_many is not None

    def warm(
        self,
        ids: Iterable[Id],
        *,
        concurrency: int = 8,
        batch_size: int = 100,
        progress: Progress | None = None,
    ) -> WarmReport[Id]:
        """Loads those of ``ids`` that are not fresh, by ``load_many`` where there is one; a second call goes on.

        What waits in a write-behind buffer is newer than the origin, and is what is stored. `Cache.warm` tells the rest.

        Args:
            ids: the ids; a generator is read as it is needed.
            concurrency: how many loads run at once, 1 to 64.
            batch_size: how many ids ``load_many`` is given at once.
            progress: ``progress(done, total, failed)``; return False to stop.

        Raises:
            ConfigurationError: arguments that cannot work, or an async loader (await `awarm`).
        """
        if is_async(self.warmed_by):
            raise ConfigurationError(f"the loader of repository {self.name!r} is async: await awarm(…)")
        return drive(self._warm(self._threads, ids, concurrency, batch_size, progress))

    async def awarm(
        self,
        ids: Iterable[Id],
        *,
        concurrency: int = 8,
        batch_size: int = 100,
        progress: Progress | None = None,
    ) -> WarmReport[Id]:
        """`warm`, awaited."""
        return await self._warm(self._aio, ids, concurrency, batch_size, progress)

    async def _warm(
        self, rt: Runtime, ids: Iterable[Id], concurrency: int, batch_size: int, progress: Progress | None
    ) -> WarmReport[Id]:
        from cachewright.warm_plan import WarmPlan, check_items
        from cachewright.warming import Warming

        check_items("the ids", ids)
        plan = WarmPlan(
            key_of=self.key_for,
            options_of=lambda *_: self.options,
            one=self._loader,
            many=self._many_loader if self.loads_many else None,
            label_of=lambda one, _: one,
            implicit=(self._tag,),
        )
        warming = Warming(
            self._engine,
            rt,
            plan,
            ids,
            self._warmings,
            concurrency=concurrency,
            batch_size=batch_size,
            progress=progress,
        )
        return await warming.run()

    async def _stop_warming(self, rt: Runtime, timeout: float) -> None:
        for warming in list(self._warmings):
            await warming.close_part(rt, timeout)
