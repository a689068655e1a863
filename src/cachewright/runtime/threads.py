"""The runtime of the blocking face: every leaf blocks, so nothing ever suspends."""

from __future__ import annotations

import contextvars
import functools
import inspect
import logging
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, TypeVar

from cachewright.errors import ConfigurationError
from cachewright.runtime.base import Clock, drive
from cachewright.runtime.workers import BACKGROUND, HEARTBEATS, TIMER, Due, Workers, waiting

T = TypeVar("T")

__all__ = ["SYSTEM_CLOCK", "THREADS", "SystemClock", "ThreadRuntime", "is_async"]

log = logging.getLogger("cachewright")


class SystemClock:
    """The machine's own time."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


SYSTEM_CLOCK = SystemClock()


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling ``function`` gives something to await (``async def``, a partial or an object of one)."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.iscoroutinefunction(function):
        return True
    call = getattr(function, "__call__", None)  # noqa: B004  an object with an async __call__
    return inspect.iscoroutinefunction(call)


class Bell:
    """A `Waiter` for one thread: `threading.Event` for one waiter, at a fourth of its cost."""

    __slots__ = ("_gate", "_rung")

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._gate.acquire()
        self._rung = False

    def set(self) -> None:
        """See `base.Waiter`."""
        self._rung = True
        try:
            self._gate.release()
        except RuntimeError:  # it stands open: rung before, and nobody has gone through since
            return

    def is_set(self) -> bool:
        """See `base.Waiter`."""
        return self._rung

    def wait(self, timeout: float | None) -> bool:
        """Whether it was rung within so many seconds."""
        if not self._rung:
            self._gate.acquire(timeout=-1 if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX))
        return self._rung


class ThreadJob:
    """Background work on a daemon thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state = "waiting"
        self._due: Due | None = None

    def begin(self) -> bool:
        """The work may start; False where it was cancelled before."""
        with self._lock:
            if self._state == "cancelled":
                return False
            self._state = "running"
            return True

    def waits(self, due: Due) -> None:
        """The next beat is scheduled."""
        with self._lock:
            if self._state != "cancelled":
                self._state, self._due = "waiting", due
                return
            self._running = False
        TIMER.call_off(due)

    def cancel(self) -> None:
        """What has not started never will; what runs is not asked for again."""
        with self._lock:
            if self._state == "done":
                return
            running, self._state = self._state == "running", "cancelled"
            due, self._due = self._due, None
            self._running = running
        if due is not None:
            TIMER.call_off(due)

    def finish(self) -> None:
        """The work has ended."""
        with self._lock:
            self._state = "done"

    _running = False

    def done(self) -> bool:
        """Whether it has ended, or will never begin."""
        return self._state == "done" or (self._state == "cancelled" and not self._running)

    def goes_on(self) -> bool:
        """Whether it has not ended."""
        return not self.done()


class ThreadRuntime:
    """See `base.Runtime`. One instance serves all threads; ``workers`` run what it starts behind its callers."""

    name: Literal["threads"] = "threads"

    def __init__(self, clock: Clock = SYSTEM_CLOCK, workers: Workers = BACKGROUND) -> None:
        self._workers = workers
        self.now = clock.now
        self.monotonic = clock.monotonic
        # Of its own: a program that seeds the module must not seed our jitter.
        self.random = random.Random().random

    @staticmethod
    def new_id() -> bytes:
        return os.urandom(8)

    @staticmethod
    def whoami() -> tuple[int | None, Callable[[], bool]]:
        return None, threading.current_thread().is_alive

    async def sleep(self, seconds: float) -> None:
        with waiting():
            time.sleep(seconds)  # noqa: ASYNC251  blocking is this runtime's meaning

    @staticmethod
    def waiter() -> Bell:
        return Bell()

    async def wait(self, waiter: Any, timeout: float | None) -> bool:
        with waiting():
            rang: bool = waiter.wait(timeout)
        return rang

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if is_async(function):
            raise _needs_async_face(function)
        result = function(*args, **kwargs)
        if inspect.isawaitable(result):
            if isinstance(result, Coroutine):
                result.close()
            raise _needs_async_face(function)
        return result

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        return function(*args)

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> ThreadJob:
        job = ThreadJob()
        context = contextvars.copy_context()

        def run() -> None:
            if not job.begin():
                return
            try:
                context.run(lambda: drive(work()))
            except Exception:
                log.exception("background work %r raised", name)
            finally:
                job.finish()

        self._workers.submit(run)
        return job

    def every(
        self, seconds: float, tick: Callable[[], Awaitable[float | None]], name: str, *, errand: bool = False
    ) -> ThreadJob:
        job, pool = ThreadJob(), BACKGROUND if errand else HEARTBEATS

        async def one() -> float | None:
            return await tick()

        def run() -> None:
            if not job.begin():
                return
            pause = None
            try:
                pause = drive(one())
            except Exception:
                log.exception("heartbeat %r raised", name)
            if pause is not None:
                job.waits(TIMER.after(pause, run, pool))
            else:
                job.finish()

        job.waits(TIMER.after(seconds, run, pool))
        return job


def _needs_async_face(function: Callable[..., Any]) -> ConfigurationError:
    name = getattr(function, "__qualname__", repr(function))
    return ConfigurationError(
        f"{name} is async, and this is the blocking face: call the method of the same name with an "
        f"'a' in front (await cache.aget_or_set(…), await repository.aput(…)), or pass a plain function"
    )


THREADS = ThreadRuntime()
