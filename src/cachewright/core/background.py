"""Background work of one cache: started, tracked, and stopped at close within a deadline.

Under threads it runs on a bounded pool, under asyncio as tasks that are held here and by the runtime. What it raises is
an event, and so is what had to be left alone at close.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from cachewright.core.context import current_load
from cachewright.events import BackgroundFailed, Hub
from cachewright.runtime.base import Job, Runtime
from cachewright.runtime.interrupts import cancellations, ends_us, goes_behind

__all__ = ["Background"]

STEP = 0.005  # seconds between two looks at work that is ending
# The job that this code is a part of; threads and tasks that a loader starts inherit it.
_PART_OF: contextvars.ContextVar[object] = contextvars.ContextVar("cachewright_job", default=None)


class Background:
    """Base of `State`."""

    hub: Hub

    def after_fork(self) -> None:
        """In a forked child: background work stayed with the parent."""
        self._lock = threading.Lock()
        self._jobs: dict[Job, tuple[str, Runtime, object]] = {}  # with its name, who runs it, and its mark
        self.closings = 0  # a load that outlives a close must not open its tiers anew
        self.refreshing: dict[str, Job | None] = {}  # by key: the refresh behind its readers

    def spawn(self, rt: Runtime, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> Job:
        """Starts work behind the caller; it is stopped at close, and what it raises is an event."""
        mark = object()

        async def run() -> None:
            _PART_OF.set(mark)
            before = cancellations(rt)
            goes_behind(rt)
            try:
                await work()
            except BaseException as error:
                if ends_us(rt, error, before):
                    raise
                self.hub.emit(BackgroundFailed(name, error))

        job = rt.spawn(run, name)
        with self._lock:
            self._jobs = {j: said for j, said in self._jobs.items() if not j.done()}
            self._jobs[job] = (name, rt, mark)
        return job

    def repeat(
        self, rt: Runtime, seconds: float, tick: Callable[[], Awaitable[float | None]], name: str
    ) -> Job:
        """`Runtime.every` for an errand that is stopped at close."""
        job = rt.every(seconds, tick, name, errand=True)
        with self._lock:
            self._jobs = {j: said for j, said in self._jobs.items() if not j.done()}
            self._jobs[job] = (name, rt, object())
        return job

    def jobs(self) -> list[Job]:
        """The background work that is under way."""
        with self._lock:
            return [job for job in self._jobs if not job.done()]

    async def end_jobs(self, rt: Runtime, timeout: float) -> None:
        """Cancels what has not begun and every task, and waits for the rest; what then still runs is left alone.

        Whoever closes the cache from inside of a loader, or blocks the event loop whose tasks should end, would only
        wait for himself.
        """
        with self._lock:
            jobs, self._jobs = self._jobs, {}
            self.refreshing.clear()  # what has not begun never will
        for job, (_, _, mark) in jobs.items():
            if mark is not _PART_OF.get():  # a loader that closes its cache is not interrupted by that
                job.cancel()
        mine = [job for job, (_, runs, _) in jobs.items() if runs.name == rt.name or rt.name != "threads"]
        if current_load() is None:
            for _ in range(int(timeout / STEP)):  # counted: a test's clock may stand still
                if all(job.done() for job in mine):
                    break
                await rt.sleep(STEP)
        for job in mine:
            if not job.done():
                late = TimeoutError("it still ran when the cache was closed; nothing that it loads is stored")
                self.hub.emit(BackgroundFailed(jobs[job][0], late))

    def closed(self) -> None:
        """The tiers are about to be closed: leases that are still held are left to their own life."""
        with self._lock:
            self.closings += 1

    def claim_refresh(self, key: str) -> bool:
        """True for the one caller that is to refresh ``key`` in the background of this process."""
        with self._lock:
            job = self.refreshing.get(key)
            if key in self.refreshing and (job is None or job.goes_on()):
                return False  # (one that was cancelled before its first step could not say so, nor can a stopped loop's)
            self.refreshing[key] = None
            return True

    def refresh_runs(self, key: str, job: Job) -> None:
        """The refresh that was claimed has begun as this job, unless it is over already."""
        with self._lock:
            if key in self.refreshing:
                self.refreshing[key] = job
