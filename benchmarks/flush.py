"""How fast a flusher empties a SQLite buffer into SQLite and PostgreSQL, beside a plain bulk upsert of the same rows."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, per_second
from cachewright import Cache, Write, WriteBehind
from cachewright.testing.servers import PostgresServer

RECORDS = 100_000
BATCH = 1_000
VALUE = "x" * 160
SQLITE = "INSERT INTO row VALUES(?, ?) ON CONFLICT(id) DO UPDATE SET value = excluded.value"
POSTGRES = "INSERT INTO row VALUES(%s, %s) ON CONFLICT(id) DO UPDATE SET value = excluded.value"

Upsert = Callable[[Iterable[tuple[int, str]]], None]


@contextmanager
def _sqlite() -> Iterator[Upsert]:
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(sqlite3.connect(f"{folder}/origin.db", check_same_thread=False)) as database,
    ):
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE row(id INTEGER PRIMARY KEY, value TEXT)")

        def upsert(rows: Iterable[tuple[int, str]]) -> None:
            with database:
                database.executemany(SQLITE, rows)

        yield upsert


@contextmanager
def _postgres() -> Iterator[Upsert]:
    import psycopg

    with PostgresServer() as server, psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE row(id INTEGER PRIMARY KEY, value TEXT)")
        connection.commit()

        def upsert(rows: Iterable[tuple[int, str]]) -> None:
            with connection.cursor() as cursor:
                cursor.executemany(POSTGRES, list(rows))
            connection.commit()

        yield upsert


def _bulk(upsert: Upsert) -> float:
    started = time.perf_counter()
    for start in range(0, RECORDS, BATCH):
        upsert((n, VALUE) for n in range(start, start + BATCH))
    return RECORDS / (time.perf_counter() - started)


def _flush(upsert: Upsert, **savers: Any) -> float:
    """Fills a buffer, then times `flush` alone."""
    with tempfile.TemporaryDirectory() as folder, Cache(namespace="bench") as cache:
        how = WriteBehind(
            buffer=f"sqlite:///{Path(folder)}/buffer.db",
            flusher="none",
            batch_size=BATCH,
            max_dirty=RECORDS,
        )
        rows = cache.repository("row", load=lambda row: None, writes=how, **savers)
        for start in range(0, RECORDS, BATCH):
            rows.put_many(dict.fromkeys(range(start, start + BATCH), VALUE))
        started = time.perf_counter()
        rows.flush()
        return RECORDS / (time.perf_counter() - started)


def _compare(name: str, origin: Any) -> Result:
    with origin() as upsert:

        def save(id: int, value: str) -> None:
            upsert([(id, value)])

        def save_many(writes: list[Write]) -> None:
            upsert((write.id, write.value) for write in writes)

        rates = {
            "plain bulk upsert": _bulk(upsert),
            "cachewright": _flush(upsert, save_many=save_many),
            "cachewright, save one by one": _flush(upsert, save=save),
        }
    title = f"flush of {RECORDS:,} dirty records to {name}, batches of {BATCH:,}"
    result = per_second(title, rates, "plain bulk upsert")
    for row in result.rows:
        row.note = f"{1 / row.seconds:,.0f} records/s"
    return result


def to_sqlite() -> Result:
    return _compare("SQLite", _sqlite)


def to_postgres() -> Result:
    return _compare("PostgreSQL", _postgres)


RUNS = {"flush-sqlite": to_sqlite, "flush-postgres": to_postgres}
