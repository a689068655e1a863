"""Every combination of entry, loader and options, on both faces, in virtual time, against a model of what is promised."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cachewright import Cache, Retry
from cachewright.core.slot import Slot
from cachewright.runtime.base import drive
from cachewright.runtime.threads import ThreadRuntime
from cachewright.testing.sim.store import SimStore, SimTier
from cachewright.tiers.base import Tier
from tests.freshness.rows import (
    ARRIVALS,
    CANCELLED_AT,
    LOADERS,
    NEGATIVE,
    QUIET,
    STATES,
    Answer,
    Expected,
    Row,
    expected,
    rows,
)
from tests.freshness.virtual import EPOCH, Time, VirtualLoop, VirtualTasks, VirtualThreads

CHAINS = ("memory", "shared", "memory > shared", "shared > shared")
POLLS = 0.07  # who waits for another's lease looks every 50 ms, and a quarter of that later at most
ROWS = list(enumerate(rows()))


class Stop(BaseException):
    """What a signal handler raises in a caller."""


def make_cache(chain: str, clock: Any) -> Cache:
    def shared(name: str = "shared") -> SimTier:
        return SimTier(SimStore(clock.now), "table", name=name)

    chains: dict[str, list[str | Tier]] = {
        "memory": ["memory://"],
        "shared": [shared()],
        "memory > shared": ["memory://", shared()],
        "shared > shared": [shared(), shared("lower")],
    }
    return Cache(*chains[chain], namespace="table", clock=clock, local_ttl=10_000)


def options_of(row: Row) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if row.more and row.loader == "returns None":
        more["negative_ttl"] = NEGATIVE
    elif row.more:
        more["retries"] = Retry(1, wait=1e-9, max_wait=1e-9)
    return row.options | more


class Book:
    """What happens in a row; times count from the first caller."""

    def __init__(self, row: Row, clock: Any) -> None:
        self.row, self.clock = row, clock
        self.loads: list[float] = []
        self.answers: dict[int, Answer] = {}

    @property
    def at(self) -> float:
        return float(self.clock.now()) - EPOCH - self.row.age

    def begins(self) -> int:
        self.loads.append(self.at)
        return len(self.loads)

    def result(self, number: int) -> str | None:
        loader = LOADERS[self.row.loader]
        if loader.result == "error" or (loader.first_fails and number == 1):
            raise ConnectionError("the origin is down")
        return f"v{number}" if loader.result == "value" else None

    def caught(self, number: int, error: BaseException) -> None:
        stopped = isinstance(error, Stop | asyncio.CancelledError)
        self.answers[number] = ("cancelled" if stopped else type(error).__name__, self.at)

    def ended(self, cache: Cache) -> Expected:
        """All of it, and what the authority keeps in the end."""
        state = cache.engine.state
        assert not state.jobs(), "something still runs"
        assert not len(state.flights)
        standing, _ = drive(state.chain.authority.tier.read(ThreadRuntime(self.clock), ["k"]))
        slot = standing.get("k", Slot(b""))
        assert slot.lease is None
        entry = slot.entry
        kept = None
        if entry is not None:
            value = state.value_of("k", entry, None, "authority")
            kept = (value, entry.fresh_until / 1000 - EPOCH - self.row.age)
        return Expected([self.answers[n] for n in range(len(ARRIVALS))], self.loads, kept)


def by_threads(row: Row, chain: str, seed: int) -> Expected:
    time = Time()
    book = Book(row, time)
    cache, options = make_cache(chain, time), options_of(row)
    cache._threads = VirtualThreads(time, seed)
    if row.state != "absent":
        cache.set("k", "old", **options)

    def load() -> Any:
        number = book.begins()
        time.wait(LOADERS[row.loader].seconds)
        return book.result(number)

    def call(n: int) -> None:
        try:
            book.answers[n] = (cache.get_or_set("k", load, **options), book.at)
        except BaseException as error:
            book.caught(n, error)

    hands = [time.start(lambda n=n: call(n), row.age + at) for n, at in enumerate(ARRIVALS)]  # type: ignore[misc]
    if LOADERS[row.loader].cancelled:
        time.start(lambda: hands[0].throw(Stop()), row.age + CANCELLED_AT)
    time.run(row.age + QUIET)
    return book.ended(cache)


def by_tasks(row: Row, chain: str, seed: int) -> Expected:
    loop = VirtualLoop()
    book = Book(row, loop)
    cache, options = make_cache(chain, loop), options_of(row)
    cache._aio = VirtualTasks(loop, seed)

    async def load() -> Any:
        number = book.begins()
        await asyncio.sleep(LOADERS[row.loader].seconds)
        return book.result(number)

    async def call(n: int) -> None:
        await asyncio.sleep(row.age + ARRIVALS[n])
        try:
            book.answers[n] = (await cache.aget_or_set("k", load, **options), book.at)
        except BaseException as error:
            book.caught(n, error)

    async def all_of_them() -> Expected:
        if row.state != "absent":
            await cache.aset("k", "old", **options)
        tasks = [asyncio.create_task(call(n)) for n in range(len(ARRIVALS))]
        if LOADERS[row.loader].cancelled:
            loop.call_at(row.age + CANCELLED_AT, tasks[0].cancel)
        await asyncio.sleep(row.age + QUIET)
        return book.ended(cache)

    try:
        return loop.run_until_complete(all_of_them())
    finally:
        loop.close()


def agrees(found: Expected, promised: Expected) -> bool:
    """Times may be late by one look at another's lease, never early."""
    if [what for what, _ in found.answers] != [what for what, _ in promised.answers]:
        return False
    moments = [
        *zip([at for _, at in found.answers], [at for _, at in promised.answers], strict=True),
        *zip(found.loads, promised.loads, strict=len(found.loads) == len(promised.loads)),
    ]
    if len(found.loads) != len(promised.loads) or (found.kept is None) != (promised.kept is None):
        return False
    if found.kept is not None and promised.kept is not None:
        if found.kept[0] != promised.kept[0]:
            return False
        moments.append((found.kept[1], promised.kept[1]))
    return all(-0.002 <= there - here <= POLLS for there, here in moments)


def test_the_table_has_every_combination() -> None:
    assert len(ROWS) > 1_000
    assert {row.state for _, row in ROWS} == set(STATES)
    assert {row.loader for _, row in ROWS} == set(LOADERS)
    assert {what for _, row in ROWS for what, _ in expected(row).answers} >= {
        "old", "v1", "v2", None, "ConnectionError", "LoadTimeout", "cancelled",
    }  # fmt: skip


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("run", [by_threads, by_tasks], ids=["threads", "asyncio"])
def test_every_row(run: Callable[[Row, str, int], Expected], state: str) -> None:
    wrong = []
    for number, row in ROWS:
        if row.state != state:
            continue
        chain = CHAINS[(number + 2 * (run is by_tasks)) % len(CHAINS)]
        promised, found = expected(row), run(row, chain, number)
        if not agrees(found, promised):
            wrong.append(f"{number} on {chain}: {row}\n  promised {promised}\n  found    {found}")
    assert not wrong, f"{len(wrong)} rows; the first:\n" + "\n".join(wrong[:3])
