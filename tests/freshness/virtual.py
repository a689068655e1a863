"""Both faces of the library in virtual time: real threads and a real event loop whose clock jumps when all of them wait.

Threads pass a baton: one runs at a time, the others stand at their gates, and `Time.run` hands the baton to whoever is due
next. So a minute takes no time, and the same program always takes the same way.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import selectors
import threading
from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import Any

from cachewright.runtime.aio import AioRuntime
from cachewright.runtime.base import drive
from cachewright.runtime.threads import ThreadRuntime

EPOCH = 1_800_000_000.0


class Time:
    """A clock that moves when everybody waits, and the threads that wait for it."""

    def __init__(self) -> None:
        self.time = 0.0
        self._heap: list[tuple[float, int, Hand, int]] = []
        self._count = 0
        self._baton = threading.Semaphore(0)
        self._here = threading.local()

    def now(self) -> float:
        return EPOCH + self.time

    def monotonic(self) -> float:
        return 1000.0 + self.time

    def start(self, work: Callable[[], Any], after: float = 0.0) -> Hand:
        """Runs ``work`` on a thread of its own, ``after`` so many seconds."""
        hand = Hand(self)

        def run() -> None:
            self._here.hand = hand
            hand.gate.acquire()
            try:
                work()
            finally:
                hand.done = True
                self._baton.release()

        hand.thread = threading.Thread(target=run, daemon=True)
        hand.thread.start()
        self.wake(hand, after)
        return hand

    def wake(self, hand: Hand, after: float = 0.0) -> None:
        """Lets it go on, ``after`` so many seconds, from where it waits now."""
        self._count += 1
        heapq.heappush(self._heap, (self.time + after, self._count, hand, hand.turn))

    def me(self) -> Hand:
        hand: Hand = self._here.hand
        return hand

    def wait(self, seconds: float | None) -> None:
        """Waits until somebody wakes this thread, or for so long."""
        me = self.me()
        me.turn += 1
        if seconds is not None:
            self.wake(me, seconds)
        self._baton.release()
        me.gate.acquire()
        if me.interrupt is not None:
            error, me.interrupt = me.interrupt, None
            raise error

    def run(self, until: float) -> None:
        """Lets everybody go on up to that time."""
        while self._heap and self._heap[0][0] <= until:
            at, _, hand, turn = heapq.heappop(self._heap)
            if hand.done or turn != hand.turn:
                continue
            self.time = max(self.time, at)
            hand.turn += 1
            hand.gate.release()
            assert self._baton.acquire(timeout=30), "a thread waits for something else than virtual time"
        self.time = until


class Hand:
    """A thread that may run when it has the baton."""

    def __init__(self, time: Time) -> None:
        self._time = time
        self.gate = threading.Semaphore(0)
        self.turn = 0
        self.done = False
        self.interrupt: BaseException | None = None
        self.thread: threading.Thread

    def throw(self, error: BaseException) -> None:
        """Raises ``error`` where it waits, as a signal handler does."""
        if not self.done:
            self.interrupt = error
            self._time.wake(self)


class Bell:
    """A `Waiter`."""

    def __init__(self, time: Time) -> None:
        self._time, self._rung = time, False
        self.waits: Hand | None = None

    def set(self) -> None:
        self._rung = True
        if self.waits is not None:
            self._time.wake(self.waits)

    def is_set(self) -> bool:
        return self._rung


class Job:
    def __init__(self) -> None:
        self.cancelled = self.begun = self.over = False

    def cancel(self) -> None:
        self.cancelled = True

    def goes_on(self) -> bool:
        return not self.done()

    def done(self) -> bool:
        return self.over or (self.cancelled and not self.begun)


class VirtualThreads(ThreadRuntime):
    """`ThreadRuntime` whose pauses, bells and background work go by a `Time`."""

    def __init__(self, time: Time, seed: int) -> None:
        super().__init__(time)
        self.time, self.random = time, Random(seed).random

    async def sleep(self, seconds: float) -> None:
        self.time.wait(seconds)

    def waiter(self) -> Any:  # type: ignore[override]
        return Bell(self.time)

    async def wait(self, waiter: Any, timeout: float | None) -> bool:
        if not waiter.is_set():
            waiter.waits = self.time.me()
            try:
                self.time.wait(timeout)
            finally:
                waiter.waits = None
        rang: bool = waiter.is_set()
        return rang

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> Any:
        job, context = Job(), contextvars.copy_context()

        def run() -> None:
            if not job.cancelled:
                job.begun = True
                context.run(lambda: drive(work()))
            job.over = True

        self.time.start(run)
        return job

    def every(
        self, seconds: float, tick: Callable[[], Awaitable[float | None]], name: str, *, errand: bool = False
    ) -> Any:
        job = Job()

        async def one() -> float | None:
            return await tick()

        def run() -> None:
            pause: float | None = seconds
            while pause is not None:
                self.time.wait(pause)
                pause = None if job.cancelled else drive(one())

        self.time.start(run)
        return job


class _Selector(selectors.DefaultSelector):
    jump: Callable[[float], None]

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found:
            assert timeout is not None, "everybody waits, and nothing will happen any more"
            self.jump(max(timeout, 0.0))
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer; it is the clock of a `Cache` too."""

    def __init__(self) -> None:
        self._virtual = 0.0
        selector = _Selector()
        selector.jump = self._jump
        super().__init__(selector)

    def _jump(self, seconds: float) -> None:
        self._virtual += seconds

    def time(self) -> float:
        return self._virtual

    def now(self) -> float:
        return EPOCH + self._virtual

    def monotonic(self) -> float:
        return 1000.0 + self._virtual


class VirtualTasks(AioRuntime):
    """`AioRuntime` on a `VirtualLoop`."""

    def __init__(self, loop: VirtualLoop, seed: int) -> None:
        super().__init__(loop)
        self.random = Random(seed).random
