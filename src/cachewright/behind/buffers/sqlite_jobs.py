"""Work for one SQLite file: what a caller wants done, and which pieces of it are done in one go."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cachewright.runtime.base import Waiter

__all__ = ["Job", "Outcome", "Together", "runs"]

Outcome = tuple[Any, BaseException | None]
Together = Callable[[sqlite3.Connection, list[Any]], list[Outcome]]


class Job:
    """One caller's work and what became of it.

    Args:
        generation: of the file's connections when it was asked for: it grows with every close.
        work: what is to be done.
        together: how neighbours of its kind are done in one go.
    """

    __slots__ = ("bell", "ended", "error", "generation", "result", "together", "work")

    def __init__(self, generation: int, work: Any, together: Together | None = None) -> None:
        self.generation, self.work, self.together = generation, work, together
        self.bell: Waiter | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = False

    def end(self, result: Any, error: BaseException | None) -> None:
        self.result, self.error, self.ended = result, error, True
        bell = self.bell  # after `ended`: who puts one up looks there once more before it waits
        if bell is not None:
            bell.set()


def runs(batch: Sequence[Job]) -> Iterator[list[Job]]:
    """Neighbours of one kind; each of the others alone."""
    run: list[Job] = []
    for job in batch:
        if run and (job.together is None or job.together != run[0].together):
            yield run
            run = []
        run.append(job)
    yield run
