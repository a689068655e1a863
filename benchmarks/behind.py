"""Write-behind's `put` on the SQLite buffer beside one raw durable commit per write."""

from __future__ import annotations

import sqlite3
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.harness import Result, per_second
from cachewright import Cache, WriteBehind

PAYLOAD = {"name": "x" * 160}


def _raw(folder: Path, writes: int) -> float:
    database = sqlite3.connect(folder / "raw.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE IF NOT EXISTS t (key TEXT PRIMARY KEY, value BLOB)")
    blob = b"x" * 189
    started = time.perf_counter()
    for n in range(writes):
        database.execute("INSERT OR REPLACE INTO t VALUES (?, ?)", (f"key:{n % 500}", blob))
    rate = writes / (time.perf_counter() - started)
    database.close()
    return rate


def _ours(folder: Path, threads: int, writes: int) -> float:
    with Cache(namespace="bench") as cache:
        how = WriteBehind(buffer=f"sqlite:///{folder}/buffer{threads}.db", flusher="none")
        rows = cache.repository("row", load=lambda row: None, save=lambda row, value: None, writes=how)
        rows.put(0, PAYLOAD)

        def work(start: int) -> None:
            for n in range(start, writes, threads):
                rows.put(n % 500, PAYLOAD)

        workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        rate = writes / (time.perf_counter() - started)
        rows.flush(30)
    return rate


def _run(threads: int, writes: int, budget: float) -> Result:
    rounds = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as name:
            rounds.append((_raw(Path(name), 1_500), _ours(Path(name), threads, writes)))
    raw, ours = (sorted(column)[1] for column in zip(*rounds, strict=True))
    what = f"write-behind put, SQLite buffer, {threads} thread{'s' if threads > 1 else ''}"
    return per_second(
        what, {"raw durable commits": raw, "cachewright": ours}, "raw durable commits", budget=budget
    )


def one() -> Result:
    return _run(1, 1_500, 0.7)


def many() -> Result:
    return _run(32, 12_000, 5.0)


RUNS = {"behind-1": one, "behind-32": many}
