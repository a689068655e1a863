"""The buffer in a SQLite file: durable on one host, shared by its processes, and by several repositories.

Durable means WAL with ``synchronous=FULL``: it survives the process and the power. See `base` for the rules.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cachewright.behind.buffers.base import Ack, Buffer, BufferStats, Ended, Failure, NewRecord, Record
from cachewright.behind.buffers.holder import is_dead, this_process
from cachewright.behind.buffers.sqlite_appends import Append, Appends
from cachewright.behind.buffers.sqlite_schema import (
    COLUMNS,
    HELD,
    NEXT_DUE,
    RETRY_NEWER,
    Row,
    Scope,
    as_record,
    chunks,
    claimed,
    marks,
    shared_file,
)
from cachewright.errors import NotDirtyError
from cachewright.runtime.base import Runtime

T = TypeVar("T")

__all__ = ["SQLiteBuffer"]


class SQLiteBuffer(Buffer):
    """One repository's part of a buffer file.

    Args:
        path: the file.
        scope: whose records, ``"namespace/repository"``: repositories may share a file.
        max_dirty: most records of this scope.
        max_dirty_bytes: most bytes of this scope.
        synchronous: ``"FULL"`` or ``"NORMAL"``. With NORMAL a power loss can take the last acknowledged writes.
        busy: seconds to wait for another process's transaction.
    """

    _me, _is_dead = staticmethod(this_process), staticmethod(is_dead)  # a simulation has processes of its own

    def __init__(
        self,
        path: Path,
        scope: str,
        *,
        max_dirty: int = 100_000,
        max_dirty_bytes: int = 256 * 1024 * 1024,
        synchronous: str = "FULL",
        busy: float = 10.0,
    ) -> None:
        self.scope = scope
        self._file = shared_file(path, synchronous, busy)
        self._appends = Appends(self._file.path, scope, max_dirty, max_dirty_bytes)
        self.url = f"sqlite:///{self._file.path}"

    @property
    def exists(self) -> bool:
        """Whether the file is there already; asking does not make it."""
        return self._file.path.exists()

    def close(self) -> None:
        self._file.close()

    # -- putting in ---------------------------------------------------------------------------------------------

    async def append(
        self, rt: Runtime, records: Sequence[NewRecord], *, delay: float = 0.0, overflow: bool = False
    ) -> list[int]:
        if not records:
            return []
        work = Append(records, delay, overflow, rt.now)
        sequences: list[int] = await self._file.write_together(rt, work, self._appends.take)
        return sequences

    async def hold(self, rt: Runtime, key: str, token: bytes, life: float) -> int | None:
        def work(db: sqlite3.Connection) -> int | None:
            scope, now = self._scope(db), rt.now()
            sequence = scope.sequence(now)
            done = db.execute(
                "INSERT INTO record(scope, key, id, state, codec, codec_flags, sequence, size, first_dirty, "
                "not_before, token, deadline, claimed, holder) VALUES(?, ?, x'', 2, 0, 0, ?, 0, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT DO NOTHING",
                (scope.id, key, sequence, now, now, token, now + life, now, self._me()),
            )
            scope.keep(db)
            return sequence if done.rowcount else None

        return await self._file.write(rt, work)

    # -- reading ------------------------------------------------------------------------------------------------

    async def read(self, rt: Runtime, keys: Sequence[str]) -> dict[str, Record]:
        def work(db: sqlite3.Connection) -> dict[str, Record]:
            found: dict[str, Record] = {}
            for some in chunks(keys):
                rows = self._select(db, f"state < 2 AND key IN ({marks(some)})", *some)
                found.update((row.key, row) for row in rows)
            return found

        return await self._look(rt, work, {})

    async def next_due(self, rt: Runtime, *, hurry: bool = False) -> float | None:
        def work(db: sqlite3.Connection) -> float | None:
            # one statement: what is released between a look at the free ones and one at the claimed would be in neither
            free, claimed, window = db.execute(NEXT_DUE, {"name": self.scope, "hurry": hurry}).fetchone()
            times = [Scope.moment(time) for time in (free, claimed) if time is not None]
            return min([*times, 0.0] if window else times, default=None)

        return await self._look(rt, work, None)

    async def stats(self, rt: Runtime) -> BufferStats:
        def work(db: sqlite3.Connection) -> BufferStats:
            row = db.execute(
                "SELECT coalesce(sum(NOT dead), 0), coalesce(sum(settling), 0), coalesce(sum(dead), 0), "
                "coalesce(sum(size), 0), min(CASE WHEN dead THEN NULL ELSE first_dirty END) FROM record "
                "WHERE scope = (SELECT id FROM scope WHERE name = ?) AND state < 2",
                (self.scope,),
            ).fetchone()
            return BufferStats(*map(Scope.moment, row))

        return await self._look(rt, work, BufferStats())

    async def records(self, rt: Runtime, limit: int = 1000, *, dead: bool = False) -> list[Record]:
        condition = "state < 2 AND dead = ? ORDER BY first_dirty LIMIT ?"
        return await self._look(rt, lambda db: self._select(db, condition, int(dead), limit), [])

    async def _look(self, rt: Runtime, work: Callable[[sqlite3.Connection], T], empty: T) -> T:
        """Reads; a process that only ever asks makes no file."""
        return await self._file.read(rt, work) if self.exists else empty

    # -- saving -------------------------------------------------------------------------------------------------

    async def claim(
        self,
        rt: Runtime,
        limit: int,
        token: bytes,
        life: float,
        *,
        keys: Sequence[str] | None = None,
        hurry: bool = False,
    ) -> list[Record]:
        # an idle flusher looks often: it must not take the file's write lock for nothing
        look = partial(self._due, rt, limit, keys, hurry)
        if not await self._look(rt, lambda db: any(look(db)), False):
            return []

        def work(db: sqlite3.Connection) -> list[Record]:
            orphan, free = look(db)
            scope, now, me = self._scope(db), rt.now(), self._me()
            if orphan:
                record = as_record(orphan[0])
                db.execute(
                    "UPDATE record SET suspect = suspect OR token IS NOT NULL, "
                    "settling = settling AND token IS NULL, tries = tries + 1, last_error = ?, "
                    "token = ?, deadline = ?, claimed = ?, holder = ? WHERE scope = ? AND key = ?",
                    (
                        f"its flusher {record.holder} died or paused while saving it",
                        token, now + life, now, me, scope.id, record.key,
                    ),
                )  # fmt: skip
                return self._select(db, "token = ?", token)
            # read before anything is changed: a damaged one ends this claim, and all stay free
            records = [claimed(row, token, now + life, me) for row in free]
            for some in chunks([record.key for record in records]):
                db.execute(
                    "UPDATE record SET token = ?, deadline = ?, claimed = ?, holder = ? "
                    f"WHERE scope = ? AND key IN ({marks(some)})",
                    (token, now + life, now, me, scope.id, *some),
                )
            return records

        return await self._file.write(rt, work)

    def _due(
        self, rt: Runtime, limit: int, keys: Sequence[str] | None, hurry: bool, db: sqlite3.Connection
    ) -> tuple[list[Row], list[Row]]:
        """One whose claim is over, or else those that are free."""
        now = rt.now()
        condition = "dead = 0 AND (not_before <= ?" + (" OR (tries = 0 AND settling = 0))" if hurry else ")")
        values: list[object] = [now]
        if keys is not None:
            condition += f" AND key IN ({marks(keys)})"
            values.extend(keys)
        orphans = self._orphans(db, now, condition, values)
        if orphans:
            return orphans, []
        return [], self._rows(
            db, f"{condition} AND token IS NULL ORDER BY not_before LIMIT ?", *values, limit
        )

    def _orphans(
        self, db: sqlite3.Connection, now: float, condition: str, values: Sequence[object]
    ) -> list[Row]:
        """Due records whose claim has expired, or whose holder is a dead process of this host."""
        holders = db.execute(
            "SELECT DISTINCT holder FROM record WHERE token IS NOT NULL AND scope = "
            "(SELECT id FROM scope WHERE name = ?)",
            (self.scope,),
        ).fetchall()
        dead = [holder for (holder,) in holders if self._is_dead(holder)]
        return self._rows(
            db,
            f"{condition} AND token IS NOT NULL AND (deadline <= ? OR holder IN ({marks(dead)})) "
            "ORDER BY not_before LIMIT 1",
            *values, now, *dead,
        )  # fmt: skip

    async def renew(self, rt: Runtime, token: bytes, life: float) -> int:
        def work(db: sqlite3.Connection) -> int:
            renewal = "UPDATE record SET deadline = ? WHERE scope = ? AND token = ?"
            return db.execute(renewal, (rt.now() + life, self._scope(db).id, token)).rowcount

        return await self._file.write(rt, work)

    async def release(self, rt: Runtime, token: bytes) -> None:
        def work(db: sqlite3.Connection) -> None:
            mine = (self._scope(db).id, token)
            db.execute("DELETE FROM record WHERE scope = ? AND token = ? AND state = 2 AND NOT suspect", mine)
            db.execute("UPDATE record SET token = NULL, holder = NULL WHERE scope = ? AND token = ?", mine)

        await self._file.write(rt, work)

    async def acknowledge(self, rt: Runtime, token: bytes, acks: Sequence[Ack], *, settle: float) -> Ended:
        def work(db: sqlite3.Connection) -> Ended:
            scope, now = self._scope(db), rt.now()
            ask = "SELECT key, sequence, suspect, state, size FROM record WHERE scope = ? AND token = ?"
            mine = {key: rest for key, *rest in db.execute(ask, (scope.id, token)).fetchall()}
            lost = {a.key: self._lost(db, scope, a.key, a.unsure, settle) for a in acks if a.key not in mine}
            held = [ack for ack in acks if ack.key in mine]
            gone = [ack for ack in held if self._acknowledge(db, scope, mine[ack.key], ack, now, settle)]
            db.executemany(
                "DELETE FROM record WHERE scope = ? AND key = ?", [(scope.id, ack.key) for ack in gone]
            )
            scope.keep(db)
            return Ended(len(gone), lost=lost)

        return await self._file.write(rt, work)

    @staticmethod
    def _acknowledge(
        db: sqlite3.Connection, scope: Scope, found: list[Any], ack: Ack, now: float, settle: float
    ) -> bool:
        """Whether the record may go."""
        sequence, suspect, state, size = found
        suspect = bool(suspect or ack.unsure)
        here = (scope.id, ack.key)
        if sequence != ack.sequence:  # a newer state came: dirty since, at the earliest, this claim
            db.execute(
                "UPDATE record SET token = NULL, holder = NULL, suspect = ?, first_dirty = max(first_dirty, claimed) "
                "WHERE scope = ? AND key = ?",
                (suspect, *here),
            )
        elif suspect and settle > 0:
            db.execute(
                "UPDATE record SET token = NULL, holder = NULL, suspect = 0, settling = 1, tries = ?, not_before = ? "
                "WHERE scope = ? AND key = ?",
                (int(ack.unsure), now + settle, *here),
            )
        else:
            scope.records -= state != HELD
            scope.bytes -= size
            return True
        return False

    @staticmethod
    def _lost(db: sqlite3.Connection, scope: Scope, key: str, unknown: bool, settle: float) -> bool:
        """A save ended whose claim was taken over; whether the newest state is still there, to be saved after it."""
        here = (scope.id, key)
        ask = "SELECT state, dead, token IS NOT NULL FROM record WHERE scope = ? AND key = ?"
        state, dead, claimed = db.execute(ask, here).fetchone() or (HELD, True, False)
        # what nobody is at yet is saved after this save, which has ended
        if settle > 0 and (claimed or unknown):
            db.execute("UPDATE record SET suspect = 1 WHERE scope = ? AND key = ?", here)
        return state != HELD and not dead

    async def fail(self, rt: Runtime, token: bytes, failures: Sequence[Failure], *, settle: float) -> Ended:
        def work(db: sqlite3.Connection) -> Ended:
            scope, now = self._scope(db), rt.now()
            dead, lost = [], {}
            for one in failures:
                died = self._fail(db, scope, token, one, now, settle)
                if died:
                    dead.append(one.key)
                elif died is None and one.unknown:
                    lost[one.key] = self._lost(db, scope, one.key, True, settle)
            return Ended(dead=tuple(dead), lost=lost)

        return await self._file.write(rt, work)

    def _fail(
        self, db: sqlite3.Connection, scope: Scope, token: bytes, failure: Failure, now: float, settle: float
    ) -> bool | None:
        """Whether it is a dead letter now; None where the claim was taken over, and the key marked suspect by that."""
        here = "WHERE scope = ? AND key = ? AND token = ?"
        mine = (scope.id, failure.key, token)
        found = db.execute(
            f"SELECT sequence, state, suspect, settling, not_before FROM record {here}", mine
        ).fetchone()
        if found is None:
            return None
        sequence, state, suspect, settling, not_before = found
        suspect = bool(suspect or settling or (failure.unknown and settle > 0))
        held, same = state == HELD, sequence == failure.sequence
        if held and not suspect:
            db.execute(f"DELETE FROM record {here}", mine)
            return False
        dead = same and failure.dead and not held
        if held:
            due = now + settle
        elif same:
            due = failure.not_before
        else:
            due = max(not_before, min(failure.not_before, now + RETRY_NEWER))
        db.execute(
            "UPDATE record SET token = NULL, holder = NULL, last_error = ?, suspect = ?, settling = 0, "
            f"tries = CASE WHEN ? THEN tries + ? ELSE 0 END, dead = ?, not_before = ? {here}",
            (failure.error, suspect, same, failure.counts, dead, due, *mine),
        )
        return bool(dead)

    # -- dead letters -------------------------------------------------------------------------------------------

    async def replay(self, rt: Runtime, key: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            done = db.execute(
                "UPDATE record SET dead = 0, tries = 0, not_before = ?, first_dirty = ? "
                "WHERE scope = ? AND key = ? AND dead = 1",
                (rt.now(), rt.now(), self._scope(db).id, key),
            )
            if not done.rowcount:
                raise NotDirtyError(f"no dead letter of the key {key!r} in {self.url} ({self.scope})")

        await self._file.write(rt, work)

    async def discard(self, rt: Runtime, key: str, *, dead_only: bool = True) -> Record:
        def work(db: sqlite3.Connection) -> Record:
            scope = self._scope(db)
            kind = "dead letter" if dead_only else "record without a claim"
            found = self._select(
                db, "key = ? AND token IS NULL AND dead >= ? AND state < 2", key, int(dead_only)
            )
            if not found:
                raise NotDirtyError(f"no {kind} of the key {key!r} in {self.url} ({self.scope})")
            ask = "SELECT size FROM record WHERE scope = ? AND key = ?"
            size = db.execute(ask, (scope.id, key)).fetchone()[0]
            db.execute("DELETE FROM record WHERE scope = ? AND key = ?", (scope.id, key))
            scope.records -= 1
            scope.bytes -= size
            scope.keep(db)
            return found[0]

        return await self._file.write(rt, work)

    # -- pieces -------------------------------------------------------------------------------------------------

    def _scope(self, db: sqlite3.Connection) -> Scope:
        return Scope.of(db, self.scope)

    def _select(self, db: sqlite3.Connection, condition: str, *values: object) -> list[Record]:
        return [as_record(row) for row in self._rows(db, condition, *values)]

    def _rows(self, db: sqlite3.Connection, condition: str, *values: object) -> list[Row]:
        return db.execute(
            f"SELECT {COLUMNS} FROM record WHERE scope = (SELECT id FROM scope WHERE name = ?) AND {condition}",
            (self.scope, *values),
        ).fetchall()
