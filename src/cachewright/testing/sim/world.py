"""Time, chance and scheduling of a simulation: a heap of events, processes, and tasks driven one step at a time.

A task is a coroutine of the core. At each await point it hands the world a function that arranges its wake-up; between
two such points it runs alone, so the only interleavings are those that the heap decides. Every random number comes from
a stream that belongs to one task of one process: leaving an operation out of a plan does not change the luck of others,
which is what makes failing plans small.
"""

from __future__ import annotations

import contextvars
import heapq
import types
from asyncio import CancelledError
from collections.abc import Callable, Coroutine, Generator
from random import Random
from typing import Any

from cachewright.testing.sim.cues import Cue, Cues
from cachewright.testing.sim.history import History

__all__ = ["EPOCH", "Dead", "Process", "Task", "Waiter", "World", "suspend"]

EPOCH = 1_800_000_000.0
Arrange = Callable[["Task"], None]


class Dead(BaseException):
    """Raised at every await point of a process that has crashed: nothing it still does has an effect."""


@types.coroutine
def suspend(arrange: Arrange) -> Generator[Arrange, Any, Any]:
    """Gives control to the world until what ``arrange`` has arranged wakes the task."""
    return (yield arrange)


class World:
    """One simulation.

    Args:
        seed: decides everything.
        suppressed: names of faults that are not to happen (a minimised run).
    """

    def __init__(self, seed: int | str, suppressed: frozenset[str] = frozenset()) -> None:
        self.seed, self.suppressed = seed, suppressed
        self.time = 0.0
        self.steps = 0
        self.faulty = True  # until the plan is over: then nothing fails any more
        self.history = History(self)
        self.cues = Cues()
        self.strike: Callable[[Cue], None] = lambda cue: None  # brings a cue's disaster
        self.ids = Random(f"{seed}/ids")
        self.current: Task | None = None
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Has ``action`` happen at ``time``."""
        self._count += 1
        heapq.heappush(self._heap, (max(time, self.time), self._count, action))

    def run(self, until: float, finished: Callable[[], bool], max_steps: int) -> bool:
        """Runs until ``finished()``, the time or the number of steps is reached; whether it was finished."""
        while not finished():
            if not self._heap or self._heap[0][0] > until or self.steps >= max_steps:
                if self.steps < max_steps:
                    self.time = max(self.time, until)
                return finished()
            self.time, _, action = heapq.heappop(self._heap)
            self.steps += 1
            action()
        return True

    def allows(self, fault: str) -> bool:
        """Whether a fault of this name may happen; it is noted, so that a minimiser can try without it."""
        if not self.faulty or fault in self.suppressed:
            return False
        self.history.faults.append(fault)
        return True


class Process:
    """A process of the fleet: clocks, tasks, and everything that dies with it."""

    def __init__(self, world: World, name: str, skew: float = 0.0) -> None:
        self.world, self.name, self.skew = world, name, skew
        self.life = 0
        self.alive = True
        self.paused_until = 0.0
        self.tasks: dict[Task, None] = {}
        self._numbers: dict[str, int] = {}
        self.locals: dict[str, Any] = {}  # the cache, repositories, drivers: lost in a crash

    # Clocks

    def now(self) -> float:
        """Its wall clock."""
        return EPOCH + self.world.time + self.skew

    def monotonic(self) -> float:
        """Its monotonic clock."""
        return 1000.0 + self.world.time

    # Tasks

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str, *, inherit: bool = False) -> Task:
        """Starts a task; ``inherit`` copies the context of the running one."""
        number = self._numbers[name] = self._numbers.get(name, 0) + 1
        label = f"{self.name}.{name}" + (f"#{number}" if number > 1 else "")
        task = Task(self, label, coroutine, contextvars.copy_context() if inherit else contextvars.Context())
        self.tasks[task] = None
        task.wake_after(task.hurry())
        return task

    def crash(self) -> None:
        """Ends it at once: no `finally` of it has an effect, its memory is gone. What it has sent may still arrive."""
        self.alive = False
        self.world.history.note(self.name, "CRASHES")
        for task in list(self.tasks):
            task.kill()
        self.tasks.clear()
        self.locals.clear()

    def restart(self) -> None:
        """A new life with empty memory."""
        self.alive, self.life, self.paused_until = True, self.life + 1, 0.0
        self.world.history.note(self.name, "starts anew")

    def pause(self, seconds: float) -> None:
        """Stops it for a while; time goes on for everybody else."""
        self.paused_until = self.world.time + seconds
        self.world.history.note(self.name, f"is paused for {seconds:g} s")


class Task:
    """One coroutine on its way."""

    _count = 0

    def __init__(
        self, process: Process, name: str, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context
    ) -> None:
        self.process, self.name, self.world = process, name, process.world
        self.random = Random(f"{self.world.seed}/{name}/{process.life}")
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._coroutine, self._context = coroutine, context
        self._token = 0  # a wake-up that was arranged for an earlier await point comes too late
        self._cancelled = False
        self._watchers: list[Callable[[], None]] = []
        self._faults = 0

    def hurry(self) -> float:
        """How long a ready task waits for its turn: mostly no time, at times long enough for others to get in."""
        return 0.0 if self.random.random() < 0.7 else self.random.random() * 0.004

    def fault(self, kind: str) -> bool:
        """Whether the fault happens to this task now, by its name."""
        self._faults += 1
        return self.world.allows(f"{self.name}/{self.process.life}/{self._faults}:{kind}")

    # Waking

    def wake_after(self, seconds: float, value: Any = None) -> None:
        """Wakes it at its present await point in so many seconds."""
        token = self._token
        self.world.at(self.world.time + seconds, lambda: self._resume(token, value, None))

    def waker(self) -> Callable[[Any], None]:
        """A function that wakes it with a value, at its present await point only."""
        token = self._token
        return lambda value: self.world.at(
            self.world.time + self.hurry(), lambda: self._resume(token, value, None)
        )

    def cancel(self) -> None:
        """Throws `CancelledError` in at its await point; as in asyncio also where it is about to wake otherwise."""
        if not self.done:
            self._cancelled = True
            token = self._token
            self.world.at(self.world.time, lambda: self._resume(token, None, CancelledError()))

    def kill(self) -> None:
        """Ends it with its process."""
        self.done = True
        self.error = Dead()
        try:
            self._context.run(self._coroutine.close)
        except BaseException as error:  # whatever its handlers make of it: it is dead
            if isinstance(error, KeyboardInterrupt):
                raise

    def when_done(self, action: Callable[[], None]) -> None:
        """Calls ``action`` at its end, however it ends."""
        if self.done:
            action()
        else:
            self._watchers.append(action)

    def _resume(self, token: int, value: Any, error: BaseException | None) -> None:
        if self.done or token != self._token:
            return
        if self.process.paused_until > self.world.time:
            self.world.at(self.process.paused_until, lambda: self._resume(token, value, error))
            return
        self._token += 1
        if self._cancelled:
            self._cancelled, error = False, CancelledError()
        before, self.world.current = self.world.current, self
        try:
            if error is not None:
                arrange = self._context.run(self._coroutine.throw, error)
            else:
                arrange = self._context.run(self._coroutine.send, value)
        except StopIteration as stop:
            self._end(stop.value, None)
        except KeyboardInterrupt:
            raise
        except BaseException as caught:
            self._end(None, caught)
        else:
            arrange(self)
        finally:
            self.world.current = before

    def _end(self, result: Any, error: BaseException | None) -> None:
        self.done, self.result, self.error = True, result, error
        self.process.tasks.pop(self, None)
        for action in self._watchers:
            action()


class Waiter:
    """A bell of the simulated runtime."""

    __slots__ = ("_rang", "_wakers")

    def __init__(self) -> None:
        self._rang = False
        self._wakers: list[Callable[[Any], None]] = []

    def set(self) -> None:
        """Rings."""
        self._rang = True
        wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake(True)

    def is_set(self) -> bool:
        """Whether it was rung."""
        return self._rang

    def add(self, wake: Callable[[Any], None]) -> None:
        """Wakes one more when it rings."""
        self._wakers.append(wake)
