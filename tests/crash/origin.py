"""The database that write-behind saves to: SQLite or PostgreSQL, with a journal of every save beside the rows.

The journal is written in the transaction of the save, so it says in which order the saves of a key took effect.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

__all__ = ["Journaled", "Origin"]

# One transaction's view of a row: id, value (None: deleted), sequence.
Row = tuple[str, str | None, int]

_TABLES = (
    "CREATE TABLE IF NOT EXISTS item(id TEXT PRIMARY KEY, value TEXT, seq BIGINT)",
    "CREATE TABLE IF NOT EXISTS journal(n {serial}, id TEXT, value TEXT, seq BIGINT, kept INTEGER, pid INTEGER)",
)
_PUT = (
    "INSERT INTO item(id, value, seq) VALUES(?, ?, ?) "
    "ON CONFLICT(id) DO UPDATE SET value = excluded.value, seq = excluded.seq"
)
# The deleted row stays, or an older save that comes late would find nothing to compare itself with.
_PUT_NEWER = _PUT + " WHERE item.seq < excluded.seq"
_NOTE = "INSERT INTO journal(id, value, seq, kept, pid) VALUES(?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Journaled:
    """One save: ``kept`` is False where an ordered saver refused it."""

    id: str
    value: str | None
    sequence: int
    kept: bool
    pid: int


class Origin:
    """A database by URL: ``sqlite:////absolute/path`` or ``postgresql://…``. One connection a thread.

    Args:
        url: which.
        at: told ``"begin"`` before every save, ``"before"`` its commit and ``"after"`` that; a crash may be made of it.
    """

    def __init__(self, url: str, at: Callable[[str], None] = lambda point: None) -> None:
        self.url, self._at = url, at
        self._postgres = url.startswith("postgresql://")
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._open: list[Any] = []

    def create(self) -> None:
        """Makes the tables."""
        serial = "BIGSERIAL PRIMARY KEY" if self._postgres else "INTEGER PRIMARY KEY"
        with self._transaction() as run:
            for table in _TABLES:
                run(table.format(serial=serial))

    # -- what a repository is given --------------------------------------------------------------------------------

    def load(self, id: str) -> str | None:
        """The value of a row; None where there is none."""
        return self.load_many([id]).get(id)

    def load_many(self, ids: Sequence[str]) -> dict[str, str | None]:
        """The values of those that there are."""
        with self._transaction() as run:
            marks = ", ".join("?" * len(ids))
            rows = run(f"SELECT id, value FROM item WHERE id IN ({marks})", *ids).fetchall()
        return {id: value for id, value in rows if value is not None}

    def save(self, rows: Sequence[Row], *, ordered: bool) -> None:
        """Writes rows in one transaction: plainly, or each only over a lower sequence."""
        self._at("begin")
        with self._transaction() as run:
            for id, value, sequence in rows:
                if ordered:
                    kept = run(_PUT_NEWER, id, value, sequence).rowcount > 0
                elif value is None:
                    run("DELETE FROM item WHERE id = ?", id)
                    kept = True
                else:
                    run(_PUT, id, value, sequence)
                    kept = True
                # after the row's lock is taken: so the journal is in the order of the commits
                run(_NOTE, id, value, sequence, int(kept), os.getpid())
            self._at("before")
        self._at("after")

    # -- what the checks ask ---------------------------------------------------------------------------------------

    def rows(self) -> dict[str, str]:
        """What stands there."""
        with self._transaction() as run:
            return dict(run("SELECT id, value FROM item WHERE value IS NOT NULL").fetchall())

    def journal(self) -> list[Journaled]:
        """All saves, in the order in which they took effect."""
        with self._transaction() as run:
            found = run("SELECT id, value, seq, kept, pid FROM journal ORDER BY n").fetchall()
        return [Journaled(id, value, sequence, bool(kept), pid) for id, value, sequence, kept, pid in found]

    def saves(self) -> int:
        """How many saves there have been."""
        with self._transaction() as run:
            return int(run("SELECT coalesce(max(n), 0) FROM journal").fetchone()[0])

    def newest(self, id: str) -> int:
        """The highest sequence that was saved of a row; 0 where none was."""
        with self._transaction() as run:
            row = run("SELECT coalesce(max(seq), 0) FROM journal WHERE id = ? AND kept = 1", id).fetchone()
        return int(row[0])

    # -- connections -----------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[Callable[..., Any]]:
        db = self._connection()
        try:
            if self._postgres:
                yield lambda sql, *values: db.execute(sql.replace("?", "%s"), values)
            else:
                db.execute("BEGIN IMMEDIATE")
                yield lambda sql, *values: db.execute(sql, values)
            db.commit()
        except BaseException:
            # what it stands in nobody knows: the next one begins anew
            self._mine.db = None
            with suppress(Exception):
                db.close()
            raise

    def _connection(self) -> Any:
        db, pid = getattr(self._mine, "db", None), getattr(self._mine, "pid", 0)
        if db is not None and pid == os.getpid():  # a forked child leaves its parent's connection alone
            return db
        if self._postgres:
            import psycopg

            db = psycopg.connect(self.url, connect_timeout=5)
        else:
            path = self.url.removeprefix("sqlite:///")
            db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=OFF")  # processes are killed here, not the machine
        self._mine.db, self._mine.pid = db, os.getpid()
        with self._lock:
            self._open.append(db)
        return db

    def close(self) -> None:
        """Closes the connections of all threads; the next use opens new ones."""
        self._mine = threading.local()
        with self._lock:
            open_, self._open = self._open, []
        for db in open_:
            db.close()
