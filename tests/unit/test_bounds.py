"""A call comes to its end whatever a store answers, and leaves no mark of a write that never was."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

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
