"""Every operation on one chain, for whoever has a face of their own: `Cache`, decorators, repositories, schedules.

All methods are ``async def`` over a `Runtime`; a blocking face drives them, an awaiting one awaits them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from cachewright.core import batch, edit, load, read, write
from cachewright.core.edit import Inspection
from cachewright.core.interrupted import own_exit
from cachewright.core.leading import Plan
from cachewright.core.state import State
from cachewright.errors import LoaderInterrupted, TierUnavailable
from cachewright.options import Options
from cachewright.runtime.base import Runtime
from cachewright.tiers.memory import deep_copy

T = TypeVar("T")

__all__ = ["Engine", "Inspection"]


class Engine:
    """See the module. `state` holds what the operations share."""

    def __init__(self, state: State) -> None:
        self.state = state

    @property
    def options(self) -> Options:
        """The cache's own options, on which all others are laid."""
        return self.state.options

    # ------------------------------------------------------------------------------------------- reads

    async def get(self, rt: Runtime, key: str, default: Any, options: Options) -> Any:
        """The fresh value of a key, or ``default``. Never waits for a load."""
        return (await read.read_many(self.state, rt, (key,), options)).get(key, default)

    async def get_many(self, rt: Runtime, keys: Sequence[str], options: Options) -> dict[str, Any]:
        """The fresh values of those keys that have one."""
        return await read.read_many(self.state, rt, list(dict.fromkeys(keys)), options)

    async def load(
        self,
        rt: Runtime,
        key: str,
        loader: Callable[[], Any],
        options: Options,
        *,
        implicit: tuple[str, ...] = (),
        forced: bool = False,
    ) -> Any:
        """The value of a key, loaded once for all who ask; ``forced`` loads even over a fresh entry."""
        plan = Plan(key, loader, options, (*options.tags, *implicit), forced)
        try:
            value = await load.get_or_load(self.state, rt, plan)
        except LoaderInterrupted as error:
            own = own_exit(rt, error, loader)
            if own is None:
                raise
            raise own from None
        return self._own(key, value)

    async def load_many(
        self,
        rt: Runtime,
        keys: Sequence[str],
        loader: Callable[[list[str]], Any],
        options: Options,
        *,
        implicit: tuple[str, ...] = (),
        renew: bool = False,
    ) -> dict[str, Any]:
        """The values of many keys: one round trip a tier, one loader call for what is missing.

        ``renew``: a stale value is as good as none.
        """
        tags = (*options.tags, *implicit)
        try:
            found = await batch.get_or_load_many(self.state, rt, keys, loader, options, tags, renew)
        except LoaderInterrupted as error:
            own = own_exit(rt, error, loader)
            if own is None:
                raise
            raise own from None
        return {key: self._own(key, value) for key, value in found.items()}

    def _own(self, key: str, value: Any) -> Any:
        """With ``copy=True`` all who share a load get a value of their own."""
        memory = self.state.chain.memory
        return deep_copy(key, value) if memory is not None and memory.copy else value

    async def inspect(self, rt: Runtime, key: str) -> Inspection:
        """What every tier holds for a key."""
        return await edit.inspect(self.state, rt, key)

    # ------------------------------------------------------------------------------------------ changes

    async def set_many(self, rt: Runtime, values: Mapping[str, Any], options: Options) -> None:
        """Stores plain values."""
        if values:
            await write.store(self.state, rt, values, options, options.tags)

    async def add(self, rt: Runtime, key: str, value: Any, options: Options) -> bool:
        """Stores only where no fresh entry stands."""
        return await edit.add(self.state, rt, key, value, options, options.tags)

    async def touch(self, rt: Runtime, key: str, ttl: float | None) -> bool:
        """Gives a fresh entry a new life."""
        return await edit.touch(self.state, rt, key, ttl)

    async def incr(self, rt: Runtime, key: str, delta: float) -> float:
        """Adds to a fresh number."""
        return await edit.incr(self.state, rt, key, delta)

    async def drop_many(self, rt: Runtime, keys: Sequence[str]) -> list[bool]:
        """Drops keys in every tier."""
        return await write.drop(self.state, rt, keys) if keys else []

    async def write(
        self,
        rt: Runtime,
        values: Mapping[str, Any],
        save: Callable[[], Awaitable[T]],
        options: Options,
        *,
        implicit: tuple[str, ...] = (),
        not_saved: tuple[type[Exception], ...] = (),
        keep: bool = True,
    ) -> T:
        """Saves at the origin under intents; ``keep`` stores the new values, else the keys are left empty."""
        return await write.write(
            self.state, rt, values, save, options, (*options.tags, *implicit), not_saved=not_saved, keep=keep
        )

    async def invalidate_tags(self, rt: Runtime, tags: Sequence[str]) -> None:
        """Everything that carries one of these tags is invalid from now on."""
        if tags:
            await write.invalidate_tags(self.state, rt, tags)

    async def clear(self, rt: Runtime) -> None:
        """Drops every entry of the namespace."""
        await write.clear(self.state, rt)

    # --------------------------------------------------------------------------------------- life cycle

    async def connect(self, rt: Runtime, attempts: int, wait: float) -> None:
        """Reaches every tier once, trying again as often as said.

        Raises:
            TierUnavailable: a tier could not be reached in all these attempts.
        """
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_fixed

        for level in self.state.chain.levels:
            retrying = AsyncRetrying(
                sleep=rt.sleep,
                stop=stop_after_attempt(attempts),
                wait=wait_fixed(wait),
                retry=retry_if_exception_type(TierUnavailable),
                reraise=True,
            )
            await retrying(level.tier.connect, rt)

    def stats(self) -> dict[str, Any]:
        """Counters, the tiers' own facts, and the events so far."""
        chain = self.state.chain
        tiers = [level.tier for level in chain.levels]
        views = {tier.name: tier.describe() for tier in ([chain.local] if chain.local else []) + tiers}
        for level in chain.levels:
            views[level.tier.name]["breaker"] = "open" if level.is_open else "closed"
            views[level.tier.name]["behind"] = level.behind
        counters = self.state.stats.as_dict()
        counters["local_hits"] += sum(part.total_hits for part in self.state.decorated)
        return {
            **counters,
            "flights": len(self.state.flights),
            "background": len(self.state.jobs()),
            "tiers": views,
            "events": dict(self.state.hub.counts),
        }

    async def close(self, rt: Runtime, timeout: float) -> None:
        """Ends background work within the deadline and closes every tier, also after its event loops are gone."""
        await self.state.end_jobs(rt, timeout)
        self.state.closed()
        self.state.orphans.end()
        for level in self.state.chain.levels:
            await level.end(rt)
        for tier in self._tiers():
            tier.close()

    async def aclose(self, rt: Runtime, timeout: float) -> None:
        """`close`, letting this loop's work and connections end properly."""
        await self.state.end_jobs(rt, timeout)
        self.state.closed()  # only now: who was stopped has given its leases back
        self.state.orphans.end()
        for level in self.state.chain.levels:
            await level.end(rt)
        for tier in self._tiers():
            await tier.aclose(rt)

    def after_fork(self) -> None:
        """In a forked child: lets go of what belongs to the parent."""
        self.state.hub.after_fork()
        self.state.after_fork()
        self.state.flights.after_fork()
        for level in self.state.chain.levels:
            level.after_fork()
        for tier in self._tiers():
            tier.after_fork()

    def _tiers(self) -> list[Any]:
        chain = self.state.chain
        return [*([chain.local] if chain.local is not None else []), *(level.tier for level in chain.levels)]
