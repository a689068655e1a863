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
from collections import deque
from collections.abc import Callable

__all__ = ["BACKGROUND", "HEARTBEATS", "TIMER", "Timer", "Workers"]

log = logging.getLogger("cachewright")
IDLE_SECONDS = 1.0


class Workers:
    """At most ``limit`` threads over one queue; a thread that had nothing to do for a second ends."""

    def __init__(self, name: str, limit: int) -> None:
        self._name, self._limit = name, limit
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._condition = threading.Condition()
        self._queue: deque[Callable[[], None]] = deque()
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
            if self._threads >= self._limit:
                return
            self._threads += 1
        thread = threading.Thread(
            target=self._run, name=f"cachewright-{self._name}-{next(self._numbers)}", daemon=True
        )
        thread.start()

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
        while (work := self._take()) is not None:
            try:
                work()
            except Exception:
                log.exception("background work raised")


class Timer:
    """One thread that hands due work to `HEARTBEATS`; it ends when nothing is scheduled.

    Most of what is scheduled is called off before it is due (the heartbeat of a quick load), so calling off is a flag
    that is looked at when the time has come.
    """

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._condition = threading.Condition()
        self._heap: list[tuple[float, int, Callable[[], None], Callable[[], bool]]] = []
        self._numbers = itertools.count()
        self._running = False

    def after(self, seconds: float, work: Callable[[], None], called_off: Callable[[], bool]) -> None:
        """Runs ``work`` once, ``seconds`` from now, unless it is called off by then."""
        due = time.monotonic() + seconds
        with self._condition:
            heapq.heappush(self._heap, (due, next(self._numbers), work, called_off))
            if self._heap[0][0] == due:
                self._condition.notify()
            if self._running:
                return
            self._running = True
        threading.Thread(target=self._run, name="cachewright-timer", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._condition:
                while self._heap and self._heap[0][3]():
                    heapq.heappop(self._heap)
                if not self._heap and not self._condition.wait_for(lambda: bool(self._heap), IDLE_SECONDS):
                    self._running = False
                    return
                due, _, work, called_off = self._heap[0]
                wait = due - time.monotonic()
                if wait > 0:
                    self._condition.wait(wait)
                    continue
                heapq.heappop(self._heap)
            if called_off():
                continue
            with contextlib.suppress(RuntimeError):  # the interpreter is shutting down: no new threads
                HEARTBEATS.submit(work)


BACKGROUND = Workers("worker", 64)
HEARTBEATS = Workers("heartbeat", 4)
TIMER = Timer()
