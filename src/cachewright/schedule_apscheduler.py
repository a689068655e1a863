"""APScheduler's side of schedules; imported only when there is one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from apscheduler.executors.debug import DebugExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers import SchedulerNotRunningError
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import BaseScheduler
from apscheduler.triggers.base import BaseTrigger

from cachewright.errors import ConfigurationError
from cachewright.schedule_times import Times, to_datetime, to_micros

__all__ = ["add_job", "check_scheduler", "is_over", "make_scheduler", "remove_job", "shut"]

ALIAS = "cachewright"


class TimesTrigger(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """Fires at given times, whatever the last firing was: after a long pause once, not once per missed run."""

    def __init__(self, times: Times) -> None:
        self._times = times

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        at = to_micros(now)
        if previous is None:
            return to_datetime(self._times.after(at))
        # A run that is due now and has not been fired is one of those that APScheduler coalesces.
        return to_datetime(max(self._times.after(to_micros(previous)), self._times.latest(at)))

    def __str__(self) -> str:
        return "cachewright"


LONGEST_NAP = 30.0


class _Realigned:
    """APScheduler waits for a wall-clock moment, by a timer that knows nothing of that clock.

    Without this a clock set back by an hour stops it for that hour. And one that is set forward, or a machine that
    was suspended (which stops the timer), has it miss the moment by as much: so it looks up now and then.
    """

    def _process_jobs(self) -> float | None:
        now = datetime.now(UTC)
        for job in self.get_jobs(ALIAS):  # type: ignore[attr-defined]
            nearest = job.trigger.get_next_fire_time(None, now)
            if job.next_run_time is not None and job.next_run_time > nearest:
                job.modify(next_run_time=nearest)
        wait: float | None = super()._process_jobs()  # type: ignore[misc]
        return None if wait is None else min(wait, LONGEST_NAP)


class _Background(_Realigned, BackgroundScheduler):  # type: ignore[misc]
    pass


class _Asyncio(_Realigned, AsyncIOScheduler):  # type: ignore[misc]
    pass


def make_scheduler(*, asyncio: bool) -> Any:
    """A running scheduler: a daemon thread, or a timer on the running loop."""
    scheduler = (_Asyncio if asyncio else _Background)(timezone=UTC)
    scheduler.start()
    return scheduler


def check_scheduler(scheduler: Any, *, asyncio: bool) -> None:
    """Whether a scheduler of the user's can serve this face.

    Raises:
        ConfigurationError: it cannot; the message says which one can.
    """
    if not isinstance(scheduler, BaseScheduler):
        raise ConfigurationError(f"scheduler={scheduler!r}: expected a scheduler of APScheduler 3")
    if asyncio and not isinstance(scheduler, AsyncIOScheduler):
        raise ConfigurationError(
            f"scheduler=<{type(scheduler).__name__}> runs jobs outside of the event loop: "
            "pass an AsyncIOScheduler, or call refresh_every instead of arefresh_every"
        )


def add_job(scheduler: Any, fire: Callable[[], None], times: Times, name: str) -> Any:
    """A job in a store and on an executor of our own.

    A user's default store may pickle jobs into a database and the default executor run them in another process; ours
    live in code and only start work, so they run where the scheduler does.
    """
    with contextlib.suppress(ValueError):  # it has them already
        scheduler.add_jobstore(MemoryJobStore(), ALIAS)
    with contextlib.suppress(ValueError):
        scheduler.add_executor(DebugExecutor(), ALIAS)
    return scheduler.add_job(
        fire,
        TimesTrigger(times),
        name=name,
        jobstore=ALIAS,
        executor=ALIAS,
        coalesce=True,
        max_instances=1,
        misfire_grace_time=None,  # late is better than not at all
    )


def remove_job(job: Any) -> None:
    """Ends a job; harmless where its scheduler is gone."""
    with contextlib.suppress(JobLookupError):
        job.remove()


def is_over(scheduler: Any) -> bool:
    """Whether the event loop of a scheduler of ours was closed."""
    loop = getattr(scheduler, "_eventloop", None)
    return isinstance(scheduler, AsyncIOScheduler) and (loop is None or loop.is_closed())


def shut(scheduler: Any) -> None:
    """Ends a scheduler of ours from any thread."""
    if is_over(scheduler):
        return
    with contextlib.suppress(SchedulerNotRunningError, RuntimeError):  # closed since, with its loop
        scheduler.shutdown(wait=False)
