"""The check after every test sees each kind of thing that a test could leave behind, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cachewright import Cache
from cachewright.core.flight import Flight, Outcome
from cachewright.core.slot import Lease, Slot
from cachewright.core.state import FOREVER_MS
from cachewright.runtime.aio import AIO
from cachewright.runtime.base import drive
from cachewright.runtime.process import wait_until
from cachewright.runtime.threads import THREADS
from cachewright.runtime.workers import BACKGROUND
from cachewright.testing.invariants import assert_quiet, unrest
from cachewright.tiers.base import Swap
from cachewright.tiers.memory import MemoryTier
from tests import invariants
from tests.invariants import Invariants, accepted

pytest_plugins = ["pytester"]


@pytest.fixture
def cache() -> Iterator[Cache]:
    with Cache(ttl=60) as cache:
        yield cache


# Each leaks inside, and mends it at its end.


@contextmanager
def a_thread() -> Iterator[None]:
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="left", daemon=True)
    thread.start()
    yield
    end.set()
    thread.join()


@contextmanager
def a_pipe() -> Iterator[None]:
    ends = os.pipe()
    yield
    for end in ends:
        os.close(end)


@contextmanager
def a_connection() -> Iterator[None]:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        yield


@contextmanager
def a_database() -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(f"{os.environ['LEAKS_IN']}/left.db")) as db:
        db.execute("CREATE TABLE t (x)")
        yield


@contextmanager
def a_timer_entry() -> Iterator[None]:
    job = THREADS.every(3600, lambda: AIO.sleep(0), "left")
    yield
    job.cancel()


@contextmanager
def background_work() -> Iterator[None]:
    end = threading.Event()

    def work() -> None:
        end.wait(20)

    BACKGROUND.submit(work)
    yield
    end.set()


@contextmanager
def a_lent_place() -> Iterator[None]:
    BACKGROUND.lend(1)
    yield
    BACKGROUND.lend(-1)


@contextmanager
def a_task_of_a_loop_that_ended() -> Iterator[None]:
    loop = asyncio.new_event_loop()
    task = loop.create_task(asyncio.sleep(3600), name="left")
    loop.run_until_complete(asyncio.sleep(0))
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()


@contextmanager
def a_heartbeat_of_a_loop_that_ended() -> Iterator[None]:
    async def main() -> None:
        AIO.every(3600, lambda: AIO.sleep(0), "left")

    asyncio.run(main())
    yield


LEAKS: dict[str, Callable[[], Any]] = {
    "thread left": a_thread,
    "pipe:": a_pipe,
    "socket:": a_connection,
    "left.db": a_database,
    "timer entry 'left'": a_timer_entry,
    "1 piece(s) of work in the pool 'worker'": background_work,
    "lent for ever": a_lent_place,
    "name='left'": a_task_of_a_loop_that_ended,
    "heartbeat 'left'": a_heartbeat_of_a_loop_that_ended,
}


@pytest.mark.parametrize("told", LEAKS)
def test_it_sees(told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAKS_IN", str(tmp_path))
    watch = Invariants()
    with LEAKS[told]():
        left = watch.left_behind(patience=0)
        assert any(told in line for line in left), left
        assert not Invariants().left_behind(patience=0), "the next test is not blamed for it"
    assert not [line for line in watch.left_behind() if told in line and "heartbeat" not in told]


def test_it_sees_another_file_under_an_old_number(tmp_path: Path) -> None:
    number = os.open(tmp_path / "one", os.O_CREAT)
    watch = Invariants()
    os.close(number)
    assert os.open(tmp_path / "two", os.O_CREAT) == number
    assert [line.endswith("/two") for line in watch.left_behind(patience=0)] == [True]
    os.close(number)


def test_it_waits_for_what_ends_by_itself_and_collects_what_nobody_holds() -> None:
    watch = Invariants()
    thread = threading.Timer(0.1, lambda: None)
    thread.start()
    assert watch.left_behind() == []
    assert thread.finished.is_set()

    class Owner:
        """In a circle, as what holds a connection and is held by it."""

        def __init__(self) -> None:
            self.me, self.ends = self, os.pipe()

        def __del__(self) -> None:
            for end in self.ends:
                os.close(end)

    Owner()
    assert watch.left_behind() == []


def test_what_a_wider_fixture_opens_is_not_the_tests() -> None:
    watch = Invariants()
    with a_pipe():
        assert watch.left_behind(patience=0)
    with contextlib.ExitStack() as stack:
        with accepted():
            stack.enter_context(a_pipe())
        assert watch.left_behind(patience=0) == []


# Of one cache


def test_a_quiet_cache_is_quiet(cache: Cache) -> None:
    cache.get_or_set("k", lambda: 1)
    cache.set_many({f"k{n}": n for n in range(100)}, tags=["t"])
    assert unrest(cache) == []
    assert_quiet(cache, timeout=0)


def test_a_load_under_way_is_unrest_until_it_ends(cache: Cache) -> None:
    begun, go = threading.Event(), threading.Event()

    def load() -> int:
        begun.set()
        assert go.wait(20)
        return 1

    thread = threading.Thread(target=cache.get_or_set, args=("k", load))
    thread.start()
    assert begun.wait(20)
    assert unrest(cache) == ["a load of 'k' is under way"]
    with pytest.raises(
        AssertionError, match=r"not quiet after 0 s:\n<Cache memory .*a load of 'k' is under way"
    ):
        assert_quiet(cache, timeout=0)
    threading.Timer(0.05, go.set).start()
    assert_quiet(cache, timeout=20)
    thread.join()


def test_a_flight_that_nobody_ends_is_left_behind(cache: Cache) -> None:
    watch = Invariants()
    flight, _, _ = cache.engine.state.flights.join(cache, "k", THREADS, Flight())
    assert [line for line in watch.left_behind(patience=0) if "a load of 'k' is under way" in line]
    assert isinstance(flight, Flight)
    cache.engine.state.flights.finish("k", flight, Outcome.HANDED_ON)


def test_a_refresh_that_never_ends_is_left_behind(cache: Cache) -> None:
    watch = Invariants()
    state = cache.engine.state
    assert state.claim_refresh("k")
    assert any("a refresh of 'k' is under way" in line for line in watch.left_behind(patience=0))
    state.refreshing.pop("k")


def test_background_work_of_a_cache_is_left_behind(cache: Cache) -> None:
    watch, go = Invariants(), threading.Event()

    async def work() -> None:
        go.wait(20)

    job = cache.engine.state.spawn(THREADS, work, "left")
    assert any("background work is under way" in line for line in watch.left_behind(patience=0))
    go.set()
    assert wait_until(job.done, 20)


def test_a_lease_without_end_and_without_a_load_is_left_behind(cache: Cache) -> None:
    watch = Invariants()
    memory = cache.engine.state.chain.memory
    assert memory is not None
    slot = Slot(os.urandom(8), lease=Lease(os.urandom(8), FOREVER_MS * 2, FOREVER_MS))
    drive(memory.swap(THREADS, [Swap("k", None, slot)]))
    assert any("a lease without end on 'k'" in line for line in watch.left_behind(patience=0))
    cache.delete("k")
    assert watch.left_behind(patience=0) == []


@pytest.mark.parametrize("how", ["unqueued", "unindexed", "twice", "too many", "ghosts"])
def test_accounts_that_do_not_add_up_are_told(how: str) -> None:
    watch = Invariants()
    cache = Cache("memory://?max_entries=10")  # of no further use: it is not mended
    cache.set_many({f"k{n}": n for n in range(8)}, tags=["t"])
    memory = cache.engine.state.chain.memory
    assert isinstance(memory, MemoryTier)
    content: Any = memory._content
    if how == "unqueued":
        content.policy._small.popitem()
    elif how == "unindexed":
        content.tagged.clear()
    elif how == "twice":
        content.controls["k1"] = (Slot(os.urandom(8)), 1.0)
    elif how == "too many":
        content.max_entries = 3
    else:
        content.policy._ghost.update(dict.fromkeys(range(11)))
    assert any("accounts" in line for line in unrest(cache))
    assert any("accounts" in line for line in watch.left_behind(patience=0))
    memory.close()
    content.controls.clear()
    content.tagged.clear()


# As a fixture


def test_a_test_that_leaves_something_behind_fails(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invariants, "PATIENCE", 0.0)
    pytester.makeconftest(
        """
        from tests.conftest import nothing_left_behind, pytest_configure
        """
    )
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.fixture
        def tidy():
            ends = os.pipe()
            yield
            for end in ends:
                os.close(end)

        @pytest.fixture(scope="session")
        def wide():
            ends = os.pipe()
            yield
            for end in ends:
                os.close(end)

        def test_good(tidy): pass
        def test_late(request): request.getfixturevalue("wide")
        def test_wide(wide): pass

        LEFT = []

        def test_bad(): LEFT.extend(os.pipe())

        def test_next():
            for end in LEFT:
                os.close(end)
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:xdist", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=5, errors=1)
    result.stdout.fnmatch_lines(
        ["*ERROR at teardown of test_bad*", "*left behind:", "file descriptor *: pipe:*"]
    )
