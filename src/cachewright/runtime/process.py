"""Server processes that this process owns: start one, wait until it answers, stop it by its own id, leave none behind.

Servers here are Redis, Valkey, Memcached, RabbitMQ and PostgreSQL for development, the tour and the tests. They listen
on the loopback interface only.

Three ends are covered: `ServerProcess.stop`, the interpreter's exit, and the owner's death by SIGKILL (Linux: the
kernel then kills the server). A forked child only ever forgets its parent's servers, it never stops them.
"""

from __future__ import annotations

import atexit
import os
import pwd
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Self

from cachewright.errors import TierUnavailable

__all__ = ["LOOPBACK", "ServerProcess", "as_user", "free_port", "wait_until"]

LOOPBACK = "127.0.0.1"
_POLL = 0.01


def wait_until(ready: Callable[[], bool], timeout: float, *, poll: float = _POLL) -> bool:
    """Ask ``ready`` every ``poll`` seconds until it says True; False when ``timeout`` seconds have passed."""
    deadline = time.monotonic() + timeout
    while not ready():
        if time.monotonic() >= deadline:
            return False
        time.sleep(poll)
    return True


_given_ports: set[int] = set()
_ports_lock = threading.Lock()


def free_port() -> int:
    """Return a free TCP port on the loopback interface, never the same one twice.

    The port lies below the range that kernels give to outgoing connections. Otherwise a client that keeps trying to
    reach a stopped server could be given that very port as its own end: TCP then connects it to itself, and the
    server cannot have its port back.
    """
    for _ in range(1000):
        port = random.randrange(12_000, 32_000)
        with _ports_lock:
            if port in _given_ports:
                continue
            _given_ports.add(port)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As the servers do: a port whose last connections linger in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        return port
    raise TierUnavailable("loopback", "no free port between 12000 and 32000 in 1000 tries")


class _Spawner:
    """A thread that starts all children of this process and lives as long as the process.

    Linux sends the parent-death signal when the *thread* that forked ends, not the process: a server that a
    short-lived worker thread had started would be killed with that thread.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._jobs: queue.SimpleQueue[
            tuple[Callable[[], subprocess.Popen[bytes]], Future[subprocess.Popen[bytes]]]
        ]
        self._jobs = queue.SimpleQueue()
        threading.Thread(target=self._work, name="cachewright-spawner", daemon=True).start()

    def spawn(self, job: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        result: Future[subprocess.Popen[bytes]] = Future()
        self._jobs.put((job, result))
        return result.result()

    def _work(self) -> None:
        while True:
            job, result = self._jobs.get()
            try:
                result.set_result(job())
            except BaseException as error:  # handed to the caller, who raises it
                result.set_exception(error)
            del job, result


_spawner: _Spawner | None = None
_spawner_lock = threading.Lock()


def _spawn(job: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    global _spawner
    with _spawner_lock:
        if _spawner is None or _spawner.pid != os.getpid():
            _spawner = _Spawner()
        spawner = _spawner
    return spawner.spawn(job)


def as_user(command: Sequence[str], user: str | None, *, die_with_parent: bool = False) -> list[str]:
    """Wrap a command so that it runs as ``user`` (None: as ourselves; else it needs root).

    Args:
        die_with_parent: also have the kernel kill it when its parent dies, where the kernel can.
    """
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    if setpriv is None:
        if user is not None:
            raise TierUnavailable(command[0], f"cannot be run as {user} without setpriv (package util-linux)")
        return list(command)
    wrapped = [setpriv]
    if die_with_parent:
        wrapped += ["--pdeathsig", "KILL"]
    if user is not None:
        ids = pwd.getpwnam(user)
        wrapped += ["--reuid", str(ids.pw_uid), "--regid", str(ids.pw_gid), "--clear-groups"]
    return [*wrapped, "--", *command] if len(wrapped) > 1 else list(command)


class ServerProcess:
    """One server, a child of this process.

    Subclasses may override `prepare`, which runs before every start, and `ready`, which says whether the server
    answers. All methods are safe to call from any thread, one at a time.

    Args:
        name: what the server is, for messages.
        command: the program and its arguments; it must stay in the foreground.
        folder: an existing folder for its data; its output goes to ``server.log`` there. None: a temporary one
            that `close` removes.
        env: its whole environment; None: that of this process.
        user: run as this user (needs root).
        start_timeout: seconds until it must answer.
        stop_timeout: seconds between the friendly signal and SIGKILL.
        stop_signal: the friendly signal.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        folder: Path | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        start_timeout: float = 15.0,
        stop_timeout: float = 5.0,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.command = list(command)
        self._temporary = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix=f"cachewright-{name}-")) if folder is None else folder
        if folder is None and user is not None:
            shutil.chown(self.folder, user)
        self.env = env
        self.user = user
        self.start_timeout = start_timeout
        self.stop_timeout = stop_timeout
        self.stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        _living.add(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} pid={self.pid}>"

    def prepare(self) -> None:
        """Do what must be done before each start: write a configuration file, say."""

    def ready(self) -> bool:
        """Say whether the server answers; called again and again while it starts."""
        raise NotImplementedError

    @property
    def log_path(self) -> Path:
        """Where the server's output goes."""
        return self.folder / "server.log"

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of the server's output."""
        try:
            text = self.log_path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return "(no output)"
        return "\n".join(text.splitlines()[-lines:]) or "(no output)"

    @property
    def pid(self) -> int | None:
        """The process id while the server runs, paused or not, else None."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def running(self) -> bool:
        """The process exists (it may be paused)."""
        if self._process is None or os.getpid() != self._owner:
            return False
        return self._process.poll() is None

    def start(self) -> None:
        """Start the server and return when it answers; nothing happens if it runs already.

        Raises:
            TierUnavailable: it ended, or did not answer in time; the message has its last lines of output.
        """
        if os.getpid() != self._owner:
            raise TierUnavailable(
                self.name, "belongs to the process that made it; a forked child cannot start it"
            )
        if self.running:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.prepare()
        command = as_user(self.command, self.user, die_with_parent=True)
        # 0600: servers may print what a stranger should not read.
        log_fd = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(log_fd, "ab") as log:
            _living.add(self)
            self._process = _spawn(lambda: self._popen(command, log))
        try:
            answered = wait_until(lambda: not self.running or self.ready(), self.start_timeout)
        except BaseException:  # Ctrl-C, say: nobody would stop what was never returned
            self.kill()
            raise
        if not answered:
            self.kill()
            raise TierUnavailable(
                self.name,
                f"did not answer within {self.start_timeout:g} s; its last output:\n{self.log_tail()}",
            )
        if not self.running:
            code = self._process.returncode
            self._process = None
            raise TierUnavailable(
                self.name, f"ended at start with code {code}; its last output:\n{self.log_tail()}"
            )

    def _popen(self, command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C in a terminal goes to the owner, which then stops the server in order.
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=None if self.env is None else dict(self.env),
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise TierUnavailable(self.name, f"cannot be started: {error}") from error

    def stop(self) -> None:
        """End the server, kindly first; returns when it is gone. Its folder stays. Nothing happens in a forked child."""
        process = self._process
        if process is None or os.getpid() != self._owner:
            return
        if process.poll() is None:
            process.send_signal(self.stop_signal)
            process.send_signal(signal.SIGCONT)  # a paused process would not see the first signal
            try:
                process.wait(self.stop_timeout)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        self._process = None

    def close(self) -> None:
        """Stop it and remove its folder, if that is a temporary one. In a forked child nothing happens."""
        self.stop()
        if os.getpid() == self._owner:
            _living.discard(self)
            if self._temporary:
                shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def kill(self) -> None:
        """End the server by SIGKILL, as a crash would; returns when it is gone."""
        process = self._process
        if process is None or os.getpid() != self._owner:
            return
        process.kill()
        process.wait()
        self._process = None

    def pause(self) -> None:
        """Hang the server by SIGSTOP: its sockets stay open and nobody answers. Returns when it stands still."""
        pid = self._signal(signal.SIGSTOP)
        if hasattr(os, "waitid"):
            # The signal alone is no promise: a thread of the server may still answer for a moment. WNOWAIT leaves the
            # news in place, for a second call and for Popen.
            os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Stop it, if it runs, and start it on the same address with the same folder."""
        self.stop()
        self.start()

    def _signal(self, what: signal.Signals) -> int:
        if self._process is None or not self.running:
            raise TierUnavailable(self.name, f"is not running, so it cannot be sent {what.name}")
        self._process.send_signal(what)
        return self._process.pid

    def disown(self) -> None:
        """In a forked child: the server is the parent's, so never signal it, wait for it or warn about it."""
        if self._process is not None:
            self._process.returncode = 0
            self._process = None


_living: set[ServerProcess] = set()  # every server of this process, for the interpreter's exit


@atexit.register
def _stop_all() -> None:
    for server in list(_living):
        server.close()


def _forget_parents_servers() -> None:
    global _spawner_lock, _ports_lock
    _spawner_lock = threading.Lock()  # another thread of the parent may have held them at the fork
    _ports_lock = threading.Lock()
    for server in _living:
        server.disown()
    _living.clear()


os.register_at_fork(after_in_child=_forget_parents_servers)
