"""Who does a run: `run_once` by several processes' elections, on real tiers, by a clock that the tests move."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cachewright import Cache
from cachewright.errors import TierUnavailable
from cachewright.events import Event, RefreshFailed
from cachewright.options import merge
from cachewright.runtime.base import drive
from cachewright.runtime.threads import ThreadRuntime
from cachewright.schedule_election import Election, Ran, Turn, record_key, run_once
from cachewright.schedule_times import Every

EVERY = 10.0


class Hand:
    """A clock moved by hand, with an error of its own."""

    def __init__(self, start: float, error: float = 0.0) -> None:
        self.at, self.error = start, error

    def now(self) -> float:
        return self.at + self.error

    def monotonic(self) -> float:
        return self.at


class HandRuntime(ThreadRuntime):
    """Waiting moves the clock."""

    def __init__(self, clock: Hand) -> None:
        super().__init__(clock)
        self.clock = clock
        self.waits = 0
        self.while_waiting: Callable[[], None] = lambda: None

    async def sleep(self, seconds: float) -> None:
        self.clock.at += seconds

    async def wait(self, waiter: Any, timeout: float | None) -> bool:
        self.waits += 1
        assert self.waits < 1000, "waits for ever"
        self.clock.at += timeout or 0.0
        self.while_waiting()
        return bool(waiter.is_set())


class Process:
    """One process of a fleet that schedules the key ``rates``."""

    def __init__(self, cache: Cache, clock: Hand) -> None:
        self.cache = cache
        self.clock = clock
        self.rt = HandRuntime(self.clock)
        self.options = merge(cache.engine.options, {"ttl": None})
        self.election = self.make_election()
        self.loads = 0
        self.fails: Exception | None = None

    def make_election(self) -> Election:
        return Election(self.cache.engine, "rates", Every(EVERY, "rates"), 5.0)

    def load(self) -> str:
        self.loads += 1
        if self.fails is not None:
            raise self.fails
        return f"{id(self)} {self.loads}"

    def fire(self) -> Ran | None:
        engine = self.cache.engine
        return drive(run_once(engine, self.rt, self.election, "rates", self.load, self.options))

    def turn(self) -> Turn | float | None:
        return drive(self.election.turn(self.rt))


Fleet = Callable[..., list[Process]]


@pytest.fixture(params=["memory", "sqlite", "redis", "memcached", "levels"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path, namespace: str):
    """Make processes, all at the start of one interval. In memory there is but one: they share its cache and clock."""
    caches: list[Cache] = []

    def url(kind: str) -> str:
        return str(request.getfixturevalue(f"{kind}_server").url)

    def make_cache(clock: Hand) -> Cache:
        if request.param == "memory":
            return caches[0] if caches else Cache(namespace=namespace, clock=clock)
        urls = {
            "sqlite": lambda: [f"sqlite:///{tmp_path / 'cache.db'}"],
            "redis": lambda: [url("redis")],
            "memcached": lambda: [url("memcached")],
            "levels": lambda: [url("redis"), url("memcached")],
        }[request.param]()
        return Cache(*urls, namespace=namespace)

    def make(*errors: float) -> list[Process]:
        times = Every(EVERY, "rates")
        start = times.after(int(time.time() * 1e6)) / 1e6 + 0.2
        processes: list[Process] = []
        for error in errors:
            clock = processes[0].clock if request.param == "memory" and processes else Hand(start, error)
            caches.append(make_cache(clock))
            processes.append(Process(caches[-1], clock))
        return processes

    yield make
    for cache in caches:
        cache.close()


def forward(processes: list[Process], seconds: float = EVERY) -> None:
    latest = max(process.clock.at for process in processes)
    for process in processes:
        process.clock.at = latest + seconds


def test_each_interval_has_one_run_whoever_fires_first(fleet: Fleet):
    a, b, c = processes = fleet(0.0, 0.1, -0.1)
    for first, second, third in [(a, b, c), (c, a, b), (b, c, a), (a, c, b)]:
        ran = [process.fire() for process in (first, second, third)]
        assert [one.did for one in ran if one is not None] == [True, False, False]
        assert ran[0] is not None
        assert ran[0].error is None
        assert ran[1] is not None
        assert ran[1].at == pytest.approx(ran[0].at, abs=0.3)
        assert a.cache.get("rates") == f"{id(first)} {first.loads}"
        forward(processes)
    assert a.loads + b.loads + c.loads == 4


def test_firing_twice_in_an_interval_is_one_run(fleet: Fleet):
    (a,) = fleet(0.0)
    assert [ran.did for ran in (a.fire(), a.fire(), a.fire()) if ran] == [True, False, False]


def test_a_failed_run_keeps_the_value_and_is_not_repeated_in_its_interval(fleet: Fleet):
    a, b = processes = fleet(0.0, 0.0)
    a.fire()
    good = a.cache.get("rates")
    forward(processes)
    events: list[Event] = []
    a.cache.events.subscribe(events.append)
    a.fails = b.fails = OSError("origin down")
    failed = a.fire()
    assert failed is not None
    assert failed.did
    assert failed.error is a.fails
    assert [e.error for e in events if isinstance(e, RefreshFailed) and e.key == "rates"] == [a.fails]
    assert (ran := b.fire()) is not None
    assert not ran.did
    assert b.loads == 0
    assert a.cache.get("rates") == b.cache.get("rates") == good
    forward(processes)
    b.fails = None
    assert (ran := b.fire()) is not None
    assert ran.did
    assert ran.error is None
    assert b.cache.get("rates") == f"{id(b)} 1"


def test_a_leader_that_died_is_replaced_by_one_that_stands_by(fleet: Fleet):
    a, b = fleet(0.0, 0.0)
    turn = a.turn()
    assert isinstance(turn, Turn)
    began = b.clock.at
    ran = b.fire()
    assert ran is not None
    assert ran.did
    assert b.loads == 1
    assert 4.9 < b.clock.at - began < EVERY, "the lease's life, and before the interval is over"
    assert b.rt.waits < 10, "standing by is to cost little"
    # The dead one was only paused: what it writes down now counts for nothing.
    stood = drive(b.cache.engine.state.chain.authority.read(b.rt, [record_key("rates")]))
    drive(a.election.finish(a.rt, turn))
    assert drive(b.cache.engine.state.chain.authority.read(b.rt, [record_key("rates")])) == stood


def test_a_leader_that_lives_is_waited_for_however_long_it_takes(fleet: Fleet):
    a, b = fleet(0.0, 0.0)
    turn = a.turn()
    assert isinstance(turn, Turn)
    assert turn.held is not None
    held = turn.held
    rounds = 0

    def beat() -> None:
        nonlocal rounds
        rounds += 1
        a.clock.at = b.clock.at
        if rounds < 6:  # 6 to 9 seconds: longer than the lease, within the interval
            assert drive(held._renew(a.rt))
        else:
            drive(a.election.finish(a.rt, turn))

    b.rt.while_waiting = beat
    ran = b.fire()
    assert ran is not None
    assert not ran.did
    assert b.loads == 0


def test_one_that_is_stopped_stops_standing_by(fleet: Fleet):
    a, b = fleet(0.0, 0.0)
    assert isinstance(a.turn(), Turn)
    b.rt.while_waiting = b.election.stop
    assert b.fire() is None
    assert b.rt.waits == 1


def test_a_clock_that_is_wrong_by_hours_stops_nobody(fleet: Fleet):
    a, b, c = processes = fleet(7200.0, 0.0, 0.0)
    assert (ran := a.fire()) is not None
    assert ran.did
    did = {id(p): 0 for p in processes}
    for _ in range(6):  # with the wrong one alive: one run in each interval all the same
        forward(processes)
        for process in processes:
            ran = process.fire()
            did[id(process)] += ran is not None and ran.did
    assert sum(did.values()) == 6
    for late in (False, True):  # dead: the others lose an interval at most
        forward(processes)
        ran_now = [ran.did for process in (b, c) if (ran := process.fire()) is not None]
        if late:
            assert ran_now.count(True) == 1


def test_a_clock_set_back_by_an_hour_does_not_stop_the_runs(fleet: Fleet):
    a, b = processes = fleet(0.0, 0.0)
    a.fire()
    b.fire()
    a.clock.error = b.clock.error = -3600.0
    for _ in range(3):
        forward(processes)
        assert [ran.did for process in processes if (ran := process.fire()) is not None] == [True, False]


def test_a_write_during_the_run_wins(fleet: Fleet):
    a, b = fleet(0.0, 0.0)

    def load() -> str:
        b.cache.set("rates", "written")
        return "old"

    a.load = load  # type: ignore[method-assign]
    assert (ran := a.fire()) is not None
    assert ran.did
    assert a.cache.get("rates") == "written"


def test_damage_in_the_records_place_costs_a_run_and_no_more(fleet: Fleet):
    a, b = fleet(0.0, 0.0)
    # No user's key can get there (`check_key`); other bytes can.
    drive(a.cache.engine.set_many(a.rt, {record_key("rates"): "somebody's own"}, a.cache.engine.options))
    assert [ran.did for process in (a, b) if (ran := process.fire()) is not None] == [True, False]


def test_a_record_outlives_the_next_run(fleet: Fleet):
    a, _b = fleet(0.0, 0.0)
    a.fire()
    standing, _ = drive(a.cache.engine.state.chain.authority.read(a.rt, [record_key("rates")]))
    entry = standing[record_key("rates")].entry
    assert entry is not None
    assert 2 * EVERY <= (entry.ends - entry.born) / 1000 <= 2 * EVERY + 60


def test_a_cancelled_run_is_taken_up_by_another_at_once(namespace: str, tmp_path: Path):
    async def main() -> None:
        async with Cache(f"sqlite:///{tmp_path / 'cache.db'}", namespace=namespace) as cache:
            rt, options = cache._aio, merge(cache.engine.options, {"ttl": None})
            times = Every(3600.0, "rates")
            one, two = (Election(cache.engine, "rates", times, 60.0) for _ in range(2))
            begun = asyncio.Event()

            async def hang() -> None:
                begun.set()
                await asyncio.Event().wait()

            async def quick() -> str:
                return "fresh"

            task = asyncio.create_task(run_once(cache.engine, rt, one, "rates", hang, options))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with asyncio.timeout(20):  # a lease left standing would take 60 s
                ran = await run_once(cache.engine, rt, two, "rates", quick, options)
            assert ran is not None
            assert ran.did
            assert await cache.aget("rates") == "fresh"

    asyncio.run(main())


def test_an_unreachable_authority_is_a_failed_run_and_loads_nothing(
    own_redis: Callable[..., Any], namespace: str
):
    server = own_redis()
    with Cache(server.url, namespace=namespace) as cache:
        process = Process(cache, Hand(time.time()))
        process.fire()
        server.stop()
        process.clock.at += EVERY
        events: list[Event] = []
        cache.events.subscribe(events.append)
        ran = process.fire()
        assert ran is not None
        assert isinstance(ran.error, TierUnavailable)
        assert process.loads == 1
        assert [e.key for e in events if isinstance(e, RefreshFailed)] == ["rates"]


def test_an_interval_of_a_timedelta_is_the_same_as_of_seconds(namespace: str):
    with Cache(namespace=namespace) as cache:
        one = cache.refresh_every(timedelta(minutes=1), "a", lambda: 1, now=False)
        two = cache.refresh_every(60, "a", lambda: 1, now=False)
        assert one.next_run == two.next_run
