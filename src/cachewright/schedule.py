"""``refresh_every``: a key that is kept warm by a schedule. Handles, the schedulers behind them, and their end.

APScheduler only says when. Its jobs return at once: they start background work of the cache, so no pool of its own
keeps the process from ending, and nothing is pickled into a job store. Who does a run is decided by `Election`.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from typing import Any

from cachewright.core.context import current_load
from cachewright.core.engine import Engine
from cachewright.errors import ConfigurationError, MissingExtraError
from cachewright.events import BackgroundFailed, RefreshFailed
from cachewright.keys import check_key
from cachewright.options import Options, Seconds, seconds
from cachewright.runtime.base import Job, Runtime, drive
from cachewright.runtime.threads import is_async
from cachewright.runtime.workers import BACKGROUND
from cachewright.schedule_election import EARLY, Election, Ran, run_once
from cachewright.schedule_times import make_times, share_of

__all__ = ["Refresh", "Schedules"]

SPREAD, LONGEST_SPREAD = 0.02, 0.25  # of the interval, and seconds: not all processes ask in one instant


class Refresh:
    """The handle of a scheduled refresh, made by ``refresh_every``. Counters speak of this process.

    Attributes:
        key: the key that is refreshed.
        runs: runs that this process did, failed ones included.
        failures: those of them that failed.
        skipped: firings at which another process had done the run.
        last_error: why the last run of this process failed; None where it did not.
        last_run: when the last run ended that this process did or found done.
    """

    def __init__(
        self,
        schedules: Schedules,
        rt: Runtime,
        key: str,
        loader: Callable[[], Any],
        options: Options,
        election: Election,
        spread: float,
        late: float = 0.0,
    ) -> None:
        self.key = key
        self.runs = self.failures = self.skipped = 0
        self.last_error: Exception | None = None
        self.last_run: datetime | None = None
        self._schedules, self._rt = schedules, rt
        self._loader, self._options = loader, options
        self._election, self._spread, self._late = election, spread, late
        self._scheduler: Any = None  # the user's own
        self.after_fork()

    def __repr__(self) -> str:
        return f"<Refresh {self.key!r} runs={self.runs} failures={self.failures} skipped={self.skipped}>"

    def after_fork(self) -> None:
        """In a forked child no schedule runs until `resume`."""
        self._lock = threading.Lock()
        self._busy = self._again = False
        self._job: Any = None  # APScheduler's
        self._work: Job | None = None
        self._home: tuple[int, Callable[[], bool]] | None = None

    # ------------------------------------------------------------------------------------------- the user's

    @property
    def next_run(self) -> datetime | None:
        """When this process fires next, in UTC; None where it is paused, cancelled or forked."""
        moment: datetime | None = getattr(self._job, "next_run_time", None)
        return moment.astimezone(UTC) if moment is not None else None

    @property
    def running(self) -> bool:
        """Whether a firing is under way here: a run, or standing by for another process's run."""
        return self._busy

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled, or ended by the cache's close."""
        return self._election.stopped

    def wake(self) -> None:
        """In a forked child, takes the schedule up; elsewhere nothing."""
        if self._job is None and not self._election.stopped:
            self._schedules.arm(self)

    def pause(self) -> None:
        """No further firing in this process; other processes go on, and so does a run under way."""
        if self._job is not None:
            self._job.pause()

    def resume(self) -> None:
        """Goes on after `pause`; in a forked child, takes the schedule up there.

        Raises:
            ConfigurationError: the schedule was cancelled.
        """
        if self._election.stopped:
            raise ConfigurationError(f"the refresh of {self.key!r} was cancelled: call refresh_every again")
        if self._job is None:
            self._schedules.arm(self)
        else:
            self._job.resume()

    def cancel(self) -> None:
        """Ends the schedule in this process. The entry stays; a run under way ends by itself."""
        self._election.stop()
        job, self._job = self._job, None
        self._schedules.forget(self)
        if job is not None:
            from cachewright.schedule_apscheduler import remove_job

            remove_job(job)

    def run_now(self) -> Any:
        """Loads the key now, in this process, whatever the schedule says; returns the value.

        Raises:
            ConfigurationError: the loader is async; await `arun_now`.
            Exception: whatever the loader raised; the entry stays as it was.
        """
        if is_async(self._loader):
            raise ConfigurationError(f"the loader of {self.key!r} is async: await arun_now()")
        return drive(self._now(self._schedules.threads))

    async def arun_now(self) -> Any:
        """`run_now`, awaited."""
        return await self._now(self._schedules.aio)

    async def _now(self, rt: Runtime) -> Any:
        engine = self._schedules.engine
        try:
            value = await engine.load(rt, self.key, self._loader, self._options, forced=True)
        except Exception as error:
            self._note(Ran(True, rt.now(), error))
            engine.state.hub.emit(RefreshFailed(self.key, error))
            raise
        self._note(Ran(True, rt.now()))
        return value

    # ------------------------------------------------------------------------------------------- the schedule's

    def fire(self) -> None:
        """Starts what is due behind the caller; while that lasts, further firings become one."""
        with self._lock:
            if self._busy:
                self._again = True
                return
            self._busy = True
        try:
            # In the scheduler's thread, or on the loop: where the work can be waited for later.
            self._home = threading.get_ident(), self._rt.whoami()[1]
            self._work = self._schedules.engine.state.spawn(self._rt, self._run, f"refresh of {self.key}")
        except BaseException:
            self._busy = False
            raise

    async def _run(self) -> None:
        rt = self._rt
        try:
            while True:
                await self._election.rest(rt, self._pause(rt))
                ran = await run_once(
                    self._schedules.engine, rt, self._election, self.key, self._loader, self._options
                )
                if ran is not None:
                    self._note(ran)
                with self._lock:
                    if not self._again or self._election.stopped:
                        self._busy = False
                        return
                    self._again = False
        except BaseException:
            with self._lock:
                self._busy = self._again = False
            raise

    def _pause(self, rt: Runtime) -> float:
        """Seconds until this process begins: not all processes in one instant, and not all keys of one crontab.

        The user's ``spread`` counts from the moment that is due, by a share that all processes compute alike: one at
        random in each would have the quickest of many begin always at once.
        """
        small = rt.random() * self._spread
        if not self._late:
            return small
        due = self._election.times.latest(int(rt.now() * 1e6) + EARLY)
        share = share_of(f"{self._schedules.engine.state.namespace}:{self.key}", due)
        return max(0.0, due / 1e6 + share * self._late - rt.now()) + small

    def _note(self, ran: Ran) -> None:
        with self._lock:
            self.last_run = datetime.fromtimestamp(ran.at, UTC)
            if not ran.did:
                self.skipped += 1
                return
            self.runs += 1
            self.failures += ran.error is not None
            self.last_error = ran.error

    async def end(self, rt: Runtime, timeout: float) -> None:
        """After `cancel`: waits for what is under way."""
        if current_load() is not None:
            return  # closed from inside of a loader, which would wait for itself: `end_jobs` tells what still runs
        for _ in range(max(1, math.ceil(timeout / 0.005))):
            if not self._busy or not self._can_end():
                break
            await rt.sleep(0.005)
        if not self._busy:
            return
        if self._work is not None:
            self._work.cancel()
        if self._can_end():
            error = TimeoutError(f"still running {timeout:g} s after close was called")
            self._schedules.engine.state.hub.emit(BackgroundFailed(f"refresh of {self.key}", error))

    def _can_end(self) -> bool:
        """Waiting is of use: not where the work is on a loop that stopped, or that this very call holds up."""
        if self._rt.name != "asyncio" or self._home is None:
            return True
        thread, alive = self._home
        return alive() and thread != threading.get_ident()


class Schedules:
    """All schedules of one cache: one scheduler for threads, one for each event loop, from the first use on."""

    def __init__(self, engine: Engine, threads: Runtime, aio: Runtime) -> None:
        self.engine, self.threads, self.aio = engine, threads, aio
        self._refreshes: list[Refresh] = []
        self.after_fork()
        _ALL.add(self)

    def after_fork(self) -> None:
        """In a forked child: the parent's schedulers run in the parent."""
        self._lock = threading.Lock()
        self._schedulers: dict[Any, Any] = {}
        for refresh in self._refreshes:
            refresh.after_fork()

    def add(
        self,
        rt: Runtime,
        every: Seconds | str | None,
        key: str,
        loader: Callable[[], Any],
        options: Options,
        *,
        cron: str | None,
        timezone: str | tzinfo,
        now: bool,
        spread: Seconds,
        scheduler: Any,
        lease_given: bool,
    ) -> Refresh:
        """Starts a schedule; what the arguments mean stands at ``refresh_every``."""
        check_key(key)
        name = f"{self.engine.state.namespace}:{key}"
        if rt.name == "threads" and is_async(loader):
            named = getattr(loader, "__qualname__", repr(loader))
            raise ConfigurationError(
                f"{named} is async: await cache.arefresh_every(…) instead of refresh_every"
            )
        times, interval = make_times(every, cron, timezone, name)
        late = _late(spread, every, interval)
        asyncio = rt.name == "asyncio"
        try:
            from cachewright.schedule_apscheduler import check_scheduler
        except ImportError as error:
            raise MissingExtraError("refresh_every", "scheduler") from error
        if scheduler is not None:
            check_scheduler(scheduler, asyncio=asyncio)
        if not lease_given:
            # A process that dies in a run is to be replaced within the interval, as far as that can be.
            options = replace(options, lease=min(options.lease, max(1.0, interval / 2)))
        election = Election(self.engine, key, times, options.lease)
        small = min(interval * SPREAD, LONGEST_SPREAD)
        refresh = Refresh(self, rt, key, loader, options, election, small, late)
        refresh._scheduler = scheduler
        self.arm(refresh)
        if now:
            refresh.fire()
        return refresh

    def arm(self, refresh: Refresh) -> None:
        """Gives the refresh its job in a running scheduler."""
        from cachewright.schedule_apscheduler import add_job

        with self._lock:
            scheduler = refresh._scheduler if refresh._scheduler is not None else self._own(refresh._rt)
            if refresh not in self._refreshes:
                self._refreshes.append(refresh)
        refresh._job = add_job(scheduler, refresh.fire, refresh._election.times, f"refresh of {refresh.key}")

    def _own(self, rt: Runtime) -> Any:
        from cachewright.schedule_apscheduler import is_over, make_scheduler

        asyncio = rt.name == "asyncio"
        home = rt.whoami()[1] if asyncio else None  # equal for all callers on one loop
        self._schedulers = {at: one for at, one in self._schedulers.items() if not is_over(one)}
        if home not in self._schedulers:
            self._schedulers[home] = make_scheduler(asyncio=asyncio)
        return self._schedulers[home]

    def forget(self, refresh: Refresh) -> None:
        """The refresh was cancelled."""
        with self._lock:
            if refresh in self._refreshes:
                self._refreshes.remove(refresh)

    def _cancel_all(self) -> tuple[list[Refresh], list[Any]]:
        with self._lock:
            refreshes, self._refreshes = self._refreshes, []
            schedulers, self._schedulers = list(self._schedulers.values()), {}
        for refresh in refreshes:
            refresh.cancel()
        return refreshes, schedulers

    async def close_part(self, rt: Runtime, timeout: float) -> None:
        """Ends all schedules, and waits for runs under way, at most ``timeout`` seconds in all."""
        refreshes, schedulers = self._cancel_all()
        for scheduler in schedulers:
            _shut(scheduler)
        ends = rt.monotonic() + timeout
        for refresh in refreshes:
            await refresh.end(rt, max(0.0, ends - rt.monotonic()))

    def abandon(self) -> None:
        """The cache was collected. Not here and now: a collection may come while any lock is held, in any thread."""
        if self._refreshes or self._schedulers:
            BACKGROUND.submit(self._abandon)

    def _abandon(self) -> None:
        for scheduler in self._cancel_all()[1]:
            _shut(scheduler)


def _late(spread: Seconds, every: Seconds | str | None, interval: float) -> float:
    late = seconds("spread", spread, zero=True) or 0.0
    if not isinstance(every, str) and every is not None and late >= interval:
        raise ConfigurationError(
            f"spread={spread!r}: expected less than the interval of {interval:g} seconds"
        )
    return late


def _shut(scheduler: Any) -> None:
    from cachewright.schedule_apscheduler import shut

    shut(scheduler)


_ALL: weakref.WeakSet[Schedules] = weakref.WeakSet()


def _after_fork() -> None:
    for schedules in _ALL:
        schedules.after_fork()


os.register_at_fork(after_in_child=_after_fork)
