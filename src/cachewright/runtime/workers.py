"""Daemon threads that come when there is work and go when there is none.

`concurrent.futures` would not do: its threads are joined at interpreter exit, so one stuck loader would keep the
process from ending; and asyncio's default pool has six threads on a two-core machine, few enough for loaders that
wait for one another to lock it up.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator

__all__ = [
    "BACKGROUND",
    "HEARTBEATS",
    "LOADS_AT_ONCE",
    "TIMER",
    "Due",
    "Timer",
    "Workers",
    "pools",
    "waiting",
]

log = logging.getLogger("cachewright")
IDLE_SECONDS = 1.0
LOADS_AT_ONCE = 64  # of one cache, behind callers or of plain functions under asyncio


class Workers:
    """At most ``limit`` threads over one queue; a thread that had nothing to do for a second ends.

    A thread that waits for others' work does not count meanwhile (`waiting`): loads and the loads that they need share
    this pool, and 64 of the former must not keep the latter from starting.
    """

    def __init__(self, name: str, limit: int) -> None:
        self.name, self._most = name, limit
        self._reset()
        _POOLS.add(self)

    def _reset(self) -> None:
        self._condition = threading.Condition()
        self._queue: deque[Callable[[], None]] = deque()
        self._limit = self._most
        self._threads = 0
        self._idle = 0
        self._numbers = itertools.count(1)

    def submit(self, work: Callable[[], None]) -> None:
        """Runs ``work`` on one of the threads. What it raises is logged: callers wrap what they want to hear of."""
        with self._condition:
            self._queue.append(work)
            if self._idle >= len(self._queue):
                self._condition.notify()
                return
        self._start_if_needed()

    @property
    def busy(self) -> int:
        """How much work is queued or under way."""
        with self._condition:
            return len(self._queue) + self._threads - self._idle

    @property
    def lent(self) -> int:
        """How many of its threads wait for somebody else's work."""
        return self._limit - self._most

    def lend(self, places: int) -> None:
        """A thread of this pool begins (1) or ends (-1) to wait for somebody else."""
        with self._condition:
            self._limit += places
        if places > 0:
            self._start_if_needed()

    def _start_if_needed(self) -> None:
        with self._condition:
            if len(self._queue) <= self._idle or self._threads >= self._limit:
                return
            self._threads += 1
        name = f"cachewright-{self.name}-{next(self._numbers)}"
        try:
            threading.Thread(target=self._run, name=name, daemon=True).start()
        except RuntimeError:  # no thread to be had: the place must not be lost with it
            with self._condition:
                self._threads -= 1
                if not self._threads:
                    raise

    def _take(self) -> Callable[[], None] | None:
        with self._condition:
            if not self._queue:
                self._idle += 1
                try:
                    self._condition.wait_for(lambda: bool(self._queue), IDLE_SECONDS)
                finally:
                    self._idle -= 1
            if self._queue:
                return self._queue.popleft()
            self._threads -= 1
            return None

    def _run(self) -> None:
        _HERE.workers = self
        while (work := self._take()) is not None:
            try:
                work()
            except (
                BaseException
            ):  # a SystemExit in a loader ends its load, not this thread and its place in the pool
                log.exception("background work raised")
            del work


_POOLS: weakref.WeakSet[Workers] = weakref.WeakSet()


def pools() -> list[Workers]:
    """All pools of this process: the shared ones, and those that tiers have for themselves."""
    return list(_POOLS)


def _after_fork() -> None:
    for pool in pools():
        pool._reset()


os.register_at_fork(after_in_child=_after_fork)  # one for all: it cannot be taken back


class _Here(threading.local):
    workers: Workers | None = None


_HERE = _Here()


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Around a wait for somebody else's work; see `Workers`."""
    workers = _HERE.workers
    if workers is None:
        yield
        return
    workers.lend(1)
    try:
        yield
    finally:
        workers.lend(-1)


class Due:
    """One thing that the `Timer` is to start. Calling it off lets go of the work at once."""

    __slots__ = ("pool", "work")

    def __init__(self, work: Callable[[], None], pool: Workers) -> None:
        self.work: Callable[[], None] | None = work
        self.pool = pool


class Timer:
    """One thread that hands due work to a pool; it ends when nothing is scheduled.

    Most of what is scheduled is called off before it is due: the heartbeat of a quick load. That costs nothing but a
    mark; where the marked ones are the most, they are swept out.
    """

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._condition = threading.Condition()
        self._heap: list[tuple[float, int, Due]] = []
        self._numbers = itertools.count()
        self._off = 0
        self._running = False

    def after(self, seconds: float, work: Callable[[], None], pool: Workers) -> Due:
        """Runs ``work`` once, ``seconds`` from now, unless it is called off by then."""
        due = Due(work, pool)
        at = time.monotonic() + seconds
        with self._condition:
            heapq.heappush(self._heap, (at, next(self._numbers), due))
            if self._heap[0][0] == at:
                self._condition.notify()
            if self._running:
                return due
            self._running = True
        threading.Thread(target=self._run, name="cachewright-timer", daemon=True).start()
        return due

    @property
    def scheduled(self) -> list[Due]:
        """What is still to start."""
        with self._condition:
            return [one for _, _, one in self._heap if one.work is not None]

    def call_off(self, due: Due) -> None:
        """``due`` will not start; harmless when it has."""
        with self._condition:
            if due.work is None:
                return
            due.work = None
            self._off += 1
            if self._off > 100 and self._off * 2 > len(self._heap):
                self._heap = [one for one in self._heap if one[2].work is not None]
                heapq.heapify(self._heap)
                self._off = 0

    def _run(self) -> None:
        while True:
            with self._condition:
                while self._heap and self._heap[0][2].work is None:
                    heapq.heappop(self._heap)
                    self._off -= 1
                if not self._heap and not self._condition.wait_for(lambda: bool(self._heap), IDLE_SECONDS):
                    self._running = False
                    return
                if not self._heap or self._heap[0][2].work is None:
                    continue
                wait = self._heap[0][0] - time.monotonic()
                if wait > 0:
                    self._condition.wait(wait)
                    continue
                due = heapq.heappop(self._heap)[2]
                work, due.work = due.work, None
            if work is not None:
                with contextlib.suppress(RuntimeError):  # the interpreter is shutting down: no new threads
                    due.pool.submit(work)
            del due, work


BACKGROUND = Workers("worker", 64)  # who has no cache: flushers
HEARTBEATS = Workers("heartbeat", 4)
TIMER = Timer()
