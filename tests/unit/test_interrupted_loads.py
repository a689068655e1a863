"""Loaders that raise what usually ends a task or a thread: a failure where it ends nobody, else their caller's fate."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from cachewright import Cache, LoaderInterrupted
from cachewright.events import BackgroundFailed, Event, LoadFailed, RefreshFailed
from cachewright.options import Retry
from cachewright.runtime.base import Runtime
from cachewright.runtime.interrupts import is_behind
from tests.unit.flusher_bench import Clock


class Leaves(BaseException):
    """As the exits of other libraries."""


async def leak() -> Any:
    query = asyncio.ensure_future(asyncio.sleep(60))
    query.cancel()
    await query


def exits() -> Any:
    raise SystemExit(3)


def cancels() -> Any:
    raise asyncio.CancelledError


class Bench:
    """A cache whose clock stands still, what it told, and how often its loader was called."""

    def __init__(self) -> None:
        self.clock, self.loads, self.told = Clock(), 0, list[Event]()
        self.cache = Cache(ttl=1, jitter=0, clock=self.clock, stale_if_error=60)
        self.cache.events.subscribe(self.told.append)

    def counted(self, loader: Callable[[], Any]) -> Callable[[], Any]:
        if asyncio.iscoroutinefunction(loader):

            async def aload() -> Any:
                self.loads += 1
                return await loader()

            return aload

        def load() -> Any:
            self.loads += 1
            return loader()

        return load

    def stale(self, *keys: str) -> None:
        self.cache.set_many(dict.fromkeys(keys, "old"))
        self.clock.time += 2

    def events(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.told if isinstance(event, kind)]


@pytest.fixture
def bench() -> Iterator[Bench]:
    one = Bench()
    with one.cache:
        yield one


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


AWAITED = pytest.mark.parametrize("loader", [leak, cancels, exits], ids=lambda one: one.__name__)


@AWAITED
def test_a_stale_value_answers_for_it(bench: Bench, loader: Callable[[], Any]) -> None:
    bench.stale("k")

    async def main() -> None:
        for _ in range(3):
            assert await bench.cache.aget_or_set("k", bench.counted(loader)) == "old"

    asyncio.run(main())
    assert bench.loads == 1, "the failure is remembered for error_ttl"
    (failed,) = bench.events(LoadFailed)
    assert isinstance(failed.error, LoaderInterrupted)
    assert bench.cache.stats()["load_failures"] == 1


@AWAITED
def test_it_is_shared_by_all_who_wait(bench: Bench, loader: Callable[[], Any]) -> None:
    async def main() -> list[Any]:
        load = bench.counted(loader)
        calls = [bench.cache.aget_or_set("k", load) for _ in range(20)]
        return await asyncio.gather(*calls, return_exceptions=True)

    errors = asyncio.run(main())
    assert bench.loads == 1
    assert {type(error) for error in errors} == {LoaderInterrupted}
    cause = SystemExit if loader is exits else asyncio.CancelledError
    assert isinstance(errors[0].__cause__, cause)
    assert cause.__name__ in str(errors[0])
    assert "'k'" in str(errors[0])


@AWAITED
def test_a_refresh_behind_fails_once_in_error_ttl(bench: Bench, loader: Callable[[], Any]) -> None:
    bench.stale("k")
    load = bench.counted(loader)

    async def main() -> None:
        for _ in range(5):
            assert await bench.cache.aget_or_set("k", load, stale_while_revalidate=60) == "old"
            await until(lambda: bench.events(RefreshFailed))

    bench.cache.set("k", "old", stale_while_revalidate=60)
    bench.clock.time += 2
    asyncio.run(main())
    assert bench.loads == 1
    assert len(bench.events(LoadFailed)) == len(bench.events(RefreshFailed)) == 1


@AWAITED
def test_a_batch_has_stale_values_for_it(bench: Bench, loader: Callable[[], Any]) -> None:
    bench.stale("a", "b")

    async def aload(keys: list[str]) -> dict[str, Any]:
        bench.loads += 1
        await loader()
        return {}

    def load(keys: list[str]) -> dict[str, Any]:
        bench.loads += 1
        return dict(loader())

    async def main() -> dict[str, Any]:
        return await bench.cache.aget_or_set_many(["a", "b"], aload if loader is leak else load)

    assert asyncio.run(main()) == {"a": "old", "b": "old"}
    assert bench.loads == 1
    assert {event.key for event in bench.events(LoadFailed)} == {"a", "b"}


def test_a_plain_loader_that_leaks_a_cancellation_fails_under_threads(bench: Bench) -> None:
    with pytest.raises(LoaderInterrupted, match="leaked a CancelledError"):
        bench.cache.get_or_set("k", cancels)
    assert len(bench.events(LoadFailed)) == 1


@pytest.mark.parametrize("swallowed", [0, 1])
def test_a_task_that_was_cancelled_before_has_the_leak_as_a_failure(bench: Bench, swallowed: int) -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        for _ in range(swallowed):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1)
        with pytest.raises(LoaderInterrupted):
            await bench.cache.aget_or_set("k", leak)

    asyncio.run(main())


def test_a_task_that_cancels_itself_hears_of_it_in_a_loader(bench: Bench) -> None:
    async def load() -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await bench.cache.aget_or_set("k", load)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert not bench.events(LoadFailed)


@pytest.mark.parametrize("how", ["cancel", "timeout"])
@pytest.mark.parametrize("many", [False, True])
def test_a_caller_that_is_cancelled_hands_its_load_on(bench: Bench, how: str, many: bool) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def load(keys: object = None) -> Any:
            bench.loads += 1
            if bench.loads == 1:
                begun.set()
                await asyncio.sleep(60)
            return {"k": "value"} if many else "value"

        def call() -> Awaitable[Any]:
            if many:
                return bench.cache.aget_or_set_many(["k"], load)
            return bench.cache.aget_or_set("k", load)

        async def first() -> None:
            async with asyncio.timeout(None) as scope:
                scopes.append(scope)
                await call()

        scopes: list[asyncio.Timeout] = []
        leader = asyncio.create_task(first())
        await begun.wait()
        follower = asyncio.ensure_future(call())
        await asyncio.sleep(0)
        if how == "cancel":
            leader.cancel()
        else:
            scopes[0].reschedule(asyncio.get_running_loop().time())
        with pytest.raises(asyncio.CancelledError if how == "cancel" else TimeoutError):
            await leader
        assert await follower == ({"k": "value"} if many else "value")

    asyncio.run(main())
    assert bench.loads == 2
    assert not bench.events(LoadFailed)


def test_a_leak_is_worth_another_try(bench: Bench) -> None:
    async def load() -> str:
        bench.loads += 1
        if bench.loads == 1:
            await leak()
        return "value"

    call = bench.cache.aget_or_set("k", load, retries=Retry(attempts=1, wait=0))
    assert asyncio.run(call) == "value"
    assert bench.loads == 2


# What exits


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), Leaves()], ids=repr)
def test_who_brought_the_loader_ends_by_it_and_others_have_a_failure(bench: Bench, error: BaseException):
    begun, joined = threading.Event(), threading.Event()
    others: list[BaseException] = []

    def load() -> Any:
        bench.loads += 1
        begun.set()
        assert joined.wait(20)
        raise error

    def follow() -> None:
        try:
            bench.cache.get_or_set("k", lambda: 1)
        except LoaderInterrupted as failure:
            others.append(failure)

    def join() -> None:
        assert begun.wait(20)
        follower.start()
        flight = bench.cache.engine.state.flights._open["k", False]
        deadline = time.monotonic() + 20
        while len(flight.waiters) < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        joined.set()

    follower, joiner = threading.Thread(target=follow), threading.Thread(target=join)
    joiner.start()
    with pytest.raises(type(error)) as caught:
        bench.cache.get_or_set("k", load, load_timeout=30)
    joiner.join(20)
    follower.join(20)
    assert caught.value is error
    assert bench.loads == 1
    assert [failure.__cause__ for failure in others] == [error]


def test_a_batch_behind_its_caller_ends_him_as_one_key_does(bench: Bench) -> None:
    def load(keys: list[str]) -> dict[str, Any]:
        bench.loads += 1
        return dict(exits())

    with pytest.raises(SystemExit):
        bench.cache.get_or_set_many(["a", "b"], load, load_timeout=30)
    assert bench.loads == 1


def test_who_runs_its_loader_itself_ends_by_it_alone(bench: Bench) -> None:
    with pytest.raises(SystemExit):
        bench.cache.get_or_set("k", exits)
    assert not bench.events(LoadFailed)


def test_an_exit_in_a_task_of_ones_own_is_its_fate(bench: Bench) -> None:
    async def leaves() -> None:
        raise Leaves

    async def main() -> None:
        with pytest.raises(Leaves):
            await bench.cache.aget_or_set("k", leaves)
        # Behind its callers it is nobody's.
        with pytest.raises(LoaderInterrupted):
            await bench.cache.aget_or_set("k", leaves, load_timeout=30)

    asyncio.run(main())
    assert len(bench.events(LoadFailed)) == 1


def test_what_a_load_behind_its_caller_starts_is_not_behind(bench: Bench) -> None:
    seen: list[bool] = []

    def here(rt: Runtime) -> None:
        seen.append(is_behind(rt))

    async def main() -> None:
        async def other() -> None:
            here(bench.cache._aio)

        async def load() -> str:
            here(bench.cache._aio)
            await asyncio.create_task(other())
            return "value"

        here(bench.cache._aio)
        await bench.cache.aget_or_set("k", load, load_timeout=30)

    asyncio.run(main())
    assert seen == [False, True, False]


def test_other_work_behind_callers_is_told_of_too(bench: Bench) -> None:
    async def work() -> None:
        raise Leaves

    job = bench.cache.engine.state.spawn(bench.cache._threads, work, "a test")

    async def main() -> None:
        await until(job.done)
        await until(bench.cache.engine.state.spawn(bench.cache._aio, work, "a task").done)
        stopped = bench.cache.engine.state.spawn(bench.cache._aio, lambda: asyncio.sleep(60), "stopped")
        await asyncio.sleep(0)
        stopped.cancel()
        await until(stopped.done)

    asyncio.run(main())
    assert [event.where for event in bench.events(BackgroundFailed)] == ["a test", "a task"]


# Schedules and warming


@AWAITED
def test_a_schedule_shows_it(loader: Callable[[], Any]) -> None:
    async def main() -> None:
        async with Cache() as cache:
            refresh = await cache.arefresh_every(3600, "k", loader)
            await until(lambda: refresh.runs)
            assert (refresh.runs, refresh.failures) == (1, 1)
            assert isinstance(refresh.last_error, LoaderInterrupted)

    asyncio.run(main())


def test_a_blocking_schedule_shows_an_exit() -> None:
    with Cache() as cache:
        refresh = cache.refresh_every(3600, "k", exits)
        deadline = time.monotonic() + 20
        while not refresh.runs:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        assert isinstance(refresh.last_error, LoaderInterrupted)


@pytest.mark.parametrize("stale", [False, True])
@AWAITED
def test_warming_reports_the_one_key(bench: Bench, loader: Callable[[], Any], stale: bool) -> None:
    if stale:
        bench.stale("a", "b")

    async def aload(key: str) -> str:
        if key == "a":
            await loader()
        return key

    def load(key: str) -> str:
        if key == "a":
            loader()
        return key

    report = asyncio.run(bench.cache.awarm(["a", "b"], aload if loader is leak else load))
    assert report.loaded == 1
    assert {key: type(error) for key, error in report.failed.items()} == {"a": LoaderInterrupted}


def test_the_error_can_be_pickled(bench: Bench) -> None:
    with pytest.raises(LoaderInterrupted) as caught:
        bench.cache.get_or_set("k", cancels)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
