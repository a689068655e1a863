"""Writing into a store behind the library's back. The planted pickle only makes a folder."""

from __future__ import annotations

import os
import pickle
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from benchmarks.conformance.model import REDIS
from benchmarks.conformance.stage import Variant

LONGEST_HEADER = 160


class _Makes:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.folder),)


def marker(variant: Variant) -> Path:
    """The folder that must not come into being."""
    return variant.place.folder.with_suffix(".executed")


def pickled(folder: Path) -> bytes:
    return pickle.dumps(_Makes(folder), protocol=4)


def read(variant: Variant) -> dict[bytes, bytes]:
    """All plain values of Redis."""
    server = variant.redis
    found = {}
    for key in server.ask("KEYS", "*"):  # type: ignore[union-attr]
        if server.ask("TYPE", key) == b"string":  # type: ignore[arg-type]
            found[key] = server.ask("GET", key)  # type: ignore[arg-type]
    return found  # type: ignore[return-value]


def write(variant: Variant, key: bytes, value: bytes) -> None:
    variant.redis.ask("SET", key, value)


def planted(variant: Variant, payload: bytes, only: bytes | None = None) -> Iterator[None]:
    """Plants the payload in every stored value in turn: bare, and behind each beginning of what stood there."""
    if variant.place.kind == REDIS:
        for key, raw in read(variant).items():
            if only is None or key == only:
                for size in range(min(len(raw), LONGEST_HEADER) + 1):
                    write(variant, key, raw[:size] + payload)
                    yield
        return
    for path in sorted(path for path in variant.place.folder.rglob("*") if path.is_file()):
        if path.read_bytes()[:15] == b"SQLite format 3":
            yield from _in_sqlite(path, payload)
        elif path.suffix not in (".db-wal", ".db-shm"):
            yield from _in_file(path, payload)


def _in_file(path: Path, payload: bytes) -> Iterator[None]:
    raw = path.read_bytes()
    for size in range(min(len(raw), LONGEST_HEADER) + 1):
        path.write_bytes(raw[:size] + payload)
        yield


def _in_sqlite(path: Path, payload: bytes) -> Iterator[None]:
    """Every column that holds bytes, keys left out."""
    database = sqlite3.connect(path, isolation_level=None, timeout=5)
    tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        quoted = f'"{table}"'
        information = database.execute(f'PRAGMA table_info("{table}")').fetchall()
        names = [f'"{row[1]}"' for row in information if row[5]] or ["rowid"]
        same = " AND ".join(f"{name} = ?" for name in names)
        for column in [f'"{row[1]}"' for row in information if not row[5] and row[1] != "key"]:
            where = f"FROM {quoted} WHERE typeof({column}) = 'blob'"
            for raw, *row in database.execute(f"SELECT {column}, {', '.join(names)} {where}").fetchall():
                change = f"UPDATE {quoted} SET {column} = ? WHERE {same}"
                for size in range(min(len(raw), LONGEST_HEADER) + 1):
                    database.execute(change, (raw[:size] + payload, *row))
                    yield
                database.execute(change, (raw, *row))
    database.close()
