"""Write-behind's `put` on the SQLite buffer beside one raw durable commit per write."""

from __future__ import annotations

import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from benchmarks.harness import Result, per_second
from cachewright import Cache, WriteBehind

PAYLOAD = {"name": "x" * 160}


BLOB = b"x" * 189
INSERT = "INSERT OR REPLACE INTO t VALUES (?, ?)"


def _in_threads(threads: int, writes: int, write: Callable[[int], None]) -> float:
    def work(start: int) -> None:
        for n in range(start, writes, threads):
            write(n)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return writes / (time.perf_counter() - started)


def _raw(folder: Path, writes: int, threads: int = 1) -> float:
    """One durable commit per write; threads take turns on one connection, which beats a connection each by far."""
    turn = threading.Lock()
    with closing(
        sqlite3.connect(folder / "raw.db", isolation_level=None, check_same_thread=False)
    ) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE IF NOT EXISTS t (key TEXT PRIMARY KEY, value BLOB)")

        def write(n: int) -> None:
            with turn:
                database.execute(INSERT, (f"key:{n % 500}", BLOB))

        return _in_threads(threads, writes, write)


def _ours(folder: Path, threads: int, writes: int) -> float:
    with Cache(namespace="bench") as cache:
        how = WriteBehind(buffer=f"sqlite:///{folder}/buffer{threads}.db", flusher="none")
        rows = cache.repository("row", load=lambda row: None, save=lambda row, value: None, writes=how)
        rows.put(0, PAYLOAD)

        rate = _in_threads(threads, writes, lambda n: rows.put(n % 500, PAYLOAD))
        rows.flush(30)
    return rate


def _run(threads: int, writes: int, budget: float) -> Result:
    rounds = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            rounds.append((_raw(folder, 1_500), _raw(folder, 1_500, threads), _ours(folder, threads, writes)))
    raw, contended, ours = (sorted(column)[1] for column in zip(*rounds, strict=True))
    what = f"write-behind put, SQLite buffer, {threads} thread{'s' if threads > 1 else ''}"
    rates = {"raw durable commits": raw, "cachewright": ours}
    if threads > 1:
        rates[f"raw, {threads} threads"] = contended
    return per_second(what, rates, "raw durable commits", budget=budget)


def one() -> Result:
    return _run(1, 1_500, 0.7)


def many() -> Result:
    return _run(32, 12_000, 5.0)


RUNS = {"behind-1": one, "behind-32": many}
