"""Loads behind the callers: they outlive a caller, fail as events, are counted, and end when the cache is closed."""

from __future__ import annotations

import asyncio
import gc
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cachewright import Cache, LoadTimeout
from cachewright.events import BackgroundFailed, Event, RefreshFailed
from tests.freshness.virtual import VirtualLoop, VirtualTasks


class Slow:
    """A loader that goes on when it is let; it ends with a value or an error."""

    def __init__(self, result: Any = "value") -> None:
        self.result = result
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self) -> Any:
        self.begun.set()
        assert self.go.wait(30)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def poll(condition: Any) -> None:
    pause = threading.Event()
    for _ in range(5_000):
        if condition():
            return
        pause.wait(0.002)
    raise AssertionError("it never came true")


def test_close_waits_for_a_load_that_ends_in_time(tmp_path: Path) -> None:
    url, slow = f"sqlite:///{tmp_path}/cache.db", Slow()
    cache = Cache(url, load_timeout=0.02)
    with pytest.raises(LoadTimeout):
        cache.get_or_set("k", slow)
    assert cache.stats()["background"] == 1
    closing = threading.Thread(target=cache.close, args=(30,))
    closing.start()
    slow.go.set()
    closing.join(30)
    assert cache.stats()["background"] == 0
    assert "BackgroundFailed" not in cache.stats()["events"]
    with Cache(url) as again:
        assert again.get("k") == "value", "what it loaded was stored before the tier was closed"


def test_a_loader_that_closes_its_cache_does_not_wait_for_itself() -> None:
    cache = Cache(load_timeout=30)
    done = threading.Event()

    def load() -> str:
        cache.close(timeout=3600)
        done.set()
        return "value"

    assert cache.get_or_set("k", load) == "value"
    assert done.is_set()


def test_an_awaited_loader_that_closes_its_cache_is_not_interrupted_by_that(tmp_path: Path) -> None:
    async def work() -> None:
        cache = Cache(f"sqlite:///{tmp_path}/cache.db?timeout=30", load_timeout=30)
        said: list[str] = []

        async def load() -> str:
            said.append("begins")
            await cache.aclose(timeout=3600)
            said.append("is closed")
            return "value"

        assert await cache.aget_or_set("k", load) == "value"
        assert said == ["begins", "is closed"]

    asyncio.run(work())


@pytest.mark.parametrize("how", ["plain", "in a thread"])
def test_a_loader_that_closes_its_cache_from_another_thread_is_begun_once(how: str) -> None:
    async def work() -> None:
        cache, runs = Cache(load_timeout=30), 0

        def close() -> str:
            nonlocal runs
            runs += 1
            cache.close(timeout=3600)
            return "value"

        async def load() -> str:
            return await asyncio.to_thread(close)

        assert await cache.aget_or_set("k", close if how == "plain" else load) == "value"
        assert runs == 1

    asyncio.run(work())


def test_a_failing_load_behind_its_callers_is_told_and_counted() -> None:
    told: list[Event] = []
    slow = Slow(ConnectionError("the origin is down"))
    with Cache() as cache:
        cache.events.subscribe(told.append)
        with pytest.raises(LoadTimeout):
            cache.get_or_set("k", slow, load_timeout=0.02)
        slow.go.set()
        poll(lambda: any(isinstance(event, RefreshFailed) for event in told))
        poll(lambda: cache.stats()["background"] == 0)
        assert cache.stats()["load_failures"] == 1
        assert cache.stats()["events"]["LoadFailed"] == 1
        assert cache.stats()["events"]["RefreshFailed"] == 1


def test_a_load_behind_its_caller_outlives_him_and_the_garbage_collector() -> None:
    loop = VirtualLoop()

    async def work() -> None:
        cache = Cache(clock=loop)
        cache._aio = VirtualTasks(loop, 1)

        async def load() -> str:
            await asyncio.sleep(5)
            return "value"

        caller = loop.create_task(cache.aget_or_set("k", load, load_timeout=60))
        await asyncio.sleep(1)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        del caller
        gc.collect()
        assert cache.stats()["background"] == 1
        await asyncio.sleep(5)
        assert await cache.aget("k") == "value"
        assert cache.stats()["background"] == 0
        await cache.aclose()

    loop.run_until_complete(work())
    loop.close()


def test_close_has_one_deadline_for_all_that_will_not_end() -> None:
    loop = VirtualLoop()

    async def work() -> None:
        told: list[Event] = []
        cache = Cache(clock=loop)
        cache._aio = VirtualTasks(loop, 1)
        cache.events.subscribe(told.append)
        ends = loop.time() + 100

        async def stubborn() -> str:
            while loop.time() < ends:
                try:
                    await asyncio.sleep(ends - loop.time())
                except asyncio.CancelledError:
                    continue
            return "too late"

        for n in range(10):
            with pytest.raises(LoadTimeout):
                await cache.aget_or_set(f"k{n}", stubborn, load_timeout=0.1)
        began = loop.time()
        await cache.aclose(timeout=2)
        assert 1.9 < loop.time() - began < 2.1
        left = [event for event in told if isinstance(event, BackgroundFailed)]
        assert {event.where for event in left} == {f"load of k{n}" for n in range(10)}
        await asyncio.sleep(200)
        assert await cache.aget("k1") is None, "nothing that they loaded is stored"
        await cache.aclose()

    loop.run_until_complete(work())
    loop.close()


def test_close_cancels_what_ends_when_it_is_asked() -> None:
    loop = VirtualLoop()

    async def work() -> None:
        cache = Cache(clock=loop)
        cache._aio = VirtualTasks(loop, 1)
        with pytest.raises(LoadTimeout):
            await cache.aget_or_set("k", partial(asyncio.sleep, 3600), load_timeout=0.1)
        began = loop.time()
        await cache.aclose(timeout=60)
        assert loop.time() - began < 0.1
        assert "BackgroundFailed" not in cache.stats()["events"]

    loop.run_until_complete(work())
    loop.close()
