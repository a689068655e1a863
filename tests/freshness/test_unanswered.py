"""A tier that does not answer for a moment: what was sent to it meanwhile forbids nothing for long and brings nothing back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from cachewright import Cache
from cachewright.core.breaker import MAX_MISSED, Level
from cachewright.errors import TierUnavailable
from cachewright.events import Hub
from cachewright.integrations.lease_lock import LeaseLock
from cachewright.runtime.base import Runtime, drive
from cachewright.runtime.process import wait_until
from cachewright.runtime.threads import THREADS
from cachewright.testing.sim.store import SimStore, SimTier
from cachewright.tiers.base import Swap, Swapped
from tests.freshness.virtual import VirtualLoop, VirtualTasks
from tests.slots import slot as stored


class Shaky(SimTier):
    """A tier whose answers can be lost.

    Attributes:
        away: nothing gets through.
        lose: the answer to the next swap is lost, after it took effect.
        drops: it can be told what to drop.
    """

    away = lose = False
    sharded = False
    drops = True

    async def swap(self, rt: Runtime, swaps: Sequence[Swap]) -> list[Swapped]:
        self.answers()
        done = await super().swap(rt, swaps)
        if self.lose:
            self.lose = False
            raise TierUnavailable(self.name, "its answer was lost")
        return done

    async def read(self, rt: Runtime, keys: Sequence[str], tags: Sequence[str] = ()) -> Any:
        self.answers()
        return await super().read(rt, keys, tags)

    async def drop(self, rt: Runtime, keys: Sequence[str]) -> list[bool]:
        self.answers()
        if not self.drops:
            raise TierUnavailable(self.name, "one of its nodes stands still")
        return await super().drop(rt, keys)

    def answers(self) -> None:
        if self.away:
            raise TierUnavailable(self.name, "it stands still")


Work = Callable[[VirtualLoop, Cache, Cache, Shaky], Awaitable[None]]


def two_processes(work: Work, **options: Any) -> None:
    """Runs ``work`` in virtual time: a cache over a shaky tier, another one that always reaches the same store."""
    loop = VirtualLoop()
    store = SimStore(loop.now)

    def cache(tier: SimTier) -> Cache:
        made = Cache(tier, clock=loop, jitter=0, ttl=600, **options)
        made._aio = VirtualTasks(loop, 1)
        return made

    async def run() -> None:
        shaky = Shaky(store, "n", name="shaky")
        mine, other = cache(shaky), cache(SimTier(store, "n", name="other"))
        await work(loop, mine, other, shaky)
        await mine.aclose()
        await other.aclose()

    try:
        loop.run_until_complete(run())
    finally:
        loop.close()


class Origin:
    """One value, and how often it was loaded."""

    def __init__(self) -> None:
        self.value, self.loads = "old", 0
        self.error: Exception | None = None

    async def load(self, id: str) -> str:
        self.loads += 1
        return self.value

    async def save(self, id: str, value: str) -> None:
        if self.error is not None:
            raise self.error
        self.value = value


@pytest.mark.parametrize("on_outage", ["serve", "raise"])
@pytest.mark.parametrize("lost", ["placing", "commit", "cancelled"])
def test_an_intent_that_nobody_holds_is_taken_out(lost: str, on_outage: str) -> None:
    async def work(loop: VirtualLoop, mine: Cache, other: Cache, shaky: Shaky) -> None:
        origin = Origin()
        users = mine.repository("r", load=origin.load, save=origin.save)
        elsewhere = other.repository("r", load=origin.load, save=origin.save)

        async def save(id: str, value: str) -> None:
            origin.value = value
            shaky.away = True

        if lost == "commit":
            users = mine.repository("c", load=origin.load, save=save)
            elsewhere = other.repository("c", load=origin.load, save=save)
        elif lost == "placing":
            shaky.lose = True
        else:
            await cancel_while_placing(users.aput("k", "new"), shaky)
        if lost != "cancelled":
            with contextlib.suppress(TierUnavailable):
                await users.aput("k", "new")
        await asyncio.sleep(1)
        shaky.away = False
        await asyncio.sleep(2)
        origin.loads = 0
        for _ in range(3):
            assert await elsewhere.aget("k") == origin.value
        assert origin.loads <= 1, "an intent that nobody holds forbids storing"

    two_processes(work, on_outage=on_outage)


def test_intents_that_were_confirmed_before_another_failed_are_taken_out() -> None:
    async def work(loop: VirtualLoop, mine: Cache, other: Cache, shaky: Shaky) -> None:
        real, swaps, origin = shaky.swap, 0, Origin()

        async def save_many(values: dict[str, str]) -> None:
            raise AssertionError("it was refused before")

        async def swap(rt: Runtime, wanted: Sequence[Swap]) -> list[Swapped]:
            nonlocal swaps
            swaps += 1
            if swaps == 1:
                await other.aset("r:b", "1")  # what was read of it no longer stands
            if swaps == 2:
                raise TierUnavailable(shaky.name, "it stands still")
            return await real(rt, wanted)

        patched: Any = shaky
        patched.swap = swap
        users = mine.repository("r", load=origin.load, save_many=save_many)
        with pytest.raises(TierUnavailable):
            await users.aput_many({"a": "1", "b": "1"})
        await asyncio.sleep(2)
        assert not await intents(other, "r:a", "r:b")

    two_processes(work, on_outage="raise")


def test_an_intent_whose_key_its_node_has_yet_to_drop_is_not_taken_for_absent() -> None:
    async def work(loop: VirtualLoop, mine: Cache, other: Cache, shaky: Shaky) -> None:
        origin = Origin()
        users = mine.repository("r", load=origin.load, save=origin.save)
        shaky.sharded = shaky.lose = True
        shaky.drops = False
        await users.aput("k", "new")
        for _ in range(20):
            await asyncio.sleep(0.1)
            await mine.aget("another")
        assert await intents(other, "r:k")
        shaky.drops = True
        await asyncio.sleep(2)
        assert not await intents(other, "r:k")

    two_processes(work)


async def intents(cache: Cache, *keys: str) -> list[str]:
    """Those of the keys that have one."""
    found = (await cache.engine.state.chain.authority.read(cache._aio, keys))[0]
    return [key for key, slot in found.items() if slot.intents]


async def cancel_while_placing(put: Any, shaky: Shaky) -> None:
    real, placed, patched = shaky.swap, asyncio.Event(), shaky

    async def swap(rt: Runtime, swaps: Sequence[Swap]) -> list[Swapped]:
        await real(rt, swaps)
        placed.set()
        await asyncio.sleep(3600)
        raise AssertionError

    patched.swap = swap  # type: ignore[method-assign]
    caller = asyncio.create_task(put)
    await placed.wait()
    patched.swap = real  # type: ignore[method-assign]
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


@pytest.mark.parametrize("away", [1.5, 20.0])
def test_a_save_of_unknown_outcome_forbids_storing_over_an_outage_too(away: float) -> None:
    async def work(loop: VirtualLoop, mine: Cache, other: Cache, shaky: Shaky) -> None:
        origin = Origin()
        origin.error = OSError("lost")
        users = mine.repository("r", load=origin.load, save=origin.save)
        elsewhere = other.repository("r", load=origin.load, save=origin.save)
        shaky.away = True
        with pytest.raises(OSError, match="lost"):
            await users.aput("k", "new")
        began = loop.time()
        while loop.time() < began + 30:
            await asyncio.sleep(0.5)
            if loop.time() >= began + away:
                shaky.away = False
            if loop.time() >= began + 2.5:
                origin.value = "new"  # the save lands
            await elsewhere.aget("k")
        assert await elsewhere.aget("k") == "new", "what was stored meanwhile stays for its whole life"

    two_processes(work)


def test_add_never_sends_an_entry_that_could_land_late() -> None:
    async def work(loop: VirtualLoop, mine: Cache, other: Cache, shaky: Shaky) -> None:
        sent: list[Swap] = []
        real = shaky.swap

        async def swap(rt: Runtime, swaps: Sequence[Swap]) -> list[Swapped]:
            sent.extend(swaps)
            return await real(rt, swaps)

        shaky.swap = swap  # type: ignore[method-assign]
        assert await mine.aadd("k", 1)
        assert not await mine.aadd("k", 2)
        await other.adelete("k")
        shaky.lose = True
        with pytest.raises(TierUnavailable):
            await mine.aadd("k", 3)
        await asyncio.sleep(2)
        assert await other.aget_or_set("k", lambda: 4) == 4
        late = [one for one in sent if one.expected is None and one.new is not None and one.new.entry]
        assert late == [], "after a set and a delete it would find what it expects"

    two_processes(work)


def test_who_asked_after_a_change_is_not_answered_from_before_it() -> None:
    """Of a tier of many nodes: another node is slow, and the change gets through while the old answer is on the way."""

    class Slow(Shaky):
        sharded = True

        async def read(self, rt: Runtime, keys: Sequence[str], tags: Sequence[str] = ()) -> Any:
            answer = await super().read(rt, keys, tags)
            level._missed_keys.clear()  # a replay elsewhere got through
            level._missed_tags.clear()
            return answer

    store = SimStore(THREADS.now)
    store.store("n:k", stored(), None)
    store.set_generation("n:t", b"old-mark", only_missing=False)
    level = Level(Slow(store, "n"), Hub())
    level._next_replay = THREADS.monotonic() + 60
    level._missed_keys["k"] = level._missed_tags["t"] = 1
    assert drive(level.read(THREADS, ("k",), ("t",))) == ({}, {})
    slots, generations = drive(level.read(THREADS, ("k",), ("t",)))
    assert set(slots) == {"k"}
    assert generations["t"].mark == b"old-mark"


@pytest.mark.parametrize("behind", [False, True], ids=["in step", "behind"])
def test_what_a_tier_has_not_heard_of_when_it_answers_counts_as_absent(behind: bool) -> None:
    class Overtaken(Shaky):
        sharded = True

        async def read(self, rt: Runtime, keys: Sequence[str], tags: Sequence[str] = ()) -> Any:
            answer = await super().read(rt, keys, tags)
            level._missed_keys["k"] = level._missed_tags["t"] = 2  # a change that did not get through
            return answer

    store = SimStore(THREADS.now)
    for key in ("n:k", "n:other"):
        store.store(key, stored(), None)
    store.set_generation("n:t", b"old-mark", only_missing=False)
    level = Level(Overtaken(store, "n"), Hub())
    level._next_replay = THREADS.monotonic() + 60
    if behind:
        level._missed_keys["another"] = 1
    slots, generations = drive(level.read(THREADS, ("k", "other"), ("t",)))
    assert set(slots) == {"other"}
    assert generations == {}


def test_no_caller_clears_a_namespace() -> None:
    class Counting(Shaky):
        scannable = True
        cleared: list[str]

        async def clear(self, rt: Runtime) -> None:
            import threading

            self.cleared.append(threading.current_thread().name)

    tier = Counting(SimStore(THREADS.now), "n", name="counting")
    tier.cleared = []
    with Cache(tier) as cache:
        level = cache.engine.state.chain.authority
        level.missed(THREADS, [str(number) for number in range(MAX_MISSED + 1)])
        assert cache.get("k") is None
        assert tier.cleared == []
        assert wait_until(lambda: not level.behind, 20)
        assert [name.partition("-")[2].rpartition("-")[0] for name in tier.cleared] == ["worker"]


def test_a_replay_on_a_loop_that_stands_still_keeps_no_other_from_starting() -> None:
    tier = Shaky(SimStore(THREADS.now), "n", name="shaky")
    with Cache(tier) as cache:
        level = cache.engine.state.chain.authority
        tier.away = True
        loop = asyncio.new_event_loop()
        loop.run_until_complete(cache.adelete("a"))
        cache.delete("b")
        tier.away = False
        assert wait_until(lambda: not level.behind, 20)
        loop.close()


def test_a_replay_that_a_stopped_loop_was_at_is_done_by_others() -> None:
    tier = Shaky(SimStore(THREADS.now), "n", name="shaky")
    with Cache(tier) as cache, contextlib.closing(asyncio.new_event_loop()) as loop:
        level, real = cache.engine.state.chain.authority, tier.drop
        level.missed(THREADS, ("a",))

        async def drop(rt: Runtime, keys: Sequence[str]) -> list[bool]:
            await asyncio.sleep(3600)
            raise AssertionError

        tier.drop = drop  # type: ignore[method-assign]
        caller = loop.create_task(cache.aget("k"))
        loop.run_until_complete(asyncio.sleep(0.01))
        tier.drop = real  # type: ignore[method-assign]
        assert cache.get_or_set("a", lambda: 1) == 1
        assert not level.behind
        assert cache.get("a") == 1
        caller.cancel()
        loop.run_until_complete(asyncio.gather(caller, return_exceptions=True))


@pytest.mark.parametrize("lost", ["taking", "release"])
def test_a_lock_whose_answer_was_lost_is_free_for_others(lost: str) -> None:
    store = SimStore(THREADS.now)
    tier = Shaky(store, "n", name="shaky")
    with Cache(tier, lease=60) as cache, Cache(SimTier(store, "n"), lease=60) as other:
        lock, elsewhere = LeaseLock(cache, "l"), LeaseLock(other, "l")
        tier.lose = lost == "taking"
        assert lock.acquire()
        if lost == "release":
            tier.away = True
            lock.release()
            tier.away = False
        assert wait_until(lambda: elsewhere.acquire(wait=False), 20)
        elsewhere.release()


def test_one_orphan_whose_node_is_away_keeps_no_other_from_being_given_back() -> None:
    given: list[str] = []

    async def work(loop: VirtualLoop, mine: Cache, other: Cache, shaky: Shaky) -> None:
        async def give(name: str, answers: bool) -> bool:
            given.append(name)
            return answers

        orphans, rt = mine.engine.state.orphans, mine._aio
        orphans.add(rt, b"a", 5, lambda rt: give("a", False))
        orphans.add(rt, b"b", 5, lambda rt: give("b", True))
        await asyncio.sleep(0.7)
        assert given == ["a", "b"]
        await asyncio.sleep(10)
        assert 3 < given.count("a") < 15
        assert given.count("b") == 1
        jobs = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert jobs == [], "its life is over"

    two_processes(work)
