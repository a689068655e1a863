"""How a buffer file takes new states: what several callers bring at once goes in together."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachewright.behind.buffers.base import NewRecord
from cachewright.behind.buffers.sqlite_jobs import Outcome
from cachewright.behind.buffers.sqlite_schema import HELD, TOMBSTONE, VALUE, Scope, upsert
from cachewright.errors import BufferFull

__all__ = ["Append", "Appends"]


@dataclass(frozen=True, slots=True)
class Append:
    """What one caller brings."""

    records: Sequence[NewRecord]
    delay: float
    overflow: bool
    clock: Callable[[], float]


class Appends:
    """One scope's door.

    Args:
        path: of the file, for messages.
        scope: whose records.
        max_records: most records of this scope.
        max_bytes: most bytes of this scope.
    """

    def __init__(self, path: Path, scope: str, max_records: int, max_bytes: int) -> None:
        self._path, self._scope = path, scope
        self._max_records, self._max_bytes = max_records, max_bytes

    def take(self, db: sqlite3.Connection, appends: list[Append]) -> list[Outcome]:
        """Takes what several callers bring, in one look and (of a key only the newest) one stroke."""
        keys = [new.key for work in appends for new in work.records]
        scope, have = Scope.with_sizes(db, self._scope, keys)
        rows: dict[str, tuple[Any, ...]] = {}
        outcomes: list[Outcome] = []
        for work in appends:
            now = work.clock()  # inside the transaction: the order of sequences is the order of commits
            try:
                self._admit(scope, have, work)
            except BufferFull as full:
                outcomes.append((None, full))
                continue
            sequences = []
            for new in work.records:
                sequence, size = scope.sequence(now), new.size
                state = TOMBSTONE if new.payload is None else VALUE
                rows[new.key] = (
                    scope.id, new.key, new.id, state, new.payload, new.codec, new.codec_flags, sequence, size,
                    now, now + work.delay,
                )  # fmt: skip
                have[new.key] = (state, size)
                sequences.append(sequence)
            outcomes.append((sequences, None))
        upsert(db, list(rows.values()))
        scope.keep(db)
        return outcomes

    def _admit(self, scope: Scope, have: dict[str, tuple[int, int]], work: Append) -> None:
        """Counts the records in, or refuses before anything has changed."""
        fresh, more = 0, 0
        for new in work.records:
            found = have.get(new.key)
            fresh += found is None or found[0] == HELD  # held: it has no state that could be replaced
            more += new.size - (found[1] if found else 0)
        too_many = fresh > 0 and scope.records + fresh > self._max_records
        overflows = work.overflow and not fresh
        too_large = more > 0 and scope.bytes + more > self._max_bytes and not overflows
        if too_many or too_large:
            raise BufferFull(
                f"the buffer {self._path} of {self._scope!r} is full: {scope.records} records of at most "
                f"{self._max_records}, {scope.bytes} bytes of at most {self._max_bytes}, and {more} more to come; "
                f"wait for the flusher, look at its dead letters, or raise max_dirty or max_dirty_bytes"
            )
        scope.records += fresh
        scope.bytes += more
