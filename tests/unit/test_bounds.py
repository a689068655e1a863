"""A call comes to its end whatever a store answers, and leaves no mark of a write that never was."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cachewright import Cache
from cachewright.errors import TierProtocolError
from cachewright.integrations.lease_lock import LeaseLock
from cachewright.runtime.base import Runtime
from cachewright.testing.sim.store import SimStore, SimTier
from cachewright.tiers.base import Swap, Swapped


class Refusing(SimTier):
    """A store that refuses every swap."""

    def __init__(self) -> None:
        super().__init__(SimStore(time.time), "bounds")
        self.swaps = 0

    async def swap(self, rt: Runtime, swaps: Sequence[Swap]) -> list[Swapped]:
        self.swaps += len(swaps)
        assert self.swaps < 10_000, "it goes on for ever"
        return [Swapped(False, None) for _ in swaps]


def test_a_write_over_a_store_that_refuses_every_swap_ends_before_its_save() -> None:
    saved: list[object] = []
    with Cache(Refusing()) as cache:
        users = cache.repository("r", load=str, save=lambda one, value: saved.append(value))
        with pytest.raises(TierProtocolError, match="refused 1,000 swaps"):
            users.put("k", "1")
    assert saved == []


@pytest.mark.parametrize(
    "call",
    [
        lambda cache: cache.get_or_set("k", lambda: 1),
        lambda cache: cache.get_or_set_many(["k", "l"], lambda keys: dict.fromkeys(keys, 1))["k"],
    ],
    ids=["one", "many"],
)
def test_a_load_over_a_store_that_refuses_every_swap_is_not_stored(call: Callable[[Cache], object]) -> None:
    with Cache(Refusing()) as cache:
        assert call(cache) == 1


def test_a_lock_over_a_store_that_refuses_every_swap_is_not_taken() -> None:
    with Cache(Refusing()) as cache:
        assert not LeaseLock(cache, "k").acquire(wait=False)


def test_a_write_cancelled_before_its_save_leaves_no_intent() -> None:
    asyncio.run(_cancelled())


async def _cancelled() -> None:
    dropping = asyncio.Event()

    class Lower(SimTier):
        async def drop(self, rt: Runtime, keys: Sequence[str]) -> list[bool]:
            dropping.set()
            await asyncio.sleep(30)
            return [False]

    top = SimStore(time.time)
    async with Cache(
        SimTier(top, "bounds", name="a"), Lower(SimStore(time.time), "bounds", name="b")
    ) as cache:

        async def load(id: str) -> int:
            return 1

        async def save(id: str, value: int) -> None:
            raise AssertionError("it was cancelled before")

        users = cache.repository("r", load=load, save=save)
        put = asyncio.create_task(users.aput("k", 2))
        await asyncio.wait_for(dropping.wait(), 20)
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        assert top.get("bounds:r:k") is None


def test_many_keys_under_unsettled_writes_are_not_read_over_and_over() -> None:
    class Counting(SimTier):
        keys = 0

        async def read(self, rt: Runtime, keys: Sequence[str], tags: Sequence[str] = ()) -> Any:
            self.keys += len(keys)
            return await super().read(rt, keys, tags)

    def save(one: int, value: int) -> None:
        raise OSError("nobody knows")

    tier, wanted = Counting(SimStore(time.time), "bounds"), range(100)
    with Cache(tier) as cache:
        users = cache.repository("r", load_many=lambda ids: {i: -i for i in ids}, save=save)
        for one in wanted:
            with pytest.raises(OSError, match="nobody"):
                users.put(one, one)
        tier.keys = 0
        assert users.get_many(wanted) == {one: -one for one in wanted}
        assert tier.keys < 5 * len(wanted)


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_who_is_cancelled_while_a_value_comes_up_leaves_no_lease(many: bool) -> None:
    asyncio.run(_cancelled_on_the_way_up(many))


async def _cancelled_on_the_way_up(many: bool) -> None:
    committing = asyncio.Event()

    class Upper(SimTier):
        async def swap(self, rt: Runtime, swaps: Sequence[Swap]) -> list[Swapped]:
            commit = all(swap.new is not None and swap.new.entry is not None for swap in swaps)
            if commit and not committing.is_set():
                committing.set()
                await asyncio.sleep(30)
            return await super().swap(rt, swaps)

    async def load(keys: list[str]) -> dict[str, int]:
        return dict.fromkeys(keys, 2)

    async def ask(cache: Cache) -> int:
        if many:
            return int((await cache.aget_or_set_many(["k", "l"], load))["k"])
        return int(await cache.aget_or_set("k", lambda: 2))

    top, low = SimStore(time.time), SimStore(time.time)
    tiers = Upper(top, "bounds", name="a"), SimTier(low, "bounds", name="b")
    async with Cache(SimTier(low, "bounds", name="b")) as lower, Cache(*tiers, lease=60) as cache:
        await lower.aset_many({"k": 1, "l": 1})
        caller = asyncio.create_task(ask(cache))
        await asyncio.wait_for(committing.wait(), 20)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert not top.rows, "no lease is left that others would wait for"
        assert await ask(cache) == 1
