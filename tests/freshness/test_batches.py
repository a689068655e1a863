"""Many keys at once are as fresh, as patient and as sparing of the origin as one key is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from cachewright import Cache, Entry, LoadTimeout, current_load
from cachewright.core.slot import Take, begin_load
from cachewright.core.state import now_ms
from cachewright.errors import CodecError, ConfigurationError, LoaderInterrupted
from cachewright.events import Event, LoadFailed, RefreshFailed, StaleServed
from cachewright.runtime.workers import pools
from tests.freshness.virtual import VirtualLoop, VirtualTasks


class Origin:
    """A loader of many keys that counts its calls, takes its time, and fails when told to."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.calls: list[list[str]] = []
        self.error: Exception | None = None
        self.version = 1

    async def __call__(self, keys: list[str]) -> Mapping[str, str]:
        self.calls.append(sorted(keys))
        version = self.version
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return {key: f"{key}{version}" for key in keys}


def in_virtual_time(work: Callable[[VirtualLoop, Cache], Awaitable[None]], **options: Any) -> list[Event]:
    """Runs ``work`` with a cache; what the cache told."""
    loop, told = VirtualLoop(), list[Event]()

    async def run() -> None:
        cache = Cache(clock=loop, jitter=0, **options)
        cache._aio = VirtualTasks(loop, 1)
        cache.events.subscribe(told.append)
        await work(loop, cache)
        await cache.aclose()

    try:
        loop.run_until_complete(run())
    finally:
        loop.close()
    return told


def test_load_timeout_bounds_the_wait_and_the_load_goes_on() -> None:
    async def work(loop: VirtualLoop, cache: Cache) -> None:
        origin, began = Origin(10), loop.time()
        with pytest.raises(LoadTimeout, match=r"2 keys .* load_timeout=3 s"):
            await cache.aget_or_set_many(["a", "b"], origin, load_timeout=3)
        assert loop.time() - began == pytest.approx(3, abs=0.01)
        await asyncio.sleep(8)
        assert await cache.aget_many(["a", "b"]) == {"a": "a1", "b": "b1"}
        assert origin.calls == [["a", "b"]]

    in_virtual_time(work)


def test_load_timeout_counts_once_over_keys_that_others_load() -> None:
    async def work(loop: VirtualLoop, cache: Cache) -> None:
        origin = Origin(10)
        others = [asyncio.create_task(cache.aget_or_set_many([key], origin)) for key in "abc"]
        await asyncio.sleep(0.1)
        began = loop.time()
        with pytest.raises(LoadTimeout):
            await cache.aget_or_set_many(["a", "b", "c"], origin, load_timeout=3)
        assert loop.time() - began == pytest.approx(3, abs=0.01)
        await asyncio.gather(*others)
        assert origin.calls == [["a"], ["b"], ["c"]]

    in_virtual_time(work)


def test_who_is_out_of_time_is_told_of_every_key_that_is_missing() -> None:
    """a comes at the last moment from elsewhere; that must not hide that b never came."""

    async def work(loop: VirtualLoop, cache: Cache) -> None:
        origin = Origin(10)
        level, rt = cache.engine.state.chain.authority, cache._aio
        for key in "ab":  # another process is at both
            taken = begin_load(None, now=now_ms(rt), lease_life=60_000, nonce=rt.new_id(), token=rt.new_id())
            assert isinstance(taken, Take)
            await level.swap_one(rt, key, None, taken.slot)
        caller = asyncio.create_task(cache.aget_or_set_many(["a", "b"], origin, load_timeout=3))
        await asyncio.sleep(2.9995)
        await cache.aset("a", "from elsewhere")
        with pytest.raises(LoadTimeout, match="'b'"):
            await caller

    in_virtual_time(work, stale_if_error=60)


@pytest.mark.parametrize("timeout", ["soft_timeout", "load_timeout"])
def test_stale_values_answer_where_each_missing_key_has_one(timeout: Any) -> None:
    async def work(loop: VirtualLoop, cache: Cache) -> None:
        origin = Origin()
        await cache.aget_or_set_many(["a", "b"], origin)
        await asyncio.sleep(2)
        origin.seconds, origin.version = 10, 2
        began = loop.time()
        given: dict[str, Any] = {timeout: 1}
        found = await cache.aget_or_set_many(["a", "b"], origin, **given)
        assert found == {"a": "a1", "b": "b1"}
        assert loop.time() - began == pytest.approx(1, abs=0.01)
        if timeout == "soft_timeout":  # one key without any: nothing to answer with
            assert (await cache.aget_or_set_many(["a", "c"], origin, soft_timeout=1))["c"] == "c2"
            assert loop.time() - began > 10
        await asyncio.sleep(11)
        assert origin.calls[1] == ["a", "b"]

    told = in_virtual_time(work, ttl=1, stale_if_error=60)
    assert [event.why for event in told if isinstance(event, StaleServed)][:2] == ["timeout", "timeout"]


def test_a_batch_that_fails_after_its_caller_left_is_told() -> None:
    async def work(loop: VirtualLoop, cache: Cache) -> None:
        origin = Origin(5)
        origin.error = ConnectionError("the origin is down")
        with pytest.raises(LoadTimeout):
            await cache.aget_or_set_many(["a", "b"], origin, load_timeout=1)
        await asyncio.sleep(5)
        with pytest.raises(ConnectionError):  # who still waits hears it himself
            await cache.aget_or_set_many(["c"], origin, load_timeout=30)

    told = in_virtual_time(work)
    assert [event.key for event in told if isinstance(event, RefreshFailed)] == ["a", "b"]


def test_stale_values_are_refreshed_by_one_call_of_the_loader() -> None:
    async def work(loop: VirtualLoop, cache: Cache) -> None:
        origin, keys = Origin(), [f"k{n}" for n in range(20)]
        await cache.aget_or_set_many(keys, origin)
        await asyncio.sleep(2)
        origin.version, origin.seconds = 2, 0.5
        for _ in range(3):
            began = loop.time()
            assert set((await cache.aget_or_set_many(keys, origin)).values()) == {f"{key}1" for key in keys}
            assert loop.time() == began, "nobody waits for a refresh"
        await asyncio.sleep(0.6)
        assert set((await cache.aget_or_set_many(keys, origin)).values()) == {f"{key}2" for key in keys}
        assert origin.calls == [sorted(keys), sorted(keys)]

    in_virtual_time(work, ttl=1, stale_while_revalidate=60)


def test_a_refresh_of_many_that_fails_gives_the_origin_rest() -> None:
    async def work(loop: VirtualLoop, cache: Cache) -> None:
        origin = Origin()
        await cache.aget_or_set_many(["a", "b"], origin)
        await asyncio.sleep(2)
        origin.error = ConnectionError("the origin is down")
        for _ in range(5):
            assert await cache.aget_or_set_many(["a", "b"], origin) == {"a": "a1", "b": "b1"}
            await asyncio.sleep(0.1)
        assert len(origin.calls) == 2
        await asyncio.sleep(10)
        await cache.aget_or_set_many(["a", "b"], origin)
        await asyncio.sleep(0.1)
        assert len(origin.calls) == 3

    told = in_virtual_time(work, ttl=1, stale_while_revalidate=60, stale_if_error=60, error_ttl=10)
    assert [event.key for event in told if isinstance(event, RefreshFailed)] == ["a", "b"] * 2


def test_refresh_ahead_of_many_is_one_call_too() -> None:
    async def work(loop: VirtualLoop, cache: Cache) -> None:
        origin = Origin()
        await cache.aget_or_set_many(["a", "b", "c"], origin)
        await asyncio.sleep(9)
        origin.version, origin.seconds = 2, 0.5
        assert (await cache.aget_or_set_many(["a", "b"], origin))["a"] == "a1"
        await asyncio.sleep(0.6)
        assert await cache.aget_or_set_many(["a", "b", "c"], origin) == {"a": "a2", "b": "b2", "c": "c1"}
        await asyncio.sleep(0.6)
        assert origin.calls == [["a", "b", "c"], ["a", "b"], ["c"]]

    in_virtual_time(work, ttl=10, refresh_ahead=0.8)


def test_who_waited_for_a_batch_that_was_cancelled_loads_the_keys_together() -> None:
    async def work(loop: VirtualLoop, cache: Cache) -> None:
        origin, keys = Origin(5), [f"k{n}" for n in range(50)]
        leader = asyncio.create_task(cache.aget_or_set_many(keys, origin))
        await asyncio.sleep(1)
        others = [asyncio.create_task(cache.aget_or_set_many(keys, origin)) for _ in range(3)]
        await asyncio.sleep(1)
        leader.cancel()
        for found in await asyncio.gather(*others):
            assert len(found) == 50
        assert [len(call) for call in origin.calls[:1]] == [50]
        assert len(origin.calls) <= 3, "one key by the first who wakes, and the others together"

    in_virtual_time(work)


def test_a_key_that_fails_for_somebody_else_does_not_keep_the_rest_from_being_stored() -> None:
    async def work(loop: VirtualLoop, cache: Cache) -> None:
        async def fail() -> str:
            await asyncio.sleep(5)
            raise ConnectionError("a is down")

        other = asyncio.create_task(cache.aget_or_set("a", fail))
        await asyncio.sleep(1)
        origin = Origin()
        with pytest.raises(ConnectionError):
            await cache.aget_or_set_many(["a", "b", "c"], origin)
        assert await cache.aget_many(["b", "c"]) == {"b": "b1", "c": "c1"}
        with pytest.raises(ConnectionError):
            await other

    in_virtual_time(work)


def test_a_loader_that_returns_no_mapping_is_a_failure_like_others() -> None:
    async def work(loop: VirtualLoop, cache: Cache) -> None:
        origin, calls = Origin(), 0
        await cache.aget_or_set_many(["a", "b"], origin)
        await asyncio.sleep(2)

        async def nothing(keys: list[str]) -> Any:
            nonlocal calls
            calls += 1

        for _ in range(5):
            assert await cache.aget_or_set_many(["a", "b"], nothing) == {"a": "a1", "b": "b1"}
        assert calls == 1
        with pytest.raises(ConfigurationError, match="returned a NoneType: expected a mapping"):
            await cache.aget_or_set_many(["c"], nothing)

    told = in_virtual_time(work, ttl=1, stale_if_error=60, error_ttl=10)
    assert len([event for event in told if isinstance(event, LoadFailed)]) == 3


def test_an_exception_that_ends_tasks_is_no_value_either() -> None:
    """`asyncio.gather(..., return_exceptions=True)` gives such; stored, it would end whoever raises it."""
    with Cache() as cache:
        with pytest.raises(LoaderInterrupted, match="gave a CancelledError as the value of 'b'"):
            cache.get_or_set_many(["a", "b"], lambda keys: {"a": 1, "b": asyncio.CancelledError()})
        assert cache.get_many(["a", "b"]) == {"a": 1}


def test_a_value_that_cannot_be_stored_fails_its_key_alone(tmp_path: Any) -> None:
    with Cache(f"sqlite:///{tmp_path}/cache.db?timeout=30") as cache:
        with pytest.raises(CodecError):
            cache.get_or_set_many(["a", "b", "c"], lambda keys: {"a": 1, "b": object(), "c": 3})
        assert cache.get_many(["a", "b", "c"]) == {"a": 1, "c": 3}
        with pytest.raises(ConfigurationError, match="give the tags to get_or_set_many"):
            cache.get_or_set_many(["d", "e"], lambda keys: {"d": Entry(1, tags=["t"]), "e": 2})
        assert cache.get_many(["d", "e"]) == {"e": 2}


def test_what_is_not_modified_belongs_to_its_own_key() -> None:
    clock = type(
        "Clock", (), {"now": lambda self: self.time, "monotonic": lambda self: self.time, "time": 1e9}
    )()
    with Cache(clock=clock, jitter=0, ttl=1, stale_if_error=60) as cache:
        cache.set_many({"a": "A", "b": "B"})
        clock.time += 2

        def crossed(keys: list[str]) -> dict[str, Any]:
            load = current_load()
            assert load is not None
            return {"a": load.of("b").not_modified(), "b": load.of("b").not_modified()}

        assert cache.get_or_set_many(["a", "b"], crossed, stale_if_error=0) == {"a": "A", "b": "B"}
        assert cache.stats()["events"]["LoadFailed"] == 1
        assert cache.get("a") is None
        assert cache.get("b") == "B"


def test_a_blocking_batch_lets_its_caller_go() -> None:
    go = threading.Event()
    with Cache() as cache:

        def load(keys: list[str]) -> dict[str, int]:
            assert go.wait(30)
            return dict.fromkeys(keys, 1)

        with pytest.raises(LoadTimeout):
            cache.get_or_set_many(["a", "b"], load, load_timeout=0.02)
        assert any(pool.busy for pool in pools())
        go.set()
        assert cache.get_or_set_many(["a", "b"], load) == {"a": 1, "b": 1}
