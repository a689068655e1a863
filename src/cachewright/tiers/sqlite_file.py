"""A SQLite file that several threads and processes share: opened safely, pooled, closed before a fork.

**Fork.** SQLite keeps, per process and per file, its own account of the locks that it holds. A child inherits the
account but not the locks, so even a *new* connection of the child to the same file would skip taking them: the next
process that closes the file then believes that nobody else is there and removes the write-ahead log under the child.
So every connection is closed *before* a fork, and both sides open new ones when they need them. Where an operation of
another thread does not end in time, the child must not use the file at all, and says so.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable
from typing import TypeVar

from cachewright.errors import ConfigurationError, TierError, TierTimeout, TierUnavailable

__all__ = ["SqliteFile"]

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

MAX_IDLE = 8  # connections kept open; more are opened when more threads call at once, and closed after
LOOK_EVERY = 1.0  # seconds between looks whether the path still names the file that is open


class _Open:
    """One connection, and which file it was when it was opened."""

    __slots__ = ("busy_ms", "connection", "file", "looked")

    def __init__(self, connection: sqlite3.Connection, file: tuple[int, int], busy_ms: int) -> None:
        self.connection = connection
        self.file = file
        self.busy_ms = busy_ms
        self.looked = time.monotonic()


class SqliteFile:
    """Connections to one file in WAL mode, for any thread.

    Args:
        path: the file; it and its folder are made with first use, readable by their owner only.
        name: the tier's name, for errors.
        timeout: seconds that opening it may take.
        application_id: marks the file as ours; another program's database is refused.
        version: the format that ``schema`` makes; a file of a newer one is refused.
        schema: statements that make the tables of an empty file.
    """

    def __init__(
        self,
        path: str,
        *,
        name: str,
        timeout: float,
        application_id: int,
        version: int,
        schema: tuple[str, ...],
    ) -> None:
        if not path or path.startswith((":", "file:")):
            raise ConfigurationError(
                f"SQLite path {path!r}: give the path of a file, such as sqlite:///cache.db; "
                "for a cache that ends with its process use memory://"
            )
        self.path = os.path.abspath(os.path.expanduser(path))
        self._name = name
        self._timeout = timeout
        self._application_id = application_id
        self._version = version
        self._schema = schema
        self._free = threading.Condition()  # guards the four below; notified when a connection comes back
        self._idle: list[_Open] = []
        self._in_use = 0
        self._round = (
            0  # goes up with every close: connections of an earlier round are closed when they come back
        )
        self._poisoned = False
        # Writers of this process queue here and not at SQLite's lock, whose waiters only poll it.
        self._writing = threading.Lock()
        with _files_lock:
            _files.add(self)

    # ---------------------------------------------------------------------------------------------- operations

    def read(self, work: Work[T], deadline: float) -> T:
        """Runs ``work`` on a connection. ``deadline`` is in monotonic seconds.

        Raises:
            TierTimeout: the deadline passed.
            TierUnavailable: the file cannot be used.
            ConfigurationError: it must not be used.
        """
        return self._use(lambda held: work(held.connection), deadline)

    def write(self, work: Work[T], deadline: float, given_up: Callable[[], bool]) -> T:
        """Runs ``work`` in a transaction that holds the file's write lock from its start.

        Args:
            work: its changes count together or not at all.
            deadline: monotonic seconds.
            given_up: asked once the lock is held; True: the caller has gone, change nothing. From then on everyone
                who comes after that caller is behind this transaction, so it cannot undo what they do.
        """
        if not self._writing.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise TierTimeout(self._name, "other writers of this process did not end within the deadline")
        try:
            return self._use(lambda held: self._transaction(held, work, deadline, given_up), deadline)
        finally:
            self._writing.release()

    def _transaction(self, held: _Open, work: Work[T], deadline: float, given_up: Callable[[], bool]) -> T:
        connection = held.connection
        left = max(1, int((deadline - time.monotonic()) * 1000))
        if abs(held.busy_ms - left) > 20:  # spares the statement in the usual case
            connection.execute(f"PRAGMA busy_timeout = {left}")
            held.busy_ms = left
        connection.execute("BEGIN IMMEDIATE")
        if given_up() or time.monotonic() > deadline:
            raise TierTimeout(self._name, "the write lock came too late; nothing was changed")
        result = work(connection)
        connection.execute("COMMIT")
        return result

    def _use(self, work: Callable[[_Open], T], deadline: float) -> T:
        if time.monotonic() > deadline:
            raise TierTimeout(self._name, "the deadline passed before the operation could begin")
        with self._free:
            if self._poisoned:
                raise TierUnavailable(
                    self._name,
                    f"this process was forked in the middle of an operation on {self.path}; using the file here could "
                    "damage it. Fork before the first use of the cache, or start a fresh process",
                )
            self._in_use += 1
            round_, held = self._round, self._idle.pop() if self._idle else None
        whole = False
        try:
            if held is not None and self._was_replaced(held):
                held.connection.close()
                held = None
            if held is None:
                held = self._open(deadline)
            result = work(held)
            whole = True
            return result
        except sqlite3.Error as error:
            raise self._translated(error) from error
        except PermissionError as error:
            raise TierUnavailable(self._name, f"{self.path}: {error.strerror}") from error
        finally:
            self._give_back(held, round_, whole)

    def _give_back(self, held: _Open | None, round_: int, whole: bool) -> None:
        keep = False
        with self._free:
            if held is not None and whole and round_ == self._round and len(self._idle) < MAX_IDLE:
                self._idle.append(held)
                keep = True
        try:
            # Closing rolls back: after an error nobody goes on with a connection whose state is not known.
            if held is not None and not keep:
                held.connection.close()
        finally:
            with self._free:
                self._in_use -= 1
                self._free.notify_all()

    def _was_replaced(self, held: _Open) -> bool:
        """Whether the path names another file by now, or none. Else two processes could each trust their own."""
        now = time.monotonic()
        if now - held.looked < LOOK_EVERY:
            return False
        held.looked = now
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return True
        return (found.st_dev, found.st_ino) != held.file

    # ------------------------------------------------------------------------------------------------- opening

    def _open(self, deadline: float) -> _Open:
        self._prepare_path()
        busy = max(0.001, min(self._timeout, deadline - time.monotonic()))
        connection = sqlite3.connect(self.path, timeout=busy, isolation_level=None, check_same_thread=False)
        try:
            found = os.stat(self.path)
            self._set_up(connection, deadline)
        except BaseException:
            connection.close()
            raise
        return _Open(connection, (found.st_dev, found.st_ino), int(busy * 1000))

    def _set_up(self, connection: sqlite3.Connection, deadline: float) -> None:
        fresh = self._is_fresh(connection)
        mode = _patiently(lambda: connection.execute("PRAGMA journal_mode = WAL").fetchone()[0], deadline)
        if mode != "wal":
            raise TierUnavailable(
                self._name, f"the file system of {self.path} does not take SQLite's WAL mode"
            )
        # A power cut may lose the last changes but never damages the file. For a cache that is enough: an entry that
        # is lost is a miss. (One that was deleted and comes back is as old as the machine's crash.)
        connection.execute("PRAGMA synchronous = NORMAL")
        if fresh:
            connection.execute("BEGIN IMMEDIATE")
            if self._is_fresh(connection):  # nobody was quicker
                for statement in self._schema:
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {self._application_id}")
                connection.execute(f"PRAGMA user_version = {self._version}")
            connection.execute("COMMIT")

    def _is_fresh(self, connection: sqlite3.Connection) -> bool:
        """True for an empty file, False for one of ours; refuses all others before anything is changed."""
        alone = not connection.in_transaction
        if alone:
            # Else another process may make the tables between two of these answers.
            connection.execute("BEGIN")
        ours = connection.execute("PRAGMA application_id").fetchone()[0] == self._application_id
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if alone:
            connection.execute("COMMIT")
        if ours and version == self._version:
            return False
        if ours:
            raise ConfigurationError(
                f"{self.path} has format version {version}, and this release of cachewright reads {self._version}: "
                "use the newer release, or another file"
            )
        if version or tables:
            raise ConfigurationError(
                f"{self.path} is another program's database: give the cache a file of its own"
            )
        return True

    def _prepare_path(self) -> None:
        folder = os.path.dirname(self.path)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            mode = os.stat(folder).st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                raise ConfigurationError(
                    f"everybody may replace files in {folder}, so the cache in it could be forged: "
                    f"chmod o-w {folder}, or use another folder"
                )
            how = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
            try:
                found = os.lstat(self.path)
            except FileNotFoundError:
                try:
                    os.close(os.open(self.path, how, 0o600))
                except FileExistsError:  # another thread or process was quicker
                    pass
                found = os.lstat(self.path)
        except OSError as error:
            raise TierUnavailable(self._name, f"{self.path} cannot be made: {error.strerror}") from error
        self._check_file(self.path, found)
        if mode & stat.S_IWOTH and found.st_uid != os.geteuid():
            raise ConfigurationError(
                f"{self.path} belongs to somebody else, in a folder where everybody may put files: use a folder of "
                "your own"
            )
        for suffix in ("-wal", "-shm", "-journal"):  # SQLite would follow a link there
            try:
                self._check_file(self.path + suffix, os.lstat(self.path + suffix))
            except FileNotFoundError:
                continue

    @staticmethod
    def _check_file(path: str, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a regular file"
            raise ConfigurationError(f"{path} is {what}: give the path of the file itself")
        if found.st_mode & stat.S_IWOTH:
            raise ConfigurationError(
                f"everybody may write to {path}, so the cache in it could be forged: chmod 600 {path}"
            )

    def _translated(self, error: sqlite3.Error) -> TierError:
        code = getattr(error, "sqlite_errorcode", None)
        kind = code & 0xFF if code is not None else None
        if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_INTERRUPT):
            return TierTimeout(self._name, "another process held the file's lock beyond the deadline")
        if kind in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return TierUnavailable(
                self._name,
                f"{self.path} is damaged ({error}): move it away or delete it; the cache then starts empty",
            )
        return TierUnavailable(self._name, f"{self.path}: {error}")

    # -------------------------------------------------------------------------------------------------- closing

    def close(self) -> None:
        """Closes what is idle now and the rest as it comes back; a later operation opens anew."""
        with self._free:
            self._round += 1
            idle, self._idle = self._idle, []
        for held in idle:
            held.connection.close()

    def before_fork(self) -> None:
        """Closes everything and keeps new operations out, until `after_fork_in_parent`."""
        self._free.acquire()
        self._free.wait_for(lambda: self._in_use == 0, self._timeout + 0.5)
        idle, self._idle = self._idle, []
        for held in idle:
            held.connection.close()

    def after_fork_in_parent(self) -> None:
        """Lets operations in again."""
        self._free.release()

    def after_fork_in_child(self) -> None:
        """Starts anew, or refuses from now on if a connection of the parent is open in this process."""
        self._poisoned = self._poisoned or self._in_use > 0
        self._in_use = 0
        self._free = threading.Condition()
        self._writing = threading.Lock()


def _patiently(step: Callable[[], T], deadline: float) -> T:
    """Tries again while others open the file: turning WAL on does not wait for a lock by itself."""
    while True:
        try:
            return step()
        except sqlite3.OperationalError as error:
            if (
                getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY
                or time.monotonic() > deadline
            ):
                raise
            time.sleep(0.002)


_files: weakref.WeakSet[SqliteFile] = weakref.WeakSet()
_files_lock = threading.Lock()
_forking: list[SqliteFile] = []


def _before() -> None:
    _files_lock.acquire()
    _forking[:] = list(_files)
    for file in _forking:
        file.before_fork()


def _in_parent() -> None:
    for file in _forking:
        file.after_fork_in_parent()
    _forking.clear()
    _files_lock.release()


def _in_child() -> None:
    global _files_lock
    for file in _forking:
        file.after_fork_in_child()
    _forking.clear()
    _files_lock = threading.Lock()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
