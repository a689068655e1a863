"""What a buffer file looks like inside: tables, the one statement that takes a new state, and rows as records."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from msgspec import json

from cachewright.behind.buffers.base import RETRY_NEWER, STATES, Record
from cachewright.behind.buffers.sqlite_file import SQLiteFile
from cachewright.errors import BufferUnavailable
from cachewright.keys import shorten

__all__ = [
    "COLUMNS",
    "HELD",
    "NEXT_DUE",
    "RETRY_NEWER",
    "TOMBSTONE",
    "VALUE",
    "Row",
    "Scope",
    "as_record",
    "chunks",
    "claimed",
    "marks",
    "shared_file",
    "upsert",
]

Row = tuple[Any, ...]
"""Values of `COLUMNS`, which stand in the order of a record's fields."""

VERSION = 1
# last: the highest sequence ever given; it outlives the records, or a key deleted and written again would start over.
# records, bytes: of this scope, so that the bounds cost no scan. Times are wall-clock seconds.
SCHEMA = """
CREATE TABLE scope(
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, last INTEGER NOT NULL DEFAULT 0,
  records INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0);
CREATE TABLE record(
  scope INTEGER NOT NULL, key TEXT NOT NULL, id BLOB NOT NULL, state INTEGER NOT NULL, payload BLOB,
  codec INTEGER NOT NULL, codec_flags INTEGER NOT NULL, sequence INTEGER NOT NULL, size INTEGER NOT NULL,
  first_dirty REAL NOT NULL, tries INTEGER NOT NULL DEFAULT 0, last_error TEXT, not_before REAL NOT NULL,
  token BLOB, deadline REAL NOT NULL DEFAULT 0, claimed REAL NOT NULL DEFAULT 0, holder TEXT,
  suspect INTEGER NOT NULL DEFAULT 0, settling INTEGER NOT NULL DEFAULT 0, dead INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY(scope, key));
CREATE INDEX due ON record(scope, dead, not_before);
CREATE INDEX claims ON record(scope, token, holder, deadline) WHERE token IS NOT NULL"""

VALUE, TOMBSTONE, HELD = 0, 1, 2
COLUMNS = (
    "key, id, state, payload, codec, codec_flags, sequence, first_dirty, tries, last_error, not_before, "
    "token, deadline, holder, suspect, settling, dead"
)
_TEXT, _BLOB, _INT, _REAL = (str,), (bytes,), (int,), (float,)
_NULL = (type(None),)
_KINDS: tuple[tuple[type, ...], ...] = (
    _TEXT, _BLOB, _INT, _BLOB + _NULL, _INT, _INT, _INT, _REAL, _INT, _TEXT + _NULL, _REAL,
    _BLOB + _NULL, _REAL, _TEXT + _NULL, _INT, _INT, _INT,
)  # fmt: skip
_SOUND = frozenset(itertools.product(*_KINDS))  # 16 of them
_NEW = "scope, key, id, state, payload, codec, codec_flags, sequence, size, first_dirty, not_before"  # now, now + delay
_UPSERT = f"""
INSERT INTO record({_NEW}) VALUES{{rows}}
ON CONFLICT(scope, key) DO UPDATE SET
  id = excluded.id, state = excluded.state, payload = excluded.payload, codec = excluded.codec,
  codec_flags = excluded.codec_flags, sequence = excluded.sequence, size = excluded.size,
  first_dirty = CASE WHEN dead OR state = 2 THEN excluded.first_dirty ELSE first_dirty END,
  not_before = CASE
    WHEN dead OR state = 2 OR token IS NOT NULL THEN excluded.not_before
    WHEN tries > 0 THEN min(not_before, max(excluded.not_before, excluded.first_dirty + {RETRY_NEWER}))
    ELSE min(not_before, excluded.not_before) END,
  suspect = suspect OR settling, settling = 0, tries = 0, dead = 0,
  last_error = CASE WHEN dead THEN NULL ELSE last_error END
"""

_HERE = "scope = (SELECT id FROM scope WHERE name = :name) AND dead = 0"
NEXT_DUE = f"""
SELECT
  (SELECT not_before FROM record WHERE {_HERE} AND token IS NULL ORDER BY not_before LIMIT 1),
  (SELECT min(max(not_before, deadline)) FROM record WHERE {_HERE} AND token IS NOT NULL),
  :hurry AND EXISTS (SELECT 1 FROM record WHERE {_HERE} AND token IS NULL AND tries = 0 AND settling = 0)
"""


@lru_cache(maxsize=16)
def _upsert(rows: int) -> str:
    row = f"({marks(_NEW.split(','))})"
    return _UPSERT.format(rows=", ".join([row] * rows))


def upsert(db: sqlite3.Connection, rows: Sequence[Sequence[object]]) -> None:
    """Writes new states, each key's at most once. Few sizes of statement, or each would be compiled anew."""
    start = 0
    while start < len(rows):
        size = min(64, 1 << (len(rows) - start).bit_length() - 1)
        db.execute(_upsert(size), [value for row in rows[start : start + size] for value in row])
        start += size


_SIZES = """
SELECT id, last, records, bytes,
  (SELECT json_group_array(json_array(key, state, size)) FROM record WHERE scope = scope.id AND key IN ({keys}))
FROM scope WHERE name = ?
"""


def _damaged(what: str) -> BufferUnavailable:
    return BufferUnavailable(
        f"the buffer holds a damaged record ({what}): move the file away, or delete that row with the sqlite3 program"
    )


def as_record(row: Row) -> Record:
    """One row of `COLUMNS`, which stand in the order of the record's fields.

    Raises:
        BufferUnavailable: a column holds what none of ours ever writes (SQLite itself checks no types).
    """
    if tuple(map(type, row)) not in _SOUND or not 0 <= row[2] < len(STATES):
        raise _damaged(f"its key reads {shorten(row[0])}")
    fields: list[Any] = list(row)
    fields[2] = STATES[row[2]]
    fields[14:] = map(bool, row[14:])
    return Record(*fields)


def claimed(row: Row, token: bytes, deadline: float, holder: str) -> Record:
    """A free row as it will stand once it is claimed."""
    return as_record((*row[:11], token, deadline, holder, *row[14:]))


@dataclass(slots=True)
class Scope:
    """Whose records; what is counted of them."""

    id: int
    last: int
    records: int
    bytes: int

    @classmethod
    def of(cls, db: sqlite3.Connection, name: str) -> Scope:
        """As it stands; made at its first use."""
        ask = "SELECT id, last, records, bytes FROM scope WHERE name = ?"
        row = db.execute(ask, (name,)).fetchone()
        if row is None:
            db.execute("INSERT INTO scope(name) VALUES(?)", (name,))
            row = db.execute(ask, (name,)).fetchone()
        return cls(*row)

    @staticmethod
    def moment(value: Any) -> Any:
        """A time or a count that SQLite computed of columns; raises `BufferUnavailable` where those held text."""
        if value is not None and type(value) not in (int, float):
            raise _damaged(f"a time reads {shorten(value)}")
        return value

    @classmethod
    def with_sizes(
        cls, db: sqlite3.Connection, name: str, keys: Sequence[str]
    ) -> tuple[Scope, dict[str, tuple[int, int]]]:
        """It, and state and size of each record that is there.

        As one row: each statement, and each row of a cursor, costs a switch of threads.
        """
        found: dict[str, tuple[int, int]] = {}
        scope: Scope | None = None
        for some in chunks(keys):
            row = db.execute(_SIZES.format(keys=marks(some)), (*some, name)).fetchone()
            if row is None:
                break  # a new scope has no records
            scope = cls(*row[:4])
            rows: list[tuple[str, int, int]] = json.decode(row[4])
            found.update((key, (state, size)) for key, state, size in rows)
        return scope or cls.of(db, name), found

    def keep(self, db: sqlite3.Connection) -> None:
        """Writes it back, in the transaction that read it."""
        db.execute(
            "UPDATE scope SET last = ?, records = ?, bytes = ? WHERE id = ?",
            (self.last, self.records, self.bytes, self.id),
        )

    def sequence(self, now: float) -> int:
        """The next one: a clock that goes back must not bring old numbers back."""
        self.last = max(self.last + 1, int(now * 1_000_000))
        return self.last


def marks(values: Sequence[object]) -> str:
    """As many question marks."""
    return ", ".join("?" * len(values))


def chunks(keys: Sequence[str], size: int = 500) -> Iterable[Sequence[str]]:
    """Few enough for one statement's variables."""
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


_files: dict[Path, SQLiteFile] = {}
_files_lock = threading.Lock()


def shared_file(path: Path, synchronous: str, busy: float) -> SQLiteFile:
    """One `SQLiteFile` per path and process, so that repositories on one file share its transactions."""
    full = path.parent.resolve() / path.name  # the file itself is never followed if it is a link
    with _files_lock:
        file = _files.get(full)
        if file is None:
            file = _files[full] = SQLiteFile(full, SCHEMA, VERSION, synchronous=synchronous, busy=busy)
        return file
