"""Handles and schedulers, with the real APScheduler."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import NullPool, create_engine

from cachewright import Cache
from cachewright.errors import ConfigurationError, InvalidKeyError, MissingExtraError
from cachewright.events import BackgroundFailed, Event, RefreshFailed
from cachewright.runtime.threads import ThreadRuntime
from cachewright.schedule import LONGEST_SPREAD, Refresh
from cachewright.schedule_apscheduler import ALIAS, LONGEST_NAP, TimesTrigger, add_job, make_scheduler, shut
from cachewright.schedule_times import Every, share_of
from cachewright.testing.servers import RedisServer


@pytest.fixture
def cache(namespace: str) -> Iterator[Cache]:
    with Cache(namespace=namespace) as made:
        yield made


def until(true: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


async def auntil(true: Callable[[], Any], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)


def schedulers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "APScheduler"]


class Still:
    """A clock that stands."""

    def __init__(self, at: float) -> None:
        self.at = at

    def now(self) -> float:
        return self.at

    monotonic = now


class Numbers:
    """A loader that counts."""

    def __init__(self) -> None:
        self.loads = 0

    def __call__(self) -> int:
        self.loads += 1
        return self.loads


# The schedule


def test_the_first_run_is_at_once_and_the_entry_never_expires(cache: Cache):
    refresh = cache.refresh_every(3600, "rates", Numbers())
    until(lambda: cache.get("rates") == 1)
    (tier,) = cache.inspect("rates").tiers
    assert tier.state == "fresh"
    assert tier.fresh_for is None
    until(lambda: not refresh.running)
    assert (refresh.runs, refresh.failures, refresh.skipped, refresh.last_error) == (1, 0, 0, None)
    assert refresh.last_run is not None
    assert refresh.next_run is not None
    assert timedelta(0) < refresh.next_run - datetime.now(UTC) <= timedelta(hours=1)


def test_a_ttl_that_is_given_holds(cache: Cache):
    cache.refresh_every(3600, "rates", Numbers(), ttl=30, jitter=0)
    until(lambda: cache.get("rates") == 1)
    (tier,) = cache.inspect("rates").tiers
    assert tier.fresh_for is not None
    assert 25 < tier.fresh_for <= 30


def test_it_runs_every_so_often(cache: Cache):
    numbers = Numbers()
    refresh = cache.refresh_every(0.1, "rates", numbers)
    until(lambda: numbers.loads >= 4)
    assert refresh.runs >= 3
    assert cache.get("rates") >= 3


def test_without_now_the_first_run_is_when_it_is_due(cache: Cache):
    refresh = cache.refresh_every(3600, "rates", Numbers(), now=False)
    assert not refresh.running
    assert refresh.runs == 0
    assert cache.get("rates") is None


def test_a_second_schedule_of_the_key_does_not_run_it_twice(cache: Cache):
    numbers = Numbers()
    one = cache.refresh_every(3600, "rates", numbers)
    until(lambda: one.runs == 1)
    two = cache.refresh_every(3600, "rates", numbers)
    until(lambda: two.skipped == 1)
    assert numbers.loads == 1
    assert two.last_run is not None


def test_firings_during_a_run_become_one(cache: Cache):
    go, numbers = threading.Event(), Numbers()

    def load() -> int:
        number = numbers()
        assert go.wait(20)
        return number

    refresh = cache.refresh_every(None, "rates", load, cron="0 0 1 1 *")
    until(lambda: numbers.loads == 1)
    for _ in range(5):
        refresh.fire()
    go.set()
    until(lambda: not refresh.running)
    assert (refresh.runs, refresh.skipped) == (1, 1)


def test_a_failure_is_told_and_the_value_stays(cache: Cache):
    events: list[Event] = []
    cache.events.subscribe(events.append)
    fail = threading.Event()

    def load() -> str:
        if fail.is_set():
            raise OSError("origin down")
        return "good"

    refresh = cache.refresh_every(0.1, "rates", load)
    until(lambda: cache.get("rates") == "good")
    fail.set()
    until(lambda: refresh.failures >= 2)
    assert cache.get("rates") == "good"
    assert isinstance(refresh.last_error, OSError)
    assert any(isinstance(event, RefreshFailed) and event.key == "rates" for event in events)
    fail.clear()
    until(lambda: refresh.last_error is None)
    assert refresh.failures < refresh.runs


def test_a_crontab_may_stand_in_the_intervals_place(cache: Cache):
    named = cache.refresh_every(None, "a", int, cron="0 6 * * *", timezone="Europe/Oslo", now=False)
    short = cache.refresh_every("0 6 * * *", "b", int, timezone="Europe/Oslo", now=False)
    assert named.next_run == short.next_run is not None


def test_inspect_tells_of_failing_runs_also_where_nothing_is_scheduled(
    redis_server: RedisServer, namespace: str
):
    fail = threading.Event()
    fail.set()

    def load() -> str:
        if fail.is_set():
            raise OSError("origin down at https://user:secret@origin/")
        return "good"

    with (
        Cache(redis_server.url, namespace=namespace) as runs,
        Cache(redis_server.url, namespace=namespace) as other,
    ):
        assert other.inspect("rates").refresh is None
        refresh = runs.refresh_every(0.1, "rates", load)
        until(lambda: refresh.failures >= 3)
        view = other.inspect("rates").refresh
        assert view is not None
        assert view.failures >= 2
        assert view.age is not None
        assert view.error is not None
        assert view.error.startswith("OSError: origin down")
        assert "secret" not in view.error
        fail.clear()

        def well() -> bool:
            view = other.inspect("rates").refresh
            return (
                view is not None and (view.failures, view.error) == (0, None) and other.get("rates") == "good"
            )

        until(well)


def test_inspect_tells_of_a_run_under_way(cache: Cache):
    go = threading.Event()
    refresh = cache.refresh_every(3600, "rates", lambda: go.wait(20))
    until(lambda: (view := cache.inspect("rates").refresh) is not None and view.running)
    go.set()
    until(lambda: not refresh.running)
    view = cache.inspect("rates").refresh
    assert view is not None
    assert not view.running


def test_a_spread_run_begins_after_it_is_due_at_a_moment_that_all_processes_know(cache: Cache):
    refresh = cache.refresh_every(3600, "rates", Numbers(), now=False, spread=3000)
    due = refresh._election.times.latest(int(time.time() * 1e6))
    share = share_of(f"{cache.namespace}:rates", due)
    assert 0 <= share < 1
    assert share == share_of(f"{cache.namespace}:rates", due) != share_of(f"{cache.namespace}:rates", due + 1)
    rt = ThreadRuntime(Still(due / 1e6 + 0.001))
    assert share * 3000 - 0.1 <= refresh._pause(rt) <= share * 3000 + LONGEST_SPREAD
    late = ThreadRuntime(Still(due / 1e6 + 3100))
    assert refresh._pause(late) <= LONGEST_SPREAD, "it was due long ago"


def test_cancel_ends_the_pause_before_a_spread_run(cache: Cache):
    numbers = Numbers()
    refresh = cache.refresh_every("* * * * *", "rates", numbers, now=False, spread=10**6)
    refresh.fire()
    assert refresh.running
    refresh.cancel()
    until(lambda: not refresh.running)
    assert numbers.loads == 0


# The handle


def test_pause_and_resume(cache: Cache):
    numbers = Numbers()
    refresh = cache.refresh_every(0.1, "rates", numbers)
    until(lambda: numbers.loads >= 2)
    refresh.pause()
    paused = refresh.next_run
    assert paused is None
    until(lambda: not refresh.running)
    refresh.resume()
    assert refresh.next_run is not None
    before = numbers.loads
    until(lambda: numbers.loads > before)


def test_run_now(cache: Cache):
    refresh = cache.refresh_every(3600, "rates", Numbers(), now=False)
    assert refresh.run_now() == 1
    assert refresh.run_now() == 2 == cache.get("rates")
    assert refresh.runs == 2
    assert asyncio.run(refresh.arun_now()) == 3


def test_run_now_raises_what_the_loader_raised(cache: Cache):
    error = OSError("origin down")

    def load() -> int:
        raise error

    refresh = cache.refresh_every(3600, "rates", load, now=False)
    with pytest.raises(OSError, match="origin down"):
        refresh.run_now()
    assert refresh.last_error is error
    assert refresh.failures == 1
    assert cache.stats()["events"]["RefreshFailed"] == 1


def test_cancel_ends_it(cache: Cache):
    refresh = cache.refresh_every(3600, "rates", Numbers())
    until(lambda: refresh.runs == 1)
    refresh.cancel()
    refresh.cancel()
    assert refresh.next_run is None
    assert cache.get("rates") == 1, "the entry stays"
    with pytest.raises(ConfigurationError, match="was cancelled"):
        refresh.resume()


# What cannot work


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((None, "a", int), {}, "neither"),
        ((5, "a", int), {"cron": "* * * * *"}, "both"),
        (("* * * * *", "a", int), {"cron": "* * * * *"}, "both"),
        (("every day", "a", int), {}, "five fields"),
        ((5, "a", int), {"spread": 5}, "less than the interval"),
        ((5, "a", int), {"spread": -1}, "spread=-1"),
        ((0, "a", int), {}, "every=0"),
        ((0.001, "a", int), {}, "at least 0.05"),
        ((None, "a", int), {"cron": "every day"}, "five fields"),
        ((5, "a", int), {"scheduler": object()}, "APScheduler 3"),
        ((5, "a", int), {"tttl": 5}, "ttl"),
    ],
)
def test_wrong_arguments_are_named(cache: Cache, arguments: Any, options: Any, message: str):
    with pytest.raises(ConfigurationError, match=message):
        cache.refresh_every(*arguments, **options)
    assert not schedulers(), "nothing was started"


def test_a_wrong_key_is_refused(cache: Cache):
    with pytest.raises(InvalidKeyError):
        cache.refresh_every(5, "", int)


def test_an_async_loader_wants_the_other_face(cache: Cache):
    async def load() -> int:
        return 1

    with pytest.raises(ConfigurationError, match="arefresh_every"):
        cache.refresh_every(5, "rates", load)


def test_without_apscheduler_the_extra_is_named(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "apscheduler"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "cachewright.schedule_apscheduler")
    for options in ({"every": 5}, {"every": None, "cron": "* * * * *"}):
        with pytest.raises(MissingExtraError, match=r'pip install "cachewright\[scheduler\]"'):
            cache.refresh_every(key="a", loader=int, **options)


# The end


def test_close_ends_the_scheduler_and_waits_for_the_run(namespace: str):
    cache, begun, ended = Cache(namespace=namespace), threading.Event(), threading.Event()

    def load() -> int:
        begun.set()
        assert not ended.wait(0.1)
        ended.set()
        return 1

    refresh = cache.refresh_every(3600, "rates", load)
    assert begun.wait(20)
    assert len(schedulers()) == 1
    cache.close()
    assert ended.is_set()
    assert not refresh.running
    assert refresh.runs == 1
    assert not schedulers()
    assert refresh.next_run is None


def test_close_does_not_wait_for_ever(namespace: str):
    cache, go, begun = Cache(namespace=namespace), threading.Event(), threading.Event()
    events: list[Event] = []
    cache.events.subscribe(events.append)

    def hang() -> None:
        begun.set()
        go.wait(30)

    refresh = cache.refresh_every(3600, "rates", hang)
    assert begun.wait(20)
    cache.close(timeout=0.05)
    assert [e.where for e in events if isinstance(e, BackgroundFailed)] == ["refresh of rates"]
    go.set()
    until(lambda: not refresh.running)


def test_a_loader_that_closes_the_cache_does_not_wait_for_itself(namespace: str):
    cache, closed = Cache(namespace=namespace), threading.Event()

    def load() -> None:
        cache.close(timeout=600)
        closed.set()

    refresh = cache.refresh_every(3600, "rates", load)
    assert closed.wait(20)
    until(lambda: not refresh.running)
    assert refresh.cancelled


def test_on_a_loop_a_plain_loader_that_closes_the_cache_does_not_wait_for_itself(namespace: str):
    async def main() -> None:
        cache, closed = Cache(namespace=namespace), threading.Event()

        def load() -> None:
            cache.close(timeout=600)  # in a worker thread, for which the loop's task waits
            closed.set()

        refresh = await cache.arefresh_every(3600, "rates", load)
        await auntil(lambda: closed.is_set() and not refresh.running)
        assert refresh.cancelled
        await cache.aclose()

    asyncio.run(main())


def test_after_close_a_new_schedule_can_be_made(cache: Cache):
    cache.refresh_every(3600, "rates", Numbers(), now=False)
    cache.close()
    refresh = cache.refresh_every(3600, "rates", Numbers())
    until(lambda: refresh.runs == 1)


def test_a_cache_that_is_collected_stops_its_scheduler(namespace: str):
    cache = Cache(namespace=namespace)
    refresh = cache.refresh_every(3600, "rates", Numbers())
    until(lambda: refresh.runs == 1 and not refresh.running)
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None
    until(lambda: not schedulers() and refresh.next_run is None)


def test_a_forked_child_runs_no_schedule_until_it_is_resumed(tmp_path: Path, namespace: str):
    url = f"sqlite:///{tmp_path / 'cache.db'}"
    cache, numbers = Cache(url, namespace=namespace), Numbers()
    refresh = cache.refresh_every(0.1, "rates", numbers)
    until(lambda: numbers.loads >= 2)
    child = os.fork()
    if child == 0:  # pragma: no cover
        code = 1
        try:
            assert refresh.next_run is None
            assert not refresh.running
            assert not schedulers()
            before = refresh.runs + refresh.skipped
            refresh.resume()
            until(lambda: refresh.runs + refresh.skipped >= before + 3)
            cache.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    before = numbers.loads
    until(lambda: numbers.loads > before)
    cache.close()


# asyncio


def test_on_an_event_loop(namespace: str):
    async def main() -> None:
        loads: list[asyncio.AbstractEventLoop] = []

        async def load() -> int:
            loads.append(asyncio.get_running_loop())
            return len(loads)

        async with Cache(namespace=namespace) as cache:
            one = await cache.arefresh_every(0.1, "one", load)
            two = await cache.arefresh_every(0.1, "two", Numbers())  # a plain loader
            await auntil(lambda: one.runs >= 3 and two.runs >= 3)
            assert set(loads) == {asyncio.get_running_loop()}
            assert await cache.aget("one") >= 2
            with pytest.raises(ConfigurationError, match="arun_now"):
                one.run_now()
            await one.arun_now()
            assert not schedulers(), "no thread is needed"
            one.pause()
            assert one.next_run is None
        assert not one.running
        assert two.next_run is None

    asyncio.run(main())


def test_a_second_loop_has_its_own_scheduler_and_a_loop_that_is_gone_does_no_harm(cache: Cache):
    async def main() -> Refresh:
        refresh = await cache.arefresh_every(0.1, "rates", Numbers())
        await auntil(lambda: refresh.runs + refresh.skipped >= 2)
        return refresh

    first, second = asyncio.run(main()), asyncio.run(main())
    assert first is not second
    cache.close()  # no loop is left


def test_close_of_a_loops_schedules_from_another_thread(namespace: str):
    cache = Cache(namespace=namespace)

    async def main() -> None:
        refresh = await cache.arefresh_every(0.1, "rates", Numbers())
        await auntil(lambda: refresh.runs >= 2)
        await asyncio.to_thread(cache.close)
        assert not refresh.running
        assert refresh.next_run is None

    asyncio.run(main())


# A scheduler of the user's own


def test_a_background_scheduler_of_ones_own(cache: Cache, tmp_path: Path):
    # One that would pickle jobs into a database: a closure cannot be pickled, and need not be.
    # No pool: a connection that comes back to it after its end would be left to the garbage collector.
    database = create_engine(f"sqlite:///{tmp_path / 'jobs.db'}", poolclass=NullPool)
    own = BackgroundScheduler(jobstores={"default": SQLAlchemyJobStore(engine=database)}, timezone=UTC)
    numbers = Numbers()
    refresh = cache.refresh_every(0.1, "rates", lambda: numbers(), now=False, scheduler=own)
    assert refresh.next_run is None, "it was not started yet"
    own.start()
    try:
        until(lambda: refresh.runs >= 3)
        cache.refresh_every(60, "more", Numbers(), scheduler=own)
        assert len(own.get_jobs()) == 2
        cache.close()
        assert own.running, "the scheduler is its owner's"
        assert not own.get_jobs(), "ours are gone"
    finally:
        own.shutdown()


def test_an_asyncio_scheduler_of_ones_own(namespace: str):
    async def main() -> None:
        own = AsyncIOScheduler(timezone=UTC)
        own.start()
        async with Cache(namespace=namespace) as cache:

            async def load() -> int:
                return 1

            refresh = await cache.arefresh_every(0.1, "rates", load, scheduler=own)
            await auntil(lambda: refresh.runs >= 3)
            with pytest.raises(ConfigurationError, match="AsyncIOScheduler"):
                await cache.arefresh_every(1, "b", load, scheduler=BackgroundScheduler(timezone=UTC))
        own.shutdown()

    asyncio.run(main())


# Clocks


def test_a_clock_that_was_set_back_does_not_stop_the_scheduler(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    scheduler, fired = make_scheduler(asyncio=False), threading.Event()
    try:
        job = add_job(scheduler, fired.set, Every(0.1, "rates"), "test")
        assert isinstance(job.trigger, TimesTrigger)
        # What is left where the clock went back by an hour: the next run is an hour away.
        scheduler.modify_job(job.id, ALIAS, next_run_time=datetime.now(UTC) + timedelta(hours=1))
        fired.clear()
        assert fired.wait(20)
    finally:
        shut(scheduler)
    assert not caplog.records


def test_a_scheduler_looks_up_now_and_then(cache: Cache):
    """A timer does not run while a machine is suspended, and knows nothing of a wall clock that was set forward."""
    scheduler = make_scheduler(asyncio=False)
    try:
        assert scheduler._process_jobs() is None, "with nothing to do it waits for somebody to add a job"
        add_job(scheduler, lambda: None, Every(86_400, "rates"), "test")
        assert 0 < scheduler._process_jobs() <= LONGEST_NAP
    finally:
        shut(scheduler)


def test_a_clock_set_forward_by_an_hour_is_one_run(cache: Cache, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    scheduler, fired = make_scheduler(asyncio=False), []
    try:
        job = add_job(scheduler, lambda: fired.append(time.time()), Every(600, "rates"), "test")
        scheduler.pause()
        # What is left where the clock went forward by an hour: the next run was due an hour ago, five more since.
        scheduler.modify_job(job.id, ALIAS, next_run_time=datetime.now(UTC) - timedelta(hours=1))
        scheduler.resume()
        until(lambda: job.next_run_time > datetime.now(UTC))
        assert len(fired) == 1
    finally:
        shut(scheduler)
    assert not caplog.records


@pytest.mark.parametrize("own", [False, True])
def test_a_misfire_of_a_loop_that_was_held_up_is_one_run(
    namespace: str, own: bool, caplog: pytest.LogCaptureFixture
):
    """APScheduler by itself skips a run that it comes to a second late, and says so: here it is done, once."""
    caplog.set_level(logging.WARNING)

    async def main() -> None:
        scheduler = AsyncIOScheduler(timezone=UTC) if own else None
        if scheduler is not None:
            scheduler.start()
        async with Cache(namespace=namespace) as cache:
            refresh = await cache.arefresh_every(0.2, "rates", Numbers(), scheduler=scheduler)
            await auntil(lambda: refresh.runs >= 2 and not refresh.running)
            before = refresh.runs + refresh.skipped
            time.sleep(1.3)  # six runs are missed
            held_until = datetime.now(UTC)
            await auntil(lambda: refresh.runs + refresh.skipped > before)
            await auntil(lambda: refresh.next_run is not None and refresh.next_run > held_until)
            since = (datetime.now(UTC) - held_until) / timedelta(seconds=0.2)
            assert refresh.runs + refresh.skipped <= before + since + 2, "those that were missed are one"
        if scheduler is not None:
            scheduler.shutdown()

    asyncio.run(main())
    assert not caplog.records
