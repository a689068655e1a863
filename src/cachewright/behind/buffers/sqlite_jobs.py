"""Work for one SQLite file: what a caller wants done, and which pieces of it are done in one go."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cachewright.runtime.base import Waiter

__all__ = ["Job", "Outcome", "Together", "end_all", "runs"]

Outcome = tuple[Any, BaseException | None]
Together = Callable[[sqlite3.Connection, list[Any]], list[Outcome]]


class Job:
    """One caller's work and what became of it.

    Args:
        generation: of the file's connections when it was asked for: it grows with every close.
        work: what is to be done.
        together: how neighbours of its kind are done in one go.
        passes_on: its caller will call `leave`, so it may be the one to wake the next.
    """

    __slots__ = (
        "bell", "ended", "error", "generation", "left", "next", "passes_on", "result", "together", "work",
    )  # fmt: skip

    def __init__(
        self, generation: int, work: Any, together: Together | None = None, *, passes_on: bool = False
    ) -> None:
        self.generation, self.work, self.together, self.passes_on = generation, work, together, passes_on
        self.bell: Waiter | None = None
        self.next: Job | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = self.left = False

    def end(self, result: Any, error: BaseException | None) -> None:
        """Its caller may go on with this, and is woken."""
        self.result, self.error, self.ended = result, error, True
        self.wake()

    def wake(self) -> None:
        """Wakes the caller, where it waits."""
        bell = self.bell  # after `ended`: who puts one up looks there once more before it waits
        if bell is not None:
            bell.set()

    def leave(self) -> None:
        """The caller waits no longer, and wakes the next one."""
        self.left = True
        if self.next is not None:
            self.next.wake()


def end_all(batch: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
    """Ends them together. Of those whose callers are threads, each wakes the next.

    Woken all at once, they would fight for Python's lock with each other and with the writer, whose every statement
    gives it up: among 32 threads a commit then takes several times as long.
    """
    first: Job | None = None
    for job, (result, error) in zip(reversed(batch), reversed(outcomes), strict=True):
        if not job.passes_on:
            job.end(result, error)
            continue
        job.next = first
        if not job.left:  # looked at after `next` is set: who leaves from here on sees that
            first = job
        job.result, job.error, job.ended = result, error, True
    if first is not None:
        first.wake()


def runs(batch: Sequence[Job]) -> Iterator[list[Job]]:
    """Neighbours of one kind; each of the others alone."""
    run: list[Job] = []
    for job in batch:
        if run and (job.together is None or job.together != run[0].together):
            yield run
            run = []
        run.append(job)
    yield run
