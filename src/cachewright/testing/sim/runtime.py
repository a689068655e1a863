"""The port of the core, over a `World`: what threads and asyncio are elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from inspect import isawaitable
from random import Random
from typing import Any, Literal, TypeVar

from cachewright.testing.sim.world import Dead, Process, Task, Waiter, suspend

T = TypeVar("T")

__all__ = ["SimRuntime"]


class SimJob:
    """Background work as a task."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._number: int = task.process.locals.get("jobs", 0) + 1
        task.process.locals["jobs"] = self._number

    def __hash__(self) -> int:
        return self._number  # not its address: jobs are kept in sets, whose order must be that of the seed

    def cancel(self) -> None:
        self._task.cancel()

    def done(self) -> bool:
        return self._task.done

    def goes_on(self) -> bool:
        return not self._task.done


class SimRuntime:
    """See `runtime.base.Runtime`. One for each life of a process."""

    name: Literal["sim"] = "sim"

    def __init__(self, process: Process) -> None:
        self.process, self.world = process, process.world
        self._life = process.life
        self._outside = Random(f"{self.world.seed}/{process.name}")
        self.now, self.monotonic = process.now, process.monotonic

    def check(self) -> Task:
        """The running task, if this process is still alive.

        Raises:
            Dead: it is not.
        """
        task = self.world.current
        if task is None or task.done or not self.process.alive or self._life != self.process.life:
            raise Dead
        return task

    def random(self) -> float:
        task = self.world.current
        return (task.random if task is not None else self._outside).random()

    def new_id(self) -> bytes:
        return self.world.ids.randbytes(8)

    def whoami(self) -> tuple[int | None, Callable[[], bool]]:
        task = self.check()
        return None, lambda: not task.done

    async def sleep(self, seconds: float) -> None:
        task = self.check()
        await suspend(lambda _: task.wake_after(seconds + task.hurry()))

    @staticmethod
    def waiter() -> Waiter:
        return Waiter()

    async def wait(self, waiter: Any, timeout: float | None) -> bool:
        task = self.check()
        if waiter.is_set():
            return True

        def arrange(_: Task) -> None:
            waiter.add(task.waker())
            if timeout is not None:
                task.wake_after(timeout, False)

        rang: bool = await suspend(arrange)
        return rang or waiter.is_set()

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return await result if isawaitable(result) else result

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        await self.sleep(0)
        return function(*args)

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> SimJob:
        self.check()
        return SimJob(self.process.spawn(work(), name, inherit=True))

    def every(
        self, seconds: float, tick: Callable[[], Awaitable[float | None]], name: str, *, errand: bool = False
    ) -> SimJob:
        self.check()

        async def beats() -> None:
            pause: float | None = seconds
            while pause is not None:
                await self.sleep(pause)
                pause = await tick()

        return SimJob(self.process.spawn(beats(), name, inherit=True))
