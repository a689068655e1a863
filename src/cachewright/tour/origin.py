"""The tour's database: what is slow and true behind the cache. SQLite in a folder of its own, or PostgreSQL.

Its queries are slow on purpose, inside the database: SQLite is given a function that sleeps, PostgreSQL has one.
"""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from cachewright.behind.types import Write
from cachewright.errors import MissingExtraError, NotSaved

__all__ = ["Database", "Origin", "User", "marks"]

READ_SECONDS = 0.06
WRITE_SECONDS = 0.04
ROWS = 3000
_FIRST = (
    "Ada",
    "Alan",
    "Barbara",
    "Charles",
    "Donald",
    "Edsger",
    "Frances",
    "Grace",
    "John",
    "Katherine",
    "Leslie",
)
_LAST = (
    "Allen",
    "Backus",
    "Dijkstra",
    "Hopper",
    "Johnson",
    "Knuth",
    "Lamport",
    "Liskov",
    "Lovelace",
    "Turing",
)
_CITIES = ("Bergen", "Bologna", "Kyoto", "Lagos", "Lima", "Porto", "Tartu", "Valparaíso")


@dataclass(frozen=True)
class User:
    """A row."""

    id: int
    name: str
    city: str
    credit: int


class Database(Protocol):
    """What the scenes' repositories are made of: the origin, or one that holds a caller up."""

    def load_user(self, user_id: int) -> User:
        """One user."""

    def save_user(self, user_id: int, user: User) -> None:
        """Saves one."""


class _Marks(threading.local):
    """What the call that runs on this thread has caused so far."""

    def __init__(self) -> None:
        self.seen: set[str] = set()


marks = _Marks()


class Origin:
    """The database.

    Args:
        url: a SQLite file's path, or ``postgresql://…``.
        table: the name of its table.
        now: seconds since the scene began, for the time line.
    """

    def __init__(self, url: str, table: str = "tour_users") -> None:
        self.url, self.table = url, table
        self.postgres = url.startswith(("postgres://", "postgresql://"))
        self.read_seconds, self.write_seconds = READ_SECONDS, WRITE_SECONDS
        self._lock = threading.Lock()
        self._down = False
        self.now: Callable[[], float] = time.monotonic
        self.reset()

    @property
    def title(self) -> str:
        """What it is, without credentials."""
        return "PostgreSQL" if self.postgres else f"SQLite {sqlite3.sqlite_version}"

    def reset(self) -> None:
        """Counters to nothing, before a scene."""
        self.loads = self.failures = 0
        self.queries: list[tuple[float, float, str]] = []
        """(when, how long, ``"load"``, ``"save"`` or ``"error"``) of every query."""

    # ------------------------------------------------------------------------------------ what the scenes call

    def load_user(self, user_id: int) -> User:
        """One user, slowly.

        Raises:
            LookupError: there is none.
        """
        found = self.load_users([user_id])
        if not found:
            raise LookupError(f"there is no user {user_id}")
        return found[user_id]

    def load_users(self, ids: Sequence[int]) -> dict[int, User]:
        """Many users, as slowly as one."""
        holes = ", ".join([self._hole] * len(ids))
        rows = self._run(
            f"SELECT id, name, city, credit FROM {self.table}, (SELECT {self._sleep}) AS slowly WHERE id IN ({holes})",
            [self.read_seconds, *ids],
            "load",
        )
        return {row[0]: User(*row) for row in rows}

    def save_user(self, user_id: int, user: User, write: Write | None = None) -> None:
        """Saves a user; the database refuses a credit below zero.

        Raises:
            NotSaved: it did, so nothing was changed.
        """
        hole, later = self._hole, ""
        values: list[Any] = [
            user_id,
            user.name,
            user.city,
            user.credit,
            0 if write is None else write.sequence,
        ]
        if write is not None:  # an older state than the one that is there is refused
            later = f" WHERE {self.table}.sequence < excluded.sequence"
        self._run(f"SELECT {self._sleep}", [self.write_seconds], "save")
        try:
            self._run(
                f"INSERT INTO {self.table} (id, name, city, credit, sequence) VALUES ({', '.join([hole] * 5)}) "
                f"ON CONFLICT (id) DO UPDATE SET name = excluded.name, city = excluded.city, "
                f"credit = excluded.credit, sequence = excluded.sequence{later}",
                values,
                "",
            )
        except self._refused as error:
            raise NotSaved(str(error).splitlines()[0]) from error

    def delete_user(self, user_id: int) -> None:
        """Deletes a user."""
        self._run(f"DELETE FROM {self.table} WHERE id = {self._hole}", [user_id], "save")

    def peek(self, user_id: int) -> User | None:
        """The row as it stands: quick and not counted, to compare the cache with."""
        statement = f"SELECT id, name, city, credit FROM {self.table} WHERE id = {self._hole}"
        rows = self._run(statement, [user_id], "")
        return User(*rows[0]) if rows else None

    @contextmanager
    def down(self) -> Iterator[None]:
        """Meanwhile the database cannot be reached."""
        self._down = True
        try:
            yield
        finally:
            self._down = False

    # ------------------------------------------------------------------------------------------- underneath

    def create(self) -> None:
        """Makes and fills the table."""
        draw = random.Random(2)
        people = [
            (n, f"{draw.choice(_FIRST)} {draw.choice(_LAST)}", draw.choice(_CITIES), 0 if n == 7 else draw.randrange(1, 500))
            for n in range(1, ROWS + 1)
        ]  # fmt: skip
        with closing(self._connect()) as connection:
            cursor = connection.cursor()
            cursor.execute(
                f"CREATE TABLE {self.table} (id INTEGER PRIMARY KEY, name TEXT NOT NULL, city TEXT NOT NULL, "
                f"credit INTEGER NOT NULL CHECK (credit >= 0), sequence BIGINT NOT NULL DEFAULT 0)"
            )
            holes = ", ".join([self._hole] * 4)
            cursor.executemany(f"INSERT INTO {self.table} (id, name, city, credit) VALUES ({holes})", people)
            connection.commit()

    def drop(self) -> None:
        """Takes the table away again."""
        with closing(self._connect()) as connection:
            connection.cursor().execute(f"DROP TABLE IF EXISTS {self.table}")
            connection.commit()

    @property
    def _hole(self) -> str:
        return "%s" if self.postgres else "?"

    @property
    def _sleep(self) -> str:
        return "pg_sleep(%s)" if self.postgres else "sleep(?)"

    @property
    def _refused(self) -> type[Exception]:
        if self.postgres:
            import psycopg

            return psycopg.IntegrityError
        return sqlite3.IntegrityError

    def _connect(self) -> Any:
        if self.postgres:
            try:
                import psycopg
            except ImportError as error:
                raise MissingExtraError("a PostgreSQL database", "postgres") from error
            # A port where nobody listens: the error is the client's own.
            return psycopg.connect(self.url, port=1) if self._down else psycopg.connect(self.url)
        # A path that does not exist: the error is the database's own.
        path = self.url + "/gone" if self._down else self.url
        connection = sqlite3.connect(path, timeout=20)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.create_function("sleep", 1, time.sleep)
        return connection

    def _run(self, statement: str, values: Sequence[Any], kind: str) -> list[tuple[Any, ...]]:
        began = self.now()
        if kind:
            marks.seen.add(kind)
        try:
            with closing(self._connect()) as connection:
                cursor = connection.cursor()
                try:
                    cursor.execute(statement, values)
                    rows = cursor.fetchall() if cursor.description else []
                    connection.commit()
                except BaseException:
                    # The error's traceback keeps the cursor alive, and SQLite the lock until both are gone.
                    connection.rollback()
                    raise
        except Exception:
            self._count(began, "error" if kind else "")
            raise
        self._count(began, kind)
        return rows

    def _count(self, began: float, kind: str) -> None:
        if not kind:
            return
        with self._lock:
            self.loads += kind == "load"
            self.failures += kind == "error"
            self.queries.append((began, self.now() - began, kind))
