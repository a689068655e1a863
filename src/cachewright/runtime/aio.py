"""The runtime of the awaiting face. One instance serves every event loop: the loop is the running one.

asyncio is imported where it is used: it costs more than the rest of this library, and who awaits has it already.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
import os
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from cachewright.runtime.base import Clock
from cachewright.runtime.interrupts import mark_pooled
from cachewright.runtime.threads import SYSTEM_CLOCK, is_async
from cachewright.runtime.workers import BACKGROUND, Workers

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

__all__ = ["AIO", "AioRuntime", "AioWaiter"]

log = logging.getLogger("cachewright")


class AioWaiter:
    """A future that any thread may complete."""

    __slots__ = ("_future", "_loop", "_set")

    def __init__(self) -> None:
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()
        self._set = False

    def set(self) -> None:
        import asyncio

        self._set = True
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            self._ring()
        elif not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(self._ring)
            except RuntimeError:  # closed since the check: nobody waits there any more
                return

    def _ring(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def is_set(self) -> bool:
        return self._set

    async def wait(self, timeout: float | None) -> bool:
        import asyncio

        if self._set:
            return True
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._future)
        except TimeoutError:
            return self._set
        return True


class TaskJob:
    """Background work as a tracked task."""

    def __init__(self, task: asyncio.Task[None], loop: asyncio.AbstractEventLoop) -> None:
        self._task, self._loop = task, loop

    def cancel(self) -> None:
        if self._task.done() or self._loop.is_closed():
            return
        try:
            self._loop.call_soon_threadsafe(self._task.cancel)
        except RuntimeError:  # the loop closed since the check, and took the task with it
            return

    def done(self) -> bool:
        return self._task.done() or self._loop.is_closed()

    def goes_on(self) -> bool:
        return not self._task.done() and self._loop.is_running()


class AioRuntime:
    """See `base.Runtime`; ``workers`` run what would block the loop."""

    name: Literal["asyncio"] = "asyncio"

    def __init__(self, clock: Clock = SYSTEM_CLOCK, workers: Workers = BACKGROUND) -> None:
        self._workers = workers
        self.now = clock.now
        self.monotonic = clock.monotonic
        # Of its own: a program that seeds the module must not seed our jitter.
        self.random = random.Random().random
        self._tasks: set[asyncio.Task[None]] = set()  # a task nobody holds is collected half-way

    @staticmethod
    def new_id() -> bytes:
        return os.urandom(8)

    @staticmethod
    def whoami() -> tuple[int | None, Callable[[], bool]]:
        # A loop that stopped with its tasks unfinished may never go on; if it does, the lease judges what it stores.
        import asyncio

        return threading.get_ident(), asyncio.get_running_loop().is_running

    async def sleep(self, seconds: float) -> None:
        import asyncio

        await asyncio.sleep(seconds)

    @staticmethod
    def waiter() -> AioWaiter:
        return AioWaiter()

    async def wait(self, waiter: Any, timeout: float | None) -> bool:
        rang: bool = await waiter.wait(timeout)
        return rang

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if is_async(function):
            return await function(*args, **kwargs)
        result = await self.offload(lambda: function(*args, **kwargs))
        return await result if inspect.isawaitable(result) else result

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        import asyncio

        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()

        def settle(result: T | None, error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(result)  # type: ignore[arg-type]
            elif isinstance(error, StopIteration):
                future.set_exception(RuntimeError("the function raised StopIteration"))
            else:
                future.set_exception(error)

        def run() -> None:
            result, error = None, None
            try:
                result = context.run(function, *args)
            except BaseException as caught:  # handed to the one who awaits
                mark_pooled(caught)
                error = caught
            try:
                loop.call_soon_threadsafe(settle, result, error)
            except RuntimeError:
                log.warning("an event loop closed before work on its behalf had ended")

        self._workers.submit(run)
        return await future

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> TaskJob:
        import asyncio

        async def run() -> None:
            try:
                await work()
            except Exception:
                log.exception("background work %r raised", name)

        loop = asyncio.get_running_loop()
        task = loop.create_task(run(), name=f"cachewright {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return TaskJob(task, loop)

    def every(
        self, seconds: float, tick: Callable[[], Awaitable[float | None]], name: str, *, errand: bool = False
    ) -> BeatJob:
        return BeatJob(self, seconds, tick, name)


class BeatJob:
    """A heartbeat on the leader's loop: a timer, and a task only when the time has come. Most never get there."""

    __slots__ = ("_handle", "_job", "_loop", "_name", "_over", "_rt", "_tick")

    def __init__(
        self, rt: AioRuntime, seconds: float, tick: Callable[[], Awaitable[float | None]], name: str
    ) -> None:
        import asyncio

        self._rt, self._tick, self._name = rt, tick, name
        self._loop = asyncio.get_running_loop()
        self._over = False
        self._job: TaskJob | None = None
        self._handle = self._loop.call_later(seconds, self._due)

    def _due(self) -> None:
        if not self._over:
            self._job = self._rt.spawn(self._beat, self._name)

    async def _beat(self) -> None:
        pause = None
        try:
            pause = await self._tick()
        finally:
            self._over = self._over or pause is None  # also where it raised: nothing is scheduled any more
        if not self._over and pause is not None:
            self._handle = self._loop.call_later(pause, self._due)

    def cancel(self) -> None:
        self._over = True
        self._handle.cancel()
        if self._job is not None:
            self._job.cancel()

    def done(self) -> bool:
        return self._loop.is_closed() or (self._over and (self._job is None or self._job.done()))

    def goes_on(self) -> bool:
        return not self.done() and self._loop.is_running()


AIO = AioRuntime()
