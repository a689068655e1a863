"""The pool of background threads: a place in it is never lost, and what waits in it makes room for what it waits for."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cachewright import Cache, LoadTimeout, RecursiveLoadError, WouldDeadlockError
from cachewright.runtime.process import wait_until
from cachewright.runtime.workers import HEARTBEATS, LOADS_AT_ONCE, Timer, Workers
from cachewright.tiers.sqlite import SqliteTier


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_work_that_ends_its_thread_does_not_take_its_place_along() -> None:
    workers = Workers("test", 2)

    def leave() -> None:
        raise SystemExit

    for _ in range(10):
        workers.submit(leave)
    ran = threading.Event()
    workers.submit(ran.set)
    assert ran.wait(10)


def test_loads_that_need_further_loads_do_not_lock_the_pool() -> None:
    with Cache() as cache:

        def outer(n: int) -> int:
            inner = cache.get_or_set(f"inner:{n}", lambda: n, soft_timeout=60)
            assert isinstance(inner, int)
            return inner

        values: list[int] = []
        threads = [
            in_thread(
                partial(
                    lambda n: values.append(
                        cache.get_or_set(f"outer:{n}", partial(outer, n), soft_timeout=60)
                    ),
                    n,
                )
            )
            for n in range(70)
        ]
        for thread in threads:
            thread.join(30)
        assert sorted(values) == list(range(70))


def test_plain_loaders_that_wait_for_an_awaited_one_do_not_lock_the_pool() -> None:
    asyncio.run(_plain_loaders())


async def _plain_loaders() -> None:
    async with Cache() as cache:
        begun = threading.Event()

        def shared() -> int:
            return 1

        def outer() -> int:
            begun.wait(10)
            return cache.get_or_set("shared", shared)

        loads = [asyncio.create_task(cache.aget_or_set(f"k{n}", outer)) for n in range(70)]
        await asyncio.sleep(0)
        one = asyncio.create_task(cache.aget_or_set("shared", shared))
        begun.set()
        assert await asyncio.wait_for(asyncio.gather(one, *loads), 30) == [1] * 71


def test_loads_that_hang_in_one_cache_keep_no_other_cache_waiting() -> None:
    go = threading.Event()

    async def hold(hanging: Cache, healthy: Cache) -> None:
        for n in range(LOADS_AT_ONCE // 2):
            with pytest.raises(LoadTimeout):
                await hanging.aget_or_set(f"a{n}", lambda: go.wait(30), load_timeout=0.002)
        assert await healthy.aget_or_set("a", lambda: 1, load_timeout=20) == 1

    with Cache() as hanging, Cache() as healthy:
        for n in range(LOADS_AT_ONCE // 2):
            with pytest.raises(LoadTimeout):
                hanging.get_or_set(f"k{n}", lambda: go.wait(30), load_timeout=0.002)
        try:
            asyncio.run(hold(hanging, healthy))
            assert healthy.get_or_set("k", lambda: 1, load_timeout=20) == 1
            with pytest.raises(LoadTimeout):  # its own pool has an end
                hanging.get_or_set("one too many", lambda: 1, load_timeout=0.1)
        finally:
            go.set()
        assert hanging.get_or_set("one too many", lambda: 2, load_timeout=20) in (1, 2)


def test_a_load_that_has_not_begun_when_its_cache_closes_hangs_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cachewright.cache.LOADS_AT_ONCE", 2)
    cache = Cache()
    busy, done = threading.Barrier(3), threading.Event()

    def hold() -> int:
        busy.wait(30)
        done.wait(30)
        return 1

    holders = [in_thread(partial(cache.get_or_set, f"h{n}", hold, soft_timeout=60)) for n in range(2)]
    busy.wait(30)
    got: list[int] = []
    waiting = in_thread(lambda: got.append(cache.get_or_set("late", lambda: 2, soft_timeout=60)))
    assert wait_until(lambda: len(cache.engine.state.flights) == 3, 20)
    cache.close(timeout=0.05)  # cancels what waits for a thread
    done.set()
    waiting.join(20)
    assert got == [2]
    for holder in holders:
        holder.join(20)


def test_a_pool_goes_with_its_owner() -> None:
    pool = Workers("own", 1)
    pool.submit(lambda: None)
    gone = weakref.ref(pool)
    del pool
    assert wait_until(lambda: gone() is None, 20), "what is to be done after a fork must not hold it"


def test_a_load_that_outlives_its_cache_does_not_open_the_tiers_anew(tmp_path: Path) -> None:
    cache = Cache(f"sqlite:///{tmp_path}/slots.db", load_timeout=0.05, lease=60)
    go = threading.Event()

    def load() -> int:
        assert go.wait(30)
        return 1

    with pytest.raises(LoadTimeout):
        cache.get_or_set("k", load)
    (job,) = cache.engine.state.jobs()
    tier = cache.engine.state.chain.authority.tier
    assert isinstance(tier, SqliteTier)
    cache.close(timeout=0.02)
    assert cache.stats()["events"]["BackgroundFailed"] == 1, "what was left alone is told"
    go.set()
    assert wait_until(job.done, 20)
    assert tier._file._idle == []
    assert cache.get("k") is None, "what it loaded is stored nowhere"
    cache.close()


def test_a_circle_through_a_gather_is_seen() -> None:
    asyncio.run(_circle())


async def _circle() -> None:
    async with Cache() as cache:
        both = asyncio.Event()

        async def load_a() -> object:
            both.set()
            return await asyncio.gather(cache.aget_or_set("b", load_b), cache.aget_or_set("c", load_c))

        async def load_b() -> object:
            await both.wait()
            await asyncio.sleep(0)
            return await cache.aget_or_set("a", load_a)

        async def load_c() -> int:
            await asyncio.sleep(0.05)
            return 1

        led = [
            asyncio.create_task(cache.aget_or_set("b", load_b)),
            asyncio.create_task(cache.aget_or_set("a", load_a)),
        ]
        done = await asyncio.wait_for(asyncio.gather(*led, return_exceptions=True), 20)
        assert any(isinstance(one, RecursiveLoadError) for one in done)


def test_what_is_called_off_is_let_go_of() -> None:
    timer = Timer()
    ran = threading.Event()
    for _ in range(5000):
        timer.call_off(timer.after(3600, lambda: None, HEARTBEATS))
    assert len(timer._heap) < 500
    timer.after(0, ran.set, HEARTBEATS)
    assert ran.wait(10)


def test_a_loader_that_exits_ends_its_own_load_only() -> None:
    with Cache() as cache:

        def leave() -> int:
            raise SystemExit

        for n in range(3):
            with pytest.raises(SystemExit):
                cache.get_or_set(f"k{n}", leave, load_timeout=30)
        assert cache.get_or_set("k0", lambda: 1, load_timeout=30) == 1
        assert len(cache.engine.state.flights) == 0


@pytest.mark.parametrize("wanted", ["a", "b"])
def test_a_circle_through_a_batch_is_seen(wanted: str) -> None:
    with Cache() as cache:
        in_batch, in_c = threading.Event(), threading.Event()
        errors: list[BaseException] = []

        def load_many(keys: list[str]) -> dict[str, object]:
            in_batch.set()
            assert in_c.wait(20)
            return {key: cache.get_or_set("c", lambda: 3) for key in keys}

        def load_c() -> object:
            in_c.set()
            assert in_batch.wait(20)
            return cache.get_or_set(wanted, lambda: 1)

        def run(work: Callable[[], object]) -> None:
            try:
                work()
            except RecursiveLoadError as error:
                errors.append(error)

        threads = [
            in_thread(partial(run, lambda: cache.get_or_set_many(["a", "b"], load_many))),
            in_thread(partial(run, lambda: cache.get_or_set("c", load_c))),
        ]
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads), "they wait for each other"
        assert errors


@pytest.mark.parametrize("patience", [None, 60])
@pytest.mark.parametrize("many", [False, True], ids=["one key", "many keys"])
def test_a_circle_through_a_load_inside_of_a_load_is_seen(many: bool, patience: float | None) -> None:
    """x loads y, whose loader waits for q; q's asks for x, which waits for nobody but, by way of y, for q."""
    q_begun, y_begun = threading.Event(), threading.Event()
    errors: list[BaseException] = []
    with Cache(soft_timeout=patience) as cache:

        def load_x() -> object:
            if many:
                return cache.get_or_set_many(["y"], lambda keys: {"y": load_y()})
            return cache.get_or_set("y", load_y)

        def load_y() -> object:
            assert q_begun.wait(20)
            y_begun.set()
            return cache.get_or_set("q", lambda: 1)

        def load_q() -> object:
            q_begun.set()
            assert y_begun.wait(20)
            (flight,) = [f for (key, _), f in cache.engine.state.flights._open.items() if key == "q"]
            # (its own caller is the second who waits where the load runs behind him)
            assert wait_until(lambda: len(flight.waiters) == (2 if patience else 1), 20)
            return cache.get_or_set("x", lambda: 1)

        def run(key: str, load: Callable[[], object]) -> None:
            try:
                cache.get_or_set(key, load)
            except RecursiveLoadError as error:
                errors.append(error)

        threads = [in_thread(partial(run, "x", load_x)), in_thread(partial(run, "q", load_q))]
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads), "they wait for each other"
        assert errors


def test_a_circle_through_a_refresh_that_nobody_can_join_is_seen() -> None:
    """a is refreshed, and its loader waits for c; c's waits for a's lease, for a has no value yet."""
    in_a, in_c = threading.Event(), threading.Event()
    errors: list[BaseException] = []
    with Cache() as cache:

        @cache.cached(key="a")
        def load_a() -> object:
            in_a.set()
            assert in_c.wait(20)
            return cache.get_or_set("c", lambda: 1)

        def load_c() -> object:
            in_c.set()
            assert in_a.wait(20)
            return load_a()

        def run(work: Callable[[], object]) -> None:
            try:
                work()
            except RecursiveLoadError as error:
                errors.append(error)

        threads = [
            in_thread(partial(run, lambda: load_a.refresh())),
            in_thread(partial(run, lambda: cache.get_or_set("c", load_c))),
        ]
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads), "they wait for each other"
        assert errors


def test_a_blocking_call_that_waits_for_the_lease_of_its_own_loop_is_told() -> None:
    async def work() -> None:
        with Cache() as cache:
            begun = asyncio.Event()

            @cache.cached(key="k")
            async def hang() -> int:
                begun.set()
                await asyncio.sleep(3600)
                return 1

            refresh = asyncio.create_task(hang.arefresh())
            await begun.wait()
            with pytest.raises(WouldDeadlockError, match="await the method with an 'a'"):
                cache.get_or_set("k", lambda: 2)
            refresh.cancel()
            with pytest.raises(asyncio.CancelledError):
                await refresh

    asyncio.run(work())


def test_a_refresh_cancelled_before_its_first_step_does_not_keep_others_away() -> None:
    asyncio.run(_cancelled_refresh())


async def _cancelled_refresh() -> None:
    clock = ManualClock()
    async with Cache(ttl=10, stale_while_revalidate=1000, clock=clock) as cache:
        loads = 0

        async def load() -> int:
            nonlocal loads
            loads += 1
            return loads

        assert await cache.aget_or_set("k", load) == 1
        clock.seconds += 11
        assert await cache.aget_or_set("k", load) == 1
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.01)
        assert await cache.aget_or_set("k", load) == 1
        for _ in range(500):
            if loads == 2:
                break
            await asyncio.sleep(0.01)
        assert loads == 2


class ManualClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 1_800_000_000.0

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds
