"""One `Cache` used by threads and event loops at once, by loops one after the other, and on both sides of a fork."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cachewright import Cache

THREADS, LOOPS, ROUNDS = 8, 2, 10


def test_eight_threads_and_two_loops_at_once(cache: Cache) -> None:
    """All meet on each key at the same moment: one load for all of them, whichever face leads it."""
    barrier = threading.Barrier(THREADS + LOOPS)
    loads: list[str] = []

    def own(name: str) -> tuple[str, str]:
        return f"own:{name}", f"value of {name}"

    def thread(number: int) -> None:
        for n in range(ROUNDS):

            def load(key: str = f"k{n}") -> str:
                loads.append(key)
                time.sleep(0.02)
                return key.upper()

            barrier.wait(30)
            assert cache.get_or_set(f"k{n}", load) == f"K{n}"
            key, value = own(f"{number} {n}")
            cache.set(key, value)
            assert cache.get_many([key, f"k{n}"]) == {key: value, f"k{n}": f"K{n}"}
            assert cache.delete(key)
            assert cache.get(key) is None

    async def task(n: int) -> None:
        async def load() -> str:
            loads.append(f"k{n}")
            await asyncio.sleep(0.02)
            return f"K{n}"

        assert await cache.aget_or_set(f"k{n}", load) == f"K{n}"

    async def loop(number: int) -> None:
        for n in range(ROUNDS):
            barrier.wait(30)  # holds up this loop, which has nothing else to do
            await asyncio.gather(*(task(n) for _ in range(5)))
            key, value = own(f"loop {number} {n}")
            await cache.aset(key, value)
            assert await cache.aget(key) == value
            assert await cache.adelete(key)
            assert await cache.aget(key) is None

    with ThreadPoolExecutor(THREADS + LOOPS) as pool:
        running = [pool.submit(thread, n) for n in range(THREADS)]
        running += [pool.submit(lambda n: asyncio.run(loop(n)), n) for n in range(LOOPS)]
        for one in running:
            one.result(60)
    assert Counter(loads) == {f"k{n}": 1 for n in range(ROUNDS)}


def test_loops_one_after_the_other_and_a_close_after_the_last(rig: Any, becomes: Callable[..., bool]) -> None:
    cache: Cache = rig.make()

    async def use(n: int) -> None:
        async def load() -> int:
            await asyncio.sleep(0)
            return n

        values = await asyncio.gather(*(cache.aget_or_set(f"k{i}", load) for i in range(20)))
        assert values == [1] * 20  # the first run's
        await cache.aset("n", n)
        assert await cache.aget("n") == n

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for n in (1, 2, 3):
            asyncio.run(use(n))
            assert cache.get("n") == n
        cache.close()
        assert becomes(lambda: not rig.open()), rig.open()
        # Closed is not over: a later use opens anew.
        if rig.shared:
            asyncio.run(use(4))
            cache.close()
        cache = rig.make()  # the old one is collected, with all that it held
        gc.collect()
        assert becomes(lambda: not rig.open()), rig.open()
    assert [str(warning.message) for warning in caught] == []


def test_close_ends_the_connections_of_living_threads_and_loops(
    rig: Any, becomes: Callable[..., bool], threads_of_ours: Callable[[], list[str]]
) -> None:
    cache: Cache = rig.make()
    used, closed, again = threading.Barrier(5), threading.Event(), threading.Barrier(5)

    def thread(number: int) -> None:
        cache.set(f"t{number}", number)
        used.wait(30)
        assert closed.wait(30)
        cache.set(f"t{number}", number)
        assert cache.get(f"t{number}") == number
        again.wait(30)

    def slow() -> int:
        time.sleep(0.3)
        return 1

    async def loop() -> None:
        # A plain loader runs on one of our worker threads, a slow one has a heartbeat.
        assert await cache.aget_or_set("a", slow, lease=0.3) == 1
        used.wait(30)
        while not closed.is_set():
            await asyncio.sleep(0.005)
        assert await cache.aget_or_set("b", lambda: 2) == 2
        again.wait(30)

    def open_connections() -> bool:
        return bool(rig.open())

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(thread, n) for n in range(3)] + [pool.submit(lambda: asyncio.run(loop()))]
        used.wait(30)
        if rig.chain not in ("memory", "sqlite"):
            assert open_connections()
        cache.close()
        assert becomes(lambda: not rig.open()), rig.open()
        closed.set()
        again.wait(30)
        for one in running:
            one.result(30)
    cache.close()
    assert becomes(lambda: not rig.open()), rig.open()
    # Idle threads of ours end after a second without work.
    assert becomes(lambda: not threads_of_ours()), threads_of_ours()


def child(work: Callable[[], None]) -> int:
    """Runs ``work`` in a forked child and returns its process id; the child ends with status 0 if all was well."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)  # whatever hangs there must not stay
        work()
        status = 0
    except BaseException:  # the child must never go on with the parent's tests
        traceback.print_exc()
    finally:
        os._exit(status)


def reap(pid: int) -> int:
    deadline = time.monotonic() + 40
    while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
        assert time.monotonic() < deadline, "the child hangs"
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(found[1])


def test_both_sides_of_a_fork(rig: Any, cache: Cache) -> None:
    """The parent forks while one of its threads is loading and one of its loops runs, connections open on both."""
    loading, go_on, stop_loop = threading.Event(), threading.Event(), threading.Event()
    reader, writer = os.pipe()

    def load() -> str:
        loading.set()
        assert go_on.wait(30)
        return "the parent's"

    async def loop() -> None:
        while not stop_loop.is_set():
            assert await cache.aget("before") == "forked"
            await asyncio.sleep(0.001)

    async def aloud() -> None:
        assert await cache.aget("before") == "forked"
        assert await cache.aget_or_set("async of the child", lambda: 3) == 3

    def in_the_child() -> None:
        assert cache.get("before") == "forked"
        asyncio.run(aloud())
        cache.set("child", 1)
        assert cache.get("child") == 1
        assert cache.delete("child")
        cache.set("from the child", [1, 2])
        os.write(writer, b"!")
        # Shared, the parent's load is the one load; in memory of its own the child loads by itself.
        wanted = "the parent's" if rig.shared else "the child's"
        assert cache.get_or_set("flight", lambda: "the child's", lease=1) == wanted
        cache.close()

    cache.set("before", "forked")
    with ThreadPoolExecutor(2) as pool:
        flight = pool.submit(lambda: cache.get_or_set("flight", load, lease=1))
        running = pool.submit(lambda: asyncio.run(loop()))
        assert loading.wait(30)
        try:
            pid = child(in_the_child)
            assert os.read(reader, 1) == b"!"
            # The child's close must not have touched what the parent uses.
            cache.set("parent", 1)
            assert cache.get("parent") == 1
        finally:
            go_on.set()
        status = reap(pid)
        stop_loop.set()
        running.result(30)
        assert flight.result(30) == "the parent's"
    os.close(reader)
    os.close(writer)
    assert status == 0
    assert cache.get("from the child") == ([1, 2] if rig.shared else None)
    assert cache.get("flight") == "the parent's"


@pytest.mark.parametrize("rig", ["memory"], indirect=True)
def test_a_fork_while_an_event_is_being_counted(cache: Cache) -> None:
    """Whoever held the hub's lock at the fork is not there in the child to let go of it."""
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with cache.events._lock:
            held.set()
            assert go_on.wait(30)

    def fail() -> None:
        raise ValueError

    def in_the_child() -> None:
        with pytest.raises(ValueError):
            cache.get_or_set("k", fail)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)
    try:
        pid = child(in_the_child)
    finally:
        go_on.set()
        thread.join()
    assert reap(pid) == 0
