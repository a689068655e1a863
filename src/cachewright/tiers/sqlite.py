"""A SQLite file as a tier: it survives restarts, needs no server, and coordinates the processes of one host.

A slot is one row: header and payload apart, so that control state changes without the payload being sent again, and a
swap is one ``UPDATE … WHERE key = ? AND header = ?`` in a transaction that took the write lock first. Rows past their
life count as absent and are deleted in small batches by later writes.

Under threads an operation runs on the caller's thread; under asyncio on one thread of the tier's own, so that slow
loaders, which share a pool, cannot keep it waiting.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from cachewright.core import slot as transitions
from cachewright.core.slot import Slot, life_of, parse
from cachewright.errors import ConfigurationError, TierTimeout
from cachewright.keys import physical_key
from cachewright.runtime.base import Runtime
from cachewright.runtime.workers import Workers
from cachewright.tiers.base import Generation, Swap, Swapped, Tier
from cachewright.tiers.sqlite_file import SqliteFile

__all__ = ["SqliteTier"]

T = TypeVar("T")
GivenUp = Callable[[], bool]

APPLICATION_ID = 0x63777274  # "cwrt"
VERSION = 1
HAS_ENTRY, HAS_INTENTS = 1, 2
SWEEP_EVERY, SWEEP_ROWS = 16, 100  # writes between sweeps; rows a sweep deletes at most
CLEAR_ROWS = 2000  # rows in one transaction of a clear, so that others get their turn

_SCHEMA = (
    # With rowid: payloads may be large, and a large row in an index tree makes every search read more pages.
    """CREATE TABLE slots (key BLOB PRIMARY KEY NOT NULL, header BLOB NOT NULL, payload BLOB NOT NULL,
        flags INTEGER NOT NULL, ends INTEGER)""",
    "CREATE INDEX slots_ends ON slots (ends) WHERE ends IS NOT NULL",
    """CREATE TABLE generations (tag BLOB PRIMARY KEY NOT NULL, mark BLOB NOT NULL, changed INTEGER NOT NULL)
        WITHOUT ROWID""",
)
_LIVE = "(ends IS NULL OR ends > ?)"
_GET = f"SELECT header, payload FROM slots WHERE key = ? AND {_LIVE}"
_GET_FLAGS = f"SELECT flags FROM slots WHERE key = ? AND {_LIVE}"
_PUT = (
    "INSERT INTO slots (key, header, payload, flags, ends) VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET"
    " header = excluded.header, payload = excluded.payload, flags = excluded.flags, ends = excluded.ends"
)
_SWAP = (
    f"UPDATE slots SET header = ?, payload = ?, flags = ?, ends = ? WHERE key = ? AND header = ? AND {_LIVE}"
)
_SWAP_HEADER = f"UPDATE slots SET header = ?, flags = ?, ends = ? WHERE key = ? AND header = ? AND {_LIVE}"
_SWAP_AWAY = f"DELETE FROM slots WHERE key = ? AND header = ? AND {_LIVE}"
_DELETE = "DELETE FROM slots WHERE key = ?"
_SWEEP = f"DELETE FROM slots WHERE rowid IN (SELECT rowid FROM slots WHERE ends <= ? LIMIT {SWEEP_ROWS})"
_CLEAR = (
    "DELETE FROM slots WHERE rowid IN (SELECT rowid FROM slots WHERE key >= ? AND key < ?"
    f" AND flags < {HAS_INTENTS} LIMIT {CLEAR_ROWS})"
)
_INTENTS = (
    f"SELECT key, header, payload, ends FROM slots WHERE key >= ? AND key < ? AND flags >= {HAS_INTENTS}"
)
_GET_TAG = "SELECT mark, changed FROM generations WHERE tag = ?"
_PUT_TAG = "INSERT OR REPLACE INTO generations (tag, mark, changed) VALUES (?, ?, ?)"


class SqliteTier(Tier):
    """One SQLite file, shared by the threads and processes of one host.

    Args:
        path: the file; it is made on first use (0600, in a folder made 0700).
        namespace: several may share one file.
        timeout: seconds within which every operation ends (a `clear` of many rows takes several such steps).
        name: for stats, events and errors.

    Raises:
        ConfigurationError: here for what can never be a path or timeout; on first use for a file that is a symbolic
            link, lies where everybody may replace it, belongs to another program or to a newer release.
    """

    kind: ClassVar[str] = "sqlite"
    shared: ClassVar[bool] = False

    def __init__(
        self, *, path: str | os.PathLike[str], namespace: str, timeout: float = 0.5, name: str | None = None
    ) -> None:
        text = os.fspath(path)
        super().__init__(name or f"sqlite({text})", namespace)
        if timeout <= 0:
            raise ConfigurationError(f"timeout={timeout!r}: must be more than 0 seconds")
        self.timeout = timeout
        self._file = SqliteFile(
            text,
            name=self.name,
            timeout=timeout,
            application_id=APPLICATION_ID,
            version=VERSION,
            schema=_SCHEMA,
        )
        self._prefix = physical_key(namespace, "k", "").encode()
        self._tag_prefix = physical_key(namespace, "t", "").encode()
        self._workers: Workers | None = None
        self._writes = 0

    def __repr__(self) -> str:
        return f"SqliteTier({self._file.path!r}, namespace={self.namespace!r})"

    # ---------------------------------------------------------------------------------------------- operations

    async def read(
        self, rt: Runtime, keys: Sequence[str], tags: Sequence[str] = ()
    ) -> tuple[dict[str, Slot], dict[str, Generation]]:
        """See `Tier.read`. Slots and generations are of one moment."""
        now = _now_ms(rt)

        def work(connection: sqlite3.Connection) -> tuple[dict[str, Slot], dict[str, Generation]]:
            alone = len(keys) + len(tags) == 1
            if not alone:
                connection.execute("BEGIN")
            slots = {key: slot for key in keys if (slot := self._get(connection, key, now)) is not None}
            generations = {
                tag: found for tag in tags if (found := self._get_tag(connection, tag)) is not None
            }
            if not alone:
                connection.execute("COMMIT")
            return slots, generations

        return await self._run(rt, lambda deadline, _: self._file.read(work, deadline))

    async def swap(self, rt: Runtime, swaps: Sequence[Swap]) -> list[Swapped]:
        """See `Tier.swap`. All in one transaction: one wait for the lock."""
        now = _now_ms(rt)
        return await self._write(rt, lambda connection: [self._swap(connection, swap, now) for swap in swaps])

    async def drop(self, rt: Runtime, keys: Sequence[str]) -> list[bool]:
        """See `Tier.drop`."""
        now = _now_ms(rt)
        return await self._write(
            rt, lambda connection: [self._drop(connection, rt, key, now) for key in keys]
        )

    async def store(self, rt: Runtime, slots: Mapping[str, Slot]) -> list[bool]:
        """See `Tier.store`. A caller who gave up is not served late: see `SqliteFile.write`."""
        now = _now_ms(rt)
        return await self._write(
            rt, lambda connection: [self._store(connection, key, slot, now) for key, slot in slots.items()]
        )

    async def set_generations(
        self, rt: Runtime, marks: Mapping[str, bytes], *, only_missing: bool
    ) -> dict[str, Generation]:
        """See `Tier.set_generations`. The server's time is this host's."""

        def work(connection: sqlite3.Connection) -> dict[str, Generation]:
            now = _now_ms(rt)  # under the lock, so that a later change never has an earlier time
            rows = [
                (self._tag_prefix + tag.encode(), mark, now)
                for tag, mark in marks.items()
                if not only_missing or self._get_tag(connection, tag) is None
            ]
            connection.executemany(_PUT_TAG, rows)
            return {tag: found for tag in marks if (found := self._get_tag(connection, tag)) is not None}

        return await self._write(rt, work)

    async def clear(self, rt: Runtime) -> None:
        """See `Tier.clear`. Each step keeps the deadline; a large file takes many, and others work in between."""
        first, beyond = self._prefix, self._prefix[:-1] + bytes([self._prefix[-1] + 1])

        def contend(connection: sqlite3.Connection) -> None:
            for key, header, payload, ends in connection.execute(_INTENTS, (first, beyond)).fetchall():
                kept = transitions.drop(_parsed(header, payload), nonce=rt.new_id())
                if kept is None:
                    connection.execute(_DELETE, (key,))
                else:
                    connection.execute(_PUT, (key, *_columns(kept), ends))

        await self._write(rt, contend)
        while await self._write(rt, lambda c: c.execute(_CLEAR, (first, beyond)).rowcount) == CLEAR_ROWS:
            pass

    # --------------------------------------------------------------------------- steps inside a transaction

    def _get(self, connection: sqlite3.Connection, key: str, now: int) -> Slot | None:
        row = connection.execute(_GET, (self._prefix + key.encode(), now)).fetchone()
        return _parsed(row[0], row[1]) if row is not None else None

    def _get_tag(self, connection: sqlite3.Connection, tag: str) -> Generation | None:
        row = connection.execute(_GET_TAG, (self._tag_prefix + tag.encode(),)).fetchone()
        if row is None or type(row[0]) is not bytes or len(row[0]) != 8 or type(row[1]) is not int:
            return None
        return Generation(row[0], row[1])

    def _put(self, connection: sqlite3.Connection, key: str, slot: Slot | None, now: int) -> None:
        raw = self._prefix + key.encode()
        if slot is None:
            connection.execute(_DELETE, (raw,))
        else:
            connection.execute(_PUT, (raw, *_columns(slot), _ends(slot, now)))

    def _swap(self, connection: sqlite3.Connection, swap: Swap, now: int) -> Swapped:
        expected, new = swap.expected, swap.new
        if expected is not None:
            where = (self._prefix + swap.key.encode(), expected.header, now)
            if new is None:
                done = connection.execute(_SWAP_AWAY, where)
            elif new.entry is not None and new.entry is expected.entry:
                done = connection.execute(_SWAP_HEADER, (new.header, _flags(new), _ends(new, now), *where))
            else:
                done = connection.execute(_SWAP, (*_columns(new), _ends(new, now), *where))
            if done.rowcount:
                return Swapped(True)
        current = self._get(connection, swap.key, now)
        if current is None or expected is None:
            matches = current is expected
        else:
            # Foreign bytes: their "header" is not the column of that name.
            matches = current.header == expected.header
        if not matches:
            return Swapped(False, current)
        self._put(connection, swap.key, new, now)
        return Swapped(True)

    def _flags_of(self, connection: sqlite3.Connection, key: str, now: int) -> int:
        row = connection.execute(_GET_FLAGS, (self._prefix + key.encode(), now)).fetchone()
        return row[0] if row is not None and type(row[0]) is int else 0

    def _drop(self, connection: sqlite3.Connection, rt: Runtime, key: str, now: int) -> bool:
        flags = self._flags_of(connection, key, now)
        kept = None
        if flags & HAS_INTENTS:
            kept = transitions.drop(self._get(connection, key, now), nonce=rt.new_id())
        self._put(connection, key, kept, now)
        return bool(flags & HAS_ENTRY)

    def _store(self, connection: sqlite3.Connection, key: str, slot: Slot, now: int) -> bool:
        if slot.entry is None:
            raise AssertionError(f"store of {key!r}: the slot holds no entry")
        stored, stands = True, slot
        if self._flags_of(connection, key, now) & HAS_INTENTS:
            stored, stands = transitions.store(self._get(connection, key, now), slot.entry, nonce=slot.nonce)
        self._put(connection, key, stands, now)
        return stored

    # ------------------------------------------------------------------------------------------------- running

    async def _write(self, rt: Runtime, work: Callable[[sqlite3.Connection], T]) -> T:
        self._writes += 1
        sweep = self._writes % SWEEP_EVERY == 0
        now = _now_ms(rt)

        def whole(connection: sqlite3.Connection) -> T:
            result = work(connection)
            if sweep:
                connection.execute(_SWEEP, (now,))
            return result

        return await self._run(rt, lambda deadline, given_up: self._file.write(whole, deadline, given_up))

    async def _run(self, rt: Runtime, operation: Callable[[float, GivenUp], T]) -> T:
        deadline = time.monotonic() + self.timeout
        if rt.name == "threads":
            return operation(deadline, _never)
        if self._workers is None:
            self._workers = Workers("sqlite", 1)
        waiter = rt.waiter()
        results: list[T] = []
        errors: list[BaseException] = []
        gone = False

        def run() -> None:
            try:
                results.append(operation(deadline, lambda: gone))
            except BaseException as error:
                errors.append(error)
            finally:
                waiter.set()

        self._workers.submit(run)
        try:
            # The operation keeps the deadline by itself; a little more tells its own words from a stuck disk.
            rang = await rt.wait(waiter, self.timeout + 0.04)
        finally:
            gone = True
        if not rang:
            raise TierTimeout(self.name, f"no answer within {self.timeout:g} s")
        if errors:
            raise errors[0]
        return results[0]

    def close(self) -> None:
        """Closes every connection: idle ones now, others when their operation ends."""
        self._file.close()

    async def aclose(self, rt: Runtime) -> None:
        """The same off the event loop: the last one to close writes the log back into the file."""
        await rt.offload(self._file.close)

    def after_fork(self) -> None:
        """Nothing is left to do: connections were closed before the fork (see `sqlite_file`)."""

    def describe(self) -> dict[str, Any]:
        """Where the file is and how much room it takes."""
        size = 0
        for suffix in ("", "-wal"):
            try:
                size += os.stat(self._file.path + suffix).st_size
            except FileNotFoundError:
                continue
        return {"path": self._file.path, "bytes": size}


def _parsed(header: object, payload: object) -> Slot:
    # SQLite checks no types: whoever writes to the file with another program may put text into a BLOB column.
    whole = header + payload if isinstance(header, bytes) and isinstance(payload, bytes) else b""
    return parse(whole)


def _never() -> bool:
    return False


def _now_ms(rt: Runtime) -> int:
    return int(rt.now() * 1000)


def _flags(slot: Slot) -> int:
    return (HAS_ENTRY if slot.entry is not None else 0) | (HAS_INTENTS if slot.intents else 0)


def _columns(slot: Slot) -> tuple[bytes, bytes, int]:
    return slot.header, slot.payload, _flags(slot)


def _ends(slot: Slot, now: int) -> int | None:
    life = life_of(slot, now)
    return None if life is None else now + life
