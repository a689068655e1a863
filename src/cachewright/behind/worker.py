"""A process that flushes: all write-behind repositories of a cache, each on a thread or, with async savers, as a task.

It drives the same `Flusher.step` as every other flusher, so it may run beside them: claims keep two from saving one key.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from cachewright.behind.backoff import pause_after
from cachewright.behind.operating import BufferedWrite, Operating
from cachewright.events import BackgroundFailed, DeadLetter, Event
from cachewright.runtime.base import Runtime, Waiter, drive
from cachewright.runtime.interrupts import cancellations, ends_us
from cachewright.runtime.loop import LoopThread
from cachewright.runtime.workers import BACKGROUND

__all__ = ["Left", "Worker"]

_LONGEST_PAUSE = 2.0  # between rounds while the buffer itself fails
_LOOK_EVERY = 0.25  # counting a large buffer costs more than saving a batch of it
_LISTED = 1000


@dataclass(slots=True)
class Left:
    """What a repository's buffer still held when the worker ended.

    Attributes:
        name: the repository.
        count: how many are dirty; None where the buffer did not say.
        writes: of these, at most the first 1,000.
        died: keys that this worker gave up, with their errors.
        error: why the buffer could not be asked.
    """

    name: str
    count: int | None = 0
    writes: list[BufferedWrite] = field(default_factory=list)
    died: dict[str, str] = field(default_factory=dict)
    error: str | None = None


class _Bench:
    """One repository at work."""

    def __init__(self, part: Operating) -> None:
        self.part = part
        self.rt: Runtime = part.aio if part.flusher.savers.is_async else part.threads
        self.ended = threading.Event()
        self.drained = False
        self.crash: BaseException | None = None
        self.died: dict[str, str] = {}
        self._since: float | None = None
        self._bell: Waiter | None = None
        self._counted = 0.0
        self._unsubscribe = part.flusher.events.subscribe(self._hear)

    def _hear(self, event: Event) -> None:
        if isinstance(event, DeadLetter) and event.repository == self.part.name and len(self.died) < _LISTED:
            self.died[event.key] = event.error

    def drain(self) -> None:
        """From here on: hurry, and end once all that was dirty by now is saved."""
        if self._since is None:
            self._since = self.rt.now()
        bell = self._bell
        if bell is not None:
            bell.set()

    async def run(self) -> None:
        """Until it is drained."""
        try:
            await self._rounds(self.rt)
            self.drained = True
        except BaseException as error:  # whatever ended it, its process must hear of that
            self.crash = error
            if not isinstance(error, Exception):
                raise
        finally:
            self._unsubscribe()
            self.ended.set()

    async def _rounds(self, rt: Runtime) -> None:
        flusher = self.part.flusher
        poll = flusher.options.poll
        failures = 0
        while True:
            self._bell = bell = rt.waiter()  # before the look: who rings after it is heard
            hurry, before = self._since is not None, cancellations(rt)
            try:
                done = await flusher.step(rt, hurry=hurry)
                if hurry and await self._is_drained(rt, force=not done):
                    return
                failures = 0
                if done:
                    continue
                due = await flusher.buffer.next_due(rt, hurry=hurry)
                pause = poll if due is None else min(poll, max(0.001, due - rt.now()))
            except BaseException as error:  # the buffer is away, say: it stays at it
                if ends_us(rt, error, before):
                    raise
                failures += 1
                flusher.events.emit(BackgroundFailed(f"flushing {self.part.name} in this worker", error))
                pause = pause_after(failures, poll, poll if hurry else _LONGEST_PAUSE, rt.random())
            await rt.wait(bell, pause)

    async def _is_drained(self, rt: Runtime, *, force: bool) -> bool:
        """Whether nothing is dirty that was so when the draining began: others may go on writing meanwhile."""
        assert self._since is not None
        if not force and rt.monotonic() - self._counted < _LOOK_EVERY:
            return False
        self._counted = rt.monotonic()
        oldest = (await self.part.flusher.buffer.stats(rt)).oldest
        return oldest is None or oldest > self._since


class Worker:
    """Flushes some repositories in this process. `hosted` must have been on when they were made.

    Args:
        parts: what to flush.
    """

    def __init__(self, parts: Sequence[Operating]) -> None:
        self._benches = [_Bench(part) for part in parts]
        self._loop: LoopThread | None = None

    def start(self) -> None:
        """Begins. Plain savers have a thread for each repository, async ones share one event loop."""
        for bench in self._benches:
            if bench.rt.name == "threads":
                name = f"cachewright worker {bench.part.name}"
                threading.Thread(target=lambda work=bench.run: drive(work()), name=name, daemon=True).start()
            else:
                self._loop = self._loop or LoopThread("cachewright worker loop")
                self._loop.run(bench.run)

    @property
    def loop(self) -> LoopThread | None:
        """Where async savers run, if there are some."""
        return self._loop

    def drain(self) -> None:
        """Has it save what is dirty by now, settling included, and end. Later writes may stay."""
        for bench in self._benches:
            bench.drain()

    def wait(self, timeout: float) -> bool:
        """Whether it ended, or a part of it crashed, within so many seconds."""
        for bench in self._benches:
            if not bench.ended.is_set():
                bench.ended.wait(timeout)
                break
        return self.crash is not None or all(bench.ended.is_set() for bench in self._benches)

    @property
    def crash(self) -> tuple[str, BaseException] | None:
        """The repository whose flushing ended by an error that no retry is meant for, and that error."""
        for bench in self._benches:
            if bench.crash is not None:
                return bench.part.name, bench.crash
        return None

    def left(self, timeout: float = 2.0) -> list[Left]:
        """What is not saved, of each repository that is not drained, and what this worker gave up.

        Args:
            timeout: seconds that a buffer has to answer.
        """
        found = []
        for bench in self._benches:
            left = Left(bench.part.name, died=dict(bench.died))
            if not bench.drained:
                _look(bench.part, left, timeout)
            if not bench.drained or left.died:
                found.append(left)
        return found


def _look(part: Operating, left: Left, timeout: float) -> None:
    """Asks on a thread: a buffer that is away must not keep the process beyond its deadline."""
    done = threading.Event()
    left.count, left.error = None, f"the buffer did not answer within {timeout:g} s"

    def run() -> None:
        try:
            writes = drive(part.writes(part.threads, _LISTED))
            left.count = drive(part.stats(part.threads)).buffer.dirty
            left.writes, left.error = writes, None
        except Exception as error:
            left.error = f"{type(error).__name__}: {error}"
        finally:
            done.set()

    BACKGROUND.submit(run)
    done.wait(timeout)
