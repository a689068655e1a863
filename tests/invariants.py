"""What a test must not leave behind in this process; `conftest.no_unrest` looks after every test.

`standing` says what there is at one moment. What stands after a test and did not stand before it was left behind,
unless it goes by itself within `PATIENCE` seconds.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import sys
import threading
import time
import weakref
from collections.abc import Generator, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cachewright.cache import _CACHES
from cachewright.runtime.aio import BeatJob
from cachewright.runtime.workers import TIMER, Due, pools
from cachewright.testing.invariants import unrest
from cachewright.tiers.memory import MemoryTier

PATIENCE = 5.0

ALLOWED_THREADS = (
    # Ends after an idle second. What it is to start is looked at.
    "cachewright-timer",
    # Starts the tests' servers; the kernel would kill those that it started if it ended.
    "cachewright-spawner",
)

# By what makes it the same thing at two moments: the thing itself, where it has an identity. Then a line for people.
Standing = dict[Hashable, str]


def standing() -> Standing:
    """All that a test could leave behind and that stands now."""
    found: Standing = {}
    for look in (_threads, _descriptors, _pools, _tasks, _caches, _memories):
        found.update(look())
    return found


def _threads() -> Iterator[tuple[Hashable, str]]:
    # The library's pools: bounded, and each thread ends after an idle second. What they do is looked at.
    allowed = (*ALLOWED_THREADS, *(f"cachewright-{pool.name}-" for pool in pools()))
    for thread in threading.enumerate():
        if not thread.name.startswith(allowed):
            yield thread, f"thread {thread.name}"


def _descriptors() -> Iterator[tuple[Hashable, str]]:
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the folder's own, or another thread's
            continue
        # As long as the interpreter live: multiprocessing's memory for shared objects and the pipe to its helper, and
        # the simulator's buffer, one file for all its runs.
        if target.startswith("/dev/shm/pym-") or int(number) == _tracker() or "/cachewright-sim-" in target:
            continue
        yield ("fd", number, target), f"file descriptor {number}: {target}"


def _tracker() -> int | None:
    module = sys.modules.get("multiprocessing.resource_tracker")
    return module._resource_tracker._fd if module is not None else None


def _pools() -> Iterator[tuple[Hashable, str]]:
    for due in TIMER.scheduled:
        yield due, f"timer entry {_name_of(due)}"
    for pool in pools():
        if pool.busy:
            yield (pool, "busy"), f"{pool.busy} piece(s) of work in the pool {pool.name!r}"
        elif pool.lent:
            yield (pool, "lent"), f"{pool.lent} place(s) lent for ever in the pool {pool.name!r}"


def _name_of(due: Due) -> str:
    cells = inspect.getclosurevars(due.work).nonlocals if inspect.isfunction(due.work) else {}
    return repr(cells.get("name", due.work))  # `ThreadRuntime.every` was given one


def _tasks() -> Iterator[tuple[Hashable, str]]:
    # `asyncio.all_tasks` asks for a loop; those of loops that ended are the ones to look for.
    tasks: Any = getattr(asyncio.tasks, "_scheduled_tasks", None)  # from 3.12 on
    for task in list(asyncio.tasks._all_tasks if tasks is None else tasks):  # type: ignore[attr-defined]
        if not task.done():
            yield task, f"task {task!r}"


def _caches() -> Iterator[tuple[Hashable, str]]:
    for cache in list(_CACHES):
        for what in unrest(cache):
            yield (id(cache), what), f"{cache!r}: {what}"


_MEMORIES: weakref.WeakSet[MemoryTier] = weakref.WeakSet()
_make_memory = MemoryTier.__init__


def _noted(self: MemoryTier, **options: Any) -> None:
    _make_memory(self, **options)
    _MEMORIES.add(self)


MemoryTier.__init__ = _noted  # type: ignore[method-assign]  # those that stand in no cache are looked at too


def _memories() -> Iterator[tuple[Hashable, str]]:
    for memory in list(_MEMORIES):
        try:
            memory.check()
        except AssertionError as error:
            yield (id(memory), str(error)), f"a memory tier's accounts do not add up: {error}"


# What stands on a loop at its end is gone a moment later, so it is noted there and then.
_LEFT_ON_LOOPS: list[str] = []
_close_loop = asyncio.BaseEventLoop.close


def _watched_close(loop: asyncio.BaseEventLoop) -> None:
    # A loop that is given up with unfinished tasks takes their heartbeats along; the tasks are told of elsewhere.
    if not loop.is_closed() and not asyncio.all_tasks(loop):
        handles: list[asyncio.TimerHandle] = loop._scheduled  # type: ignore[attr-defined]
        beats = [h._callback.__self__ for h in handles if not h.cancelled() and _is_beat(h)]  # type: ignore[attr-defined]
        left = [beat for beat in beats if not _replays_for_an_open_cache(beat)]
        _LEFT_ON_LOOPS.extend(f"heartbeat {beat._name!r} on a loop whose tasks have ended" for beat in left)
    _close_loop(loop)


def _is_beat(handle: asyncio.TimerHandle) -> bool:
    return isinstance(getattr(handle._callback, "__self__", None), BeatJob)  # type: ignore[attr-defined]


def _replays_for_an_open_cache(beat: BeatJob) -> bool:
    """What an outage kept is replayed on the loop that met it, until the cache is closed or the loop ends."""
    states = [cache.engine.state for cache in list(_CACHES)]
    levels = [level for state in states for level in state.chain.levels]
    return any(level._replayer is beat for level in levels) or any(s.orphans._job is beat for s in states)


asyncio.BaseEventLoop.close = _watched_close  # type: ignore[assignment, method-assign]


class Invariants:
    """One test's watch. What stood when it was made is nobody's fault here."""

    def __init__(self) -> None:
        self._before = standing()
        _LEFT_ON_LOOPS.clear()

    def left_behind(self, patience: float | None = None) -> list[str]:
        """What the test left, after it was given the time to go; empty where all is well."""
        ends = time.monotonic() + (PATIENCE if patience is None else patience)
        tries = 0
        while (left := self._left()) and time.monotonic() < ends:
            del left
            if tries in (2, 100):  # nearly always there is nothing to collect, and it takes 30 ms
                gc.collect()
            tries += 1
            time.sleep(0.005)
        return [*left.values(), *_LEFT_ON_LOOPS]

    def _left(self) -> Standing:
        return {
            what: line
            for what, line in standing().items()
            if what not in self._before and what not in _ACCEPTED
        }


_ACCEPTED: Standing = {}


@contextmanager
def accepted() -> Iterator[None]:
    """What comes up in here lives longer than one test: servers and connections of fixtures of a wider scope."""
    before = standing()
    yield
    _ACCEPTED.update((what, line) for what, line in standing().items() if what not in before)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
    """What a fixture of a wider scope opens is not the test's that asked for it first."""
    if fixturedef.scope == "function":
        return (yield)
    with accepted():
        return (yield)
