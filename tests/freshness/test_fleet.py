"""Many callers of several processes over virtual time: an origin that is down for a minute, and a hot key that nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from cachewright import Cache
from cachewright.runtime.base import Runtime
from cachewright.testing.sim.store import SimStore, SimTier
from tests.freshness.virtual import VirtualLoop, VirtualTasks


class Process:
    """One process of a fleet: a cache over the store that all of them share, or over memory alone."""

    def __init__(self, loop: VirtualLoop, number: int, store: SimStore | None) -> None:
        tiers: list[Any] = ["memory://"] if store is None else ["memory://", SimTier(store, "fleet")]
        # Two processes never draw the same luck.
        self.cache = Cache(*tiers, namespace="fleet", clock=loop, local_ttl=1.0)
        self.cache._aio = VirtualTasks(loop, seed=number)


def in_virtual_time(work: Callable[[VirtualLoop], Awaitable[None]]) -> None:
    loop = VirtualLoop()
    try:
        loop.run_until_complete(work(loop))
    finally:
        loop.close()


class Origin:
    """Down from one moment to another; keeps the times of all tries."""

    def __init__(self, loop: VirtualLoop, down: tuple[float, float], seconds: float) -> None:
        self.loop, self.down, self.seconds = loop, down, seconds
        self.tries: dict[str, list[float]] = {}

    @property
    def is_down(self) -> bool:
        return self.down[0] <= self.loop.time() < self.down[1]

    async def read(self, key: str) -> str:
        self.tries.setdefault(key, []).append(self.loop.time())
        fails = self.is_down
        await asyncio.sleep(self.seconds)
        if fails:
            raise ConnectionError("the origin is down")
        return f"{key} at {self.loop.time():.0f}"


@pytest.mark.parametrize("stale_while_revalidate", [0.0, 30.0])
@pytest.mark.parametrize("refresh_ahead", [False, True, 0.5])
@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_an_origin_that_is_down_for_a_minute(
    processes: int, refresh_ahead: Any, stale_while_revalidate: float, seconds: float
) -> None:
    """Nobody who has a stale value sees an error, and each key is tried once in ``error_ttl``, by all processes together."""
    keys, error_ttl = ["a", "b", "c"], 2.0
    options: dict[str, Any] = {
        "ttl": 10, "stale_if_error": 600, "error_ttl": error_ttl, "refresh_ahead": refresh_ahead,
        "stale_while_revalidate": stale_while_revalidate,
    }  # fmt: skip
    errors: list[Exception] = []
    answers = 0

    async def fleet(loop: VirtualLoop) -> None:
        origin = Origin(loop, (15.0, 75.0), seconds)
        store = SimStore(loop.now) if processes > 1 else None
        members = [Process(loop, n, store) for n in range(processes)]

        async def caller(member: Process, key: str, offset: float) -> None:
            nonlocal answers
            await asyncio.sleep(offset)
            while loop.time() < 85:
                try:
                    assert (await member.cache.aget_or_set(key, partial(origin.read, key), **options))[
                        0
                    ] == key
                    answers += 1
                except ConnectionError as error:
                    errors.append(error)
                await asyncio.sleep(0.43)

        async with asyncio.TaskGroup() as group:
            for n, member in enumerate(members):
                for m, key in enumerate(keys):
                    for again in range(2):
                        group.create_task(caller(member, key, n * 0.001 * (again + m)))
        for member in members:
            await member.cache.aclose()
        for key, tries in origin.tries.items():
            failed = [at for at in tries if origin.down[0] <= at < origin.down[1]]
            gaps = [later - at for at, later in pairwise(failed)]
            assert gaps, f"{key} was never tried while the origin was down"
            assert min(gaps) >= error_ttl, f"{key}: {failed}"
            assert len(failed) <= 60 / (error_ttl + seconds) + 1
            assert max(tries) > 75, "it was asked again when it was back"

    in_virtual_time(fleet)
    assert errors == []
    assert answers > 1_000 * processes


# XFetch: "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015


@pytest.mark.parametrize(("processes", "rate", "lives"), [(1, 1_000, 3), (4, 1_000, 1)])
def test_nobody_waits_for_a_hot_key(processes: int, rate: int, lives: int) -> None:
    """1,000 callers a second on a key whose load takes a second: after the first load nobody waits, and few loads are made."""
    ttl = 60.0

    async def hot(loop: VirtualLoop) -> None:
        loads: list[float] = []
        latest = 0.0
        store = SimStore(loop.now) if processes > 1 else None
        members = [Process(loop, n, store) for n in range(processes)]

        async def load() -> int:
            loads.append(loop.time())
            await asyncio.sleep(1.0)
            return len(loads)

        async def caller(member: Process) -> None:
            nonlocal latest
            began = loop.time()
            await member.cache.aget_or_set("hot", load, ttl=ttl, jitter=0, refresh_ahead=True)
            latest = max(latest, loop.time() - began)

        await caller(members[0])
        assert (len(loads), latest) == (1, 1.0)
        latest, first = 0.0, loop.time()
        tasks: set[asyncio.Task[None]] = set()
        for n in range(int(rate * ttl * lives)):
            task = loop.create_task(caller(members[n % processes]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await asyncio.sleep(first + (n + 1) / rate - loop.time())
        await asyncio.gather(*tasks)
        assert latest == 0.0, "somebody waited"
        refreshes = len(loads) - 1
        assert lives <= refreshes <= 1.2 * lives + 1
        assert refreshes / lives <= 1.2 or lives == 1
        gaps = [later - at for at, later in pairwise(loads)]
        assert min(gaps) > 0.7 * ttl, "one refresh ahead is enough"
        for member in members:
            await member.cache.aclose()

    in_virtual_time(hot)


class Distant(SimTier):
    """A shared tier whose answers are 100 ms old when they arrive."""

    async def read(self, rt: Runtime, keys: Sequence[str], tags: Sequence[str] = ()) -> Any:
        answer = await super().read(rt, keys, tags)
        await asyncio.sleep(0.1)
        return answer


def test_a_refresh_that_comes_after_anothers_failure_leaves_the_origin_alone() -> None:
    """Both processes have seen the stale entry before one of them failed; the other must look again before it tries."""

    async def two(loop: VirtualLoop) -> None:
        origin, store = Origin(loop, (5.0, 100.0), 0.0), SimStore(loop.now)
        near = Process(loop, 1, store).cache
        far = Cache(Distant(store, "fleet"), namespace="fleet", clock=loop)
        far._aio = VirtualTasks(loop, seed=2)
        options: dict[str, Any] = {"ttl": 1, "stale_while_revalidate": 100, "error_ttl": 10}
        load = partial(origin.read, "k")
        await near.aget_or_set("k", load, **options)
        await asyncio.sleep(6)
        late = loop.create_task(far.aget_or_set("k", load, **options))
        await asyncio.sleep(0.05)
        assert await near.aget_or_set("k", load, **options) == "k at 0"
        assert await late == "k at 0"
        await asyncio.sleep(1)
        assert len(origin.tries["k"]) == 2, "the first load, and one try while it is down"
        await near.aclose()
        await far.aclose()

    in_virtual_time(two)
