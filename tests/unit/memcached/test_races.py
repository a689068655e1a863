"""Many at once on one slot in Memcached: one winner, nothing lost, both faces side by side."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from cachewright.core.slot import Intent, Slot
from cachewright.runtime.aio import AIO
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS
from cachewright.tiers.base import Swap, Swapped
from cachewright.tiers.memcached import MemcachedTier
from tests.slots import ID, now_ms, slot

# ------------------------------------------------------------------------------------------------- races


def test_one_winner_of_eight_threads(tier: MemcachedTier, together):
    for _ in range(20):
        start = threading.Barrier(8)
        done: list[tuple[Swapped, Slot]] = []
        seen: dict[str, Slot] = {}

        def contend(start=start, done=done, seen=seen):
            mine = slot()
            expected = seen.get("a")
            start.wait()
            done.append((drive(tier.swap(THREADS, [Swap("a", expected, mine)]))[0], mine))

        for round_ in range(2):  # from absent, then from what stands
            done.clear()
            if round_:
                seen.update(drive(tier.read(THREADS, ["a"]))[0])
            together(8, contend)
            winners = [mine for result, mine in done if result.done]
            assert len(winners) == 1
            standing = drive(tier.read(THREADS, ["a"]))[0]["a"]
            assert standing.header == winners[0].header
        drive(tier.drop(THREADS, ["a"]))


def test_no_intent_is_lost_among_drops_stores_and_writers(tier: MemcachedTier, together):
    """Eight threads add an intent each by swap while others drop and store: at the end all eight stand."""
    added: list[bytes] = []
    start, over = threading.Barrier(10), threading.Event()
    left = threading.Semaphore(0)

    def write() -> None:
        mine = Intent(ID(), now_ms() + 30_000)
        start.wait()
        expected = None
        while True:
            others = expected.intents if expected else ()
            new = Slot(ID(), intents=(*others, mine), contended=bool(others))
            result = drive(tier.swap(THREADS, [Swap("a", expected, new)]))[0]
            if result.done:
                added.append(mine.id)
                left.release()
                return
            expected = result.current

    def disturb(operation: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        start.wait()
        while not over.is_set():
            drive(operation())

    def end() -> None:
        for _ in range(8):
            assert left.acquire(timeout=20)
        over.set()

    work = iter(
        [write] * 8
        + [
            lambda: disturb(lambda: tier.drop(THREADS, ["a"])),
            lambda: disturb(lambda: tier.store(THREADS, {"a": slot()})),
        ]
        + [end]
    )
    lock = threading.Lock()

    def one() -> None:
        with lock:
            mine = next(work)
        mine()

    together(11, one)
    standing = drive(tier.read(THREADS, ["a"]))[0]["a"]
    assert {i.id for i in standing.intents} == set(added)
    assert len(added) == 8
    assert standing.entry is None


def test_both_faces_at_once(tier: MemcachedTier, together):
    count = 40

    async def amain(tag: int) -> None:
        async def one(n: int) -> None:
            key = f"{tag}:{n}"
            await tier.store(AIO, {key: slot(key.encode())})
            got = (await tier.read(AIO, [key, "absent"]))[0]
            assert got[key].payload == key.encode()
            assert got.keys() == {key}

        await asyncio.gather(*(one(n) for n in range(count)))

    def sync(tag: int) -> None:
        for n in range(count):
            key = f"{tag}:{n}"
            drive(tier.store(THREADS, {key: slot(key.encode())}))
            assert drive(tier.read(THREADS, [key]))[0][key].payload == key.encode()

    work = iter(
        [lambda: asyncio.run(amain(1)), lambda: asyncio.run(amain(2)), lambda: sync(3), lambda: sync(4)]
    )
    together(4, lambda: next(work)())
