"""One SQLite file of one process: opened safely, written in shared transactions, sound across fork.

*Group commit*: callers queue their work; who finds the file idle runs all that is queued in one transaction, on its own
thread, so that a lone writer pays for one fsync and no thread switch. While that one waits for the disk, others queue
up and go into the next transaction together, on the writer thread. Work of one kind runs as one piece there: SQLite
lets go of Python's lock in every statement, and among many threads each time costs a switch; for the same reason each
thread that has waited wakes the next.

*Fork*: SQLite keeps its locks per process in memory that fork copies, so a child that opens the same file would trust
locks it does not have. All connections are closed before a fork and opened again after it, in both processes.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cachewright.behind.buffers.sqlite_jobs import Job, Outcome, Together, end_all, runs
from cachewright.behind.buffers.sqlite_path import prepare_path
from cachewright.errors import BufferUnavailable, BufferUnconfirmed, CacheError, ConfigurationError
from cachewright.runtime.base import Runtime

T = TypeVar("T")

__all__ = ["SQLiteFile"]

log = logging.getLogger("cachewright")
MAX_BATCH = 512
MAX_IDLE_READERS = 8
IDLE_SECONDS = 1.0  # after which the writer thread ends
_LIVE: weakref.WeakSet[SQLiteFile] = weakref.WeakSet()
_live_lock = threading.Lock()  # held across a fork


class SQLiteFile:
    """See the module's text.

    Args:
        path: of the file; made when first needed.
        schema: SQL that makes the tables, run once on a new file.
        version: of that schema; a file with another one is refused.
        synchronous: ``"FULL"`` survives power loss; ``"NORMAL"`` survives a process kill only.
        busy: seconds to wait for another process's transaction.
    """

    def __init__(self, path: Path, schema: str, version: int, *, synchronous: str, busy: float) -> None:
        self.path = path
        self._schema, self._version = schema, version
        self.synchronous, self._busy = synchronous, busy
        self.opened_before = False
        self._reset()
        with _live_lock:
            _LIVE.add(self)

    def _reset(self) -> None:
        self._turn = threading.Lock()  # held by the one who writes
        self._queue: deque[Job] = deque()
        self._writer: sqlite3.Connection | None = None
        self._inode = (0, 0)
        self._gate = threading.Condition()
        self._readers: list[sqlite3.Connection] = []
        self._generation = 0  # grows when connections in use must not be used again
        self._reading, self._closed_gate = 0, False
        self._wake = threading.Event()  # of the writer thread
        self._thread: threading.Thread | None = None

    # -- opening ------------------------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        prepare_path(self.path)
        connection: sqlite3.Connection | None = None
        deadline = time.monotonic() + self._busy
        while True:
            try:
                connection = sqlite3.connect(
                    self.path,
                    timeout=self._busy,
                    isolation_level=None,
                    check_same_thread=False,
                    cached_statements=256,
                )
                self._set_up(connection)
                break
            except BaseException as error:
                if connection is not None:
                    connection.close()
                if not isinstance(error, sqlite3.Error):
                    raise
                # switching a new file to WAL answers "locked" at once when two processes do it together
                if "locked" not in str(error) or time.monotonic() >= deadline:
                    raise self._unavailable(error) from error
                time.sleep(0.01)
        if not self.opened_before:
            self.opened_before = True
            log.info("write-behind buffer: %s", self.path)
        return connection

    def _set_up(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={self.synchronous}")
        if connection.execute("PRAGMA user_version").fetchone()[0] == self._version:
            return
        # Only from here on: a look without a lock may see no version, and then the tables of who made it meanwhile.
        connection.execute("BEGIN IMMEDIATE")
        try:
            if not self._version_of(connection):  # not made by another process in the meantime
                for statement in self._schema.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version={self._version}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _version_of(self, connection: sqlite3.Connection) -> bool:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == self._version:
            return True
        if version or connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            raise ConfigurationError(
                f"{self.path} is not a write-behind buffer of this version "
                f"(it says {version}, this is {self._version}): give another path"
            )
        return False

    def _unavailable(self, error: BaseException) -> BufferUnavailable:
        return BufferUnavailable(f"the buffer {self.path} failed, nothing was accepted: {error}")

    # -- writing ------------------------------------------------------------------------------------------------

    async def write(self, rt: Runtime, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs ``work`` in a durable transaction, which it may share with others.

        ``work`` may raise a `CacheError` before it has changed anything: that is its caller's alone.
        """
        return await self._do(rt, self._job(rt, work, None))  # type: ignore[no-any-return]

    async def write_together(self, rt: Runtime, work: Any, together: Together) -> Any:
        """As `write`, where ``together`` takes several callers' work and gives one result or `CacheError` for each."""
        return await self._do(rt, self._job(rt, work, together))

    def _job(self, rt: Runtime, work: Any, together: Together | None) -> Job:
        # a task wakes nobody: its loop may be busy for long
        return Job(self._generation, work, together, passes_on=rt.name == "threads")

    async def _do(self, rt: Runtime, job: Job) -> Any:
        try:
            await self._end_of(rt, job)
        finally:
            job.leave()
        if job.error is not None:
            raise job.error
        return job.result

    async def _end_of(self, rt: Runtime, job: Job) -> None:
        self._queue.append(job)
        if rt.name != "threads":
            self._call_writer()  # nothing of ours may block an event loop
        elif self._turn.acquire(blocking=False):
            try:
                self._commit_queued()
            finally:
                self._turn.release()
            if self._queue:
                self._call_writer()
        # else: whoever holds the turn looks at the queue after giving it back
        if job.ended:
            return
        job.bell = bell = rt.waiter()
        while not job.ended:
            # a fork may have taken the writer thread away: look again now and then
            if not await rt.wait(bell, 1.0) and not job.ended:
                self._call_writer()

    def _call_writer(self) -> None:
        with self._gate:
            if self._thread is None or not self._thread.is_alive():
                self._wake = threading.Event()
                name, args = "cachewright-buffer", (self._wake,)
                self._thread = threading.Thread(target=self._write_on, args=args, name=name, daemon=True)
                self._thread.start()
            self._wake.set()

    def _write_on(self, wake: threading.Event) -> None:
        while True:
            called = wake.wait(IDLE_SECONDS)
            wake.clear()
            while self._queue:
                with self._turn:
                    self._commit_queued()
            with self._gate:
                if self._thread is not threading.current_thread():  # dismissed by a close
                    return
                # Who queues work calls the writer after that: this one is found gone, or the work is seen here.
                if not called and not self._queue:
                    self._thread = None
                    return

    def _commit_queued(self) -> None:
        batch: list[Job] = []
        while self._queue and len(batch) < MAX_BATCH:
            batch.append(self._queue.popleft())
        if not batch:
            return
        try:
            if not self._commit(batch) and len(batch) > 1:
                for job in batch:  # each alone, so that one that cannot be stored fails only itself
                    self._commit([job])
            if all(job.generation < self._generation for job in batch):
                self._let_writer_go()
        finally:
            for job in batch:
                # an interrupt hit this thread: say so rather than let the others wait for ever
                if not job.ended:
                    job.end(None, BufferUnconfirmed(f"the buffer {self.path}: interrupted, outcome unknown"))

    def _commit(self, batch: list[Job]) -> bool:
        outcomes: list[Outcome] = []
        try:
            connection = self._open_writer()
            connection.execute("BEGIN IMMEDIATE")
            for run in runs(batch):
                outcomes += self._work_off(connection, run)
            connection.execute("COMMIT")
        except BaseException as error:
            self._abandon(error)
            if len(batch) == 1 and isinstance(error, Exception):
                ours = isinstance(error, CacheError) or not isinstance(error, sqlite3.Error | OSError)
                batch[0].end(None, error if ours else self._unavailable(error))
            if not isinstance(error, Exception):
                raise
            return False
        end_all(batch, outcomes)
        return True

    @staticmethod
    def _work_off(connection: sqlite3.Connection, run: list[Job]) -> list[Outcome]:
        together = run[0].together
        if together is not None:
            return together(connection, [job.work for job in run])
        try:
            return [(run[0].work(connection), None)]
        except CacheError as error:
            return [(None, error)]

    def _open_writer(self) -> sqlite3.Connection:
        if self._writer is not None:
            try:
                found = os.stat(self.path)
                if (found.st_dev, found.st_ino) == self._inode:
                    return self._writer
            except FileNotFoundError:
                pass
            # what is written to a deleted file is gone with the process, however well it is synced
            log.error(
                "the write-behind buffer %s was deleted or replaced while in use: making it anew", self.path
            )
            self._close_connections()
        self._writer = self._connect()
        found = os.stat(self.path)
        self._inode = (found.st_dev, found.st_ino)
        return self._writer

    def _let_writer_go(self) -> None:
        """Work that was asked for before a close has run after it: nobody would close the file again."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _abandon(self, error: BaseException) -> None:
        connection = self._writer
        if connection is None:
            return
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                return
        except sqlite3.Error as second:
            log.warning("the buffer %s could not be rolled back, closing it: %s", self.path, second)
        # after a disk error nothing of this connection can be trusted
        self._writer = None
        connection.close()

    # -- reading ------------------------------------------------------------------------------------------------

    async def read(self, rt: Runtime, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs ``work`` on a connection of its own; sees all that was committed, waits for no writer."""
        return await rt.offload(self._read, work, self._generation)

    def _read(self, work: Callable[[sqlite3.Connection], T], asked: int) -> T:
        with self._gate:
            while self._closed_gate:
                self._gate.wait()
            self._reading += 1
            connection = self._readers.pop() if self._readers else None
        try:
            if connection is None:
                connection = self._connect()
            return work(connection)
        except sqlite3.Error as error:
            if connection is not None:
                connection.close()
                connection = None
            raise self._unavailable(error) from error
        finally:
            with self._gate:
                self._reading -= 1
                # What was asked for before a close may run after it: nobody would close that connection again.
                keep = asked == self._generation and len(self._readers) < MAX_IDLE_READERS
                if connection is not None and keep:
                    self._readers.append(connection)
                elif connection is not None:
                    connection.close()
                self._gate.notify_all()

    # -- ending and forking -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Closes all connections and ends the writer thread; the next operation starts them again."""
        self._hold_still()
        self._let_go()

    def _hold_still(self) -> None:
        self._turn.acquire()
        with self._gate:
            self._closed_gate = True
            self._gate.wait_for(lambda: self._reading == 0)
        self._close_connections()

    def _let_go(self) -> None:
        with self._gate:
            self._closed_gate = False
            self._gate.notify_all()
        self._turn.release()
        if self._queue:
            self._call_writer()

    def _close_connections(self) -> None:
        with self._gate:
            readers, self._readers = self._readers, []
            self._generation += 1
            self._thread = None
            self._wake.set()
        writer, self._writer = self._writer, None
        for connection in readers if writer is None else [*readers, writer]:
            connection.close()


_still: list[SQLiteFile] = []


def _before_fork() -> None:
    _live_lock.acquire()
    _still.extend(_LIVE)
    for file in _still:
        file._hold_still()


def _after_fork_in_parent() -> None:
    for file in _still:
        file._let_go()
    _still.clear()
    _live_lock.release()


def _after_fork_in_child() -> None:
    for file in _still:
        file._reset()
    _still.clear()
    _live_lock.release()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
