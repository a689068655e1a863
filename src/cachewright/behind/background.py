"""The flusher's work in the background of its process: a daemon thread, or a task where the savers are async."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Protocol

from cachewright.behind.backoff import pause_after
from cachewright.behind.buffers.base import Buffer
from cachewright.behind.types import BehindOptions
from cachewright.events import BackgroundFailed, Hub
from cachewright.runtime.base import Job, Runtime, Waiter, drive
from cachewright.runtime.interrupts import cancellations, ends_us
from cachewright.runtime.threads import THREADS

__all__ = ["Background"]

_LONGEST_PAUSE = 2.0  # between rounds while the buffer, or a shard of it, fails: the others have records of other processes


class _Step(Protocol):
    def __call__(self, rt: Runtime, *, hurry: bool) -> Awaitable[int]: ...


class _Shift:
    """One life of the work, from its start until it is told to end."""

    __slots__ = ("alive", "bell", "job", "over", "thread")

    def __init__(self, rt: Runtime) -> None:
        self.job: Job | None = None
        self.bell: Waiter | None = None
        self.over = False
        self.thread: int | None = None
        self.alive: Callable[[], bool] | None = None
        if rt.name == "asyncio":
            self.thread, self.alive = rt.whoami()

    def goes_on(self) -> bool:
        """Whether it works, or will once something is due. A loop that stopped keeps its tasks, and runs none of them."""
        stands = self.alive is not None and not self.alive()
        return not self.over and not stands and self.job is not None and not self.job.done()

    def end(self) -> None:
        """Has it end after the round that it is at."""
        self.over = True
        if self.bell is not None:
            self.bell.set()


class Background:
    """At most one life of the work that goes on, in this process.

    Args:
        name: of the work, for people.
        step: one round.
        hurry: whether rounds are not to wait for the coalescing window.
        buffer: the records.
        options: see `BehindOptions`.
        events: where failures are told.
        is_async: whether it needs an event loop.
    """

    def __init__(
        self,
        name: str,
        step: _Step,
        hurry: Callable[[], bool],
        buffer: Buffer,
        options: BehindOptions,
        events: Hub,
        *,
        is_async: bool,
    ) -> None:
        self._name, self._step, self._hurry = name, step, hurry
        self._buffer, self._options, self._events, self._is_async = buffer, options, events, is_async
        self.forget()

    def forget(self) -> None:
        """In a forked child: its parent's work is not there, and another thread may have held the lock."""
        self._lock = threading.Lock()
        self._shift: _Shift | None = None

    def is_running(self) -> bool:
        """Whether it is alive."""
        return self._shift is not None and self._shift.goes_on()

    def is_held_up_by(self, rt: Runtime) -> bool:
        """Whether it is a task of the event loop whose thread a blocking caller is about to hold up."""
        shift = self._shift
        here = rt.name == "threads" and shift is not None and shift.thread == threading.get_ident()
        return here and self.is_running()

    def start(self, rt: Runtime) -> None:
        """Has it running: here, where the loop that it was on stands still or is gone. Harmless when it runs."""
        if self.is_running() or (self._is_async and rt.name == "threads"):
            return  # async savers: the first awaiting call starts it
        with self._lock:
            if self.is_running():
                return
            if self._shift is not None:
                self._shift.end()  # its loop may go on some day
            shift = _Shift(rt) if self._is_async else _Shift(THREADS)
            if self._is_async:
                shift.job = rt.spawn(lambda: self._run(rt, shift), self._name)
            else:
                shift.job = _Thread(lambda: drive(self._run(THREADS, shift)), f"cachewright {self._name}")
            self._shift = shift

    def ring(self) -> None:
        """Wakes it."""
        if (shift := self._shift) is not None and shift.bell is not None:
            shift.bell.set()

    async def stop(self, rt: Runtime) -> None:
        """Ends it, within a second."""
        stands = not self.is_running() or self.is_held_up_by(rt)
        shift, self._shift = self._shift, None
        if shift is None or shift.job is None:
            return
        shift.end()
        deadline = rt.monotonic() + 1.0
        while not shift.job.done():
            if stands or rt.monotonic() > deadline:
                shift.job.cancel()  # a saver that hangs is left behind: its claim ends, and the key is saved again
                break
            await rt.sleep(0.01)
        # A task gives its claims back as it ends, in the buffer, which is about to be closed.
        while self._is_async and not stands and not shift.job.done() and rt.monotonic() < deadline + 0.5:
            await rt.sleep(0.01)

    async def _run(self, rt: Runtime, shift: _Shift) -> None:
        failures = 0
        while not shift.over:
            shift.bell = bell = rt.waiter()  # before the look: what is appended after it rings
            hurry, before = self._hurry(), cancellations(rt)
            try:
                if await self._step(rt, hurry=hurry):
                    continue
                due = await self._buffer.next_due(rt, hurry=hurry)
                poll = self._options.poll
                pause = poll if due is None else min(poll, max(0.001, due - rt.now()))
                failures = 0
            except BaseException as error:
                if ends_us(rt, error, before):
                    raise
                failures += 1
                self._events.emit(BackgroundFailed(self._name, error))
                pause = pause_after(failures, self._options.poll, _LONGEST_PAUSE, rt.random())
            if not shift.over:
                await rt.wait(bell, pause)


class _Thread:
    """A daemon thread as a `Job`: it may live as long as the process, so it takes no place in a pool."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._thread = threading.Thread(target=work, name=name, daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Nothing can stop a thread; the flusher's flag does."""

    def goes_on(self) -> bool:
        """Whether it lives."""
        return not self.done()

    def done(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()
