"""What the blocking and the asyncio Redis driver share: the address, the handshake, replies, and late stores.

Both speak RESP2 over their own sockets with hiredis as packer and parser. One held connection per thread or loop and
no client library between: a pool's checkout costs more than the command, and its retries, health checks and
per-``recv`` timeouts leave no single deadline over connect + send + receive.
"""

from __future__ import annotations

import contextlib
import socket
import ssl as ssl_module
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, NoReturn

import msgspec

from cachewright.errors import MissingExtraError, TierError, TierProtocolError, TierTimeout, TierUnavailable

try:
    import hiredis
except ImportError as error:  # pragma: no cover - depends on the installation
    raise MissingExtraError("a Redis tier", "redis") from error

Command = tuple[Any, ...]
Reply = Any
"""bytes, int, None, a list of replies, or a `ReplyError` (returned, not raised, so that one bad reply of a batch
does not hide the others)."""
Send = Callable[[Sequence[Command]], Awaitable[list[Reply]]]

__all__ = [
    "NOTHING",
    "RECEIVE_SIZE",
    "Address",
    "Command",
    "Faults",
    "LateStores",
    "Reply",
    "ReplyError",
    "Send",
    "checked",
    "new_reader",
    "nonsense",
    "pack",
    "raise_reply",
    "tune",
]

NOTHING: Final = object()
RECEIVE_SIZE: Final = 65536


class ReplyError(Exception):
    """An error reply. ``code`` is its first word: ``NOSCRIPT``, ``MOVED``, ``READONLY`` …"""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = message.split(" ", 1)[0]


# A server that says one of these is there but cannot serve now; another moment or another node may.
_UNAVAILABLE: Final = frozenset(
    {
        "BUSY", "CLUSTERDOWN", "EXECABORT", "LOADING", "MASTERDOWN", "MISCONF", "NOAUTH", "NOREPLICAS", "OOM",
        "READONLY", "TRYAGAIN", "WRONGPASS",
    }
)  # fmt: skip


def raise_reply(tier: str, reply: ReplyError) -> NoReturn:
    """Raises what an error reply means to the core."""
    message = str(reply)
    if reply.code in _UNAVAILABLE or "max number of clients" in message:
        raise TierUnavailable(tier, f"the server refused: {message}") from reply
    raise TierProtocolError(tier, f"the server answered: {message}") from reply


def nonsense(tier: str, reply: Reply, wanted: str) -> TierProtocolError:
    """The error for a reply that is none to what was asked; it names the kind only: the rest may be payload."""
    return TierProtocolError(
        tier, f"the server answered with a reply of type {type(reply).__name__} in the place of {wanted}"
    )


def checked(tier: str, reply: Reply, kind: type, wanted: str, size: int | None = None) -> Reply:
    """The reply, if it is of that type (and, a list, of that length); raises `TierProtocolError` where it is not."""
    if type(reply) is kind:
        sized: Any = reply
        if size is None or len(sized) == size:
            return reply
    raise nonsense(tier, reply, wanted)


_QUOTED: Final = 300  # characters of an error reply that are kept


def _errors(password: str | None) -> Callable[[str], ReplyError]:
    """Makes error replies: on one line, of bounded length, and without the password where the server quotes it.

    Servers do: ``ERR unknown command 'AUTH', with args beginning with: 'hunter2'``, cut off at 128 bytes, so that its
    beginning is what must be looked for.
    """
    secret = password[:8] if password else None

    def make(message: str) -> ReplyError:
        code, _, rest = message.partition(" ")
        # Redirections hold numbers, which a short password could be among.
        if secret and (len(secret) == 8 or code not in ("MOVED", "ASK")):
            code = "ERR" if secret in code else code
            rest = rest.partition(secret)[0] + "… (it quotes the password)" if secret in rest else rest
        line = f"{code} {rest}".rstrip()[:_QUOTED]
        return ReplyError("".join(char if char.isprintable() else "?" for char in line))

    return make


def new_reader(password: str | None = None) -> Any:
    """A RESP parser that yields bytes, and `NOTHING` while a reply is incomplete.

    Args:
        password: what no error reply may show.
    """
    return hiredis.Reader(replyError=_errors(password), notEnoughData=NOTHING)


def parsed(reader: Any) -> Reply:
    """The next reply, or `NOTHING`; raises `hiredis.ProtocolError` for whatever cannot be one."""
    try:
        return reader.gets()
    except (TypeError, MemoryError) as error:
        # A map's key that cannot be one; a length that nothing can hold.
        raise hiredis.ProtocolError(f"a reply that cannot be built ({type(error).__name__})") from error


def pack(commands: Sequence[Command]) -> bytes:
    """The commands as one piece of RESP."""
    if len(commands) == 1:
        packed: bytes = hiredis.pack_command(commands[0])
        return packed
    return b"".join([hiredis.pack_command(command) for command in commands])


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a server is and how one presents oneself there."""

    host: str = "127.0.0.1"
    port: int = 6379
    db: int = 0
    username: str | None = None
    password: str | None = None
    unix_path: str | None = None
    ssl: bool | ssl_module.SSLContext = False

    @property
    def label(self) -> str:
        """For messages and stats; no credentials."""
        place = f"unix:{self.unix_path}" if self.unix_path else f"{self.host}:{self.port}"
        return f"{place}/{self.db}" if self.db else place

    def __repr__(self) -> str:
        return f"Address({self.label!r})"

    def handshake(self) -> list[Command]:
        """What a new connection says first; the last reply is the connection's id at the server."""
        commands: list[Command] = []
        if self.password is not None:
            login = (self.username, self.password) if self.username else (self.password,)
            commands.append(("AUTH", *login))
        if self.db:
            commands.append(("SELECT", self.db))
        commands.append(("CLIENT", "ID"))
        return commands

    def tls(self) -> ssl_module.SSLContext | None:
        """The TLS context to use, or None for a plain connection."""
        if isinstance(self.ssl, ssl_module.SSLContext):
            return self.ssl
        return ssl_module.create_default_context() if self.ssl else None


class Faults:
    """Makes the errors of one server's drivers, so that they all name tier and address and never a password."""

    def __init__(self, tier: str, address: Address, timeout: float) -> None:
        self.tier = tier
        self.label = address.label
        self.timeout = timeout

    def timed_out(self) -> TierTimeout:
        return TierTimeout(self.tier, f"no answer from {self.label} within {self.timeout:g} s")

    def busy(self, connections: int | None) -> TierTimeout:
        return TierTimeout(
            self.tier, f"all {connections} connections to {self.label} were in use for {self.timeout:g} s"
        )

    def unsent(self, error: BaseException) -> TierError:
        """The same, for what failed before anything of the request was sent."""
        found = self.of(error)
        found.unsent = True
        return found

    def of(self, error: BaseException) -> TierError:
        """What an error of a socket or the parser means to the core."""
        if isinstance(error, TierError):
            return error
        if isinstance(error, TimeoutError):
            return self.timed_out()
        if isinstance(error, hiredis.ProtocolError):
            return TierProtocolError(self.tier, f"{self.label} does not speak Redis's protocol: {error}")
        nameless = "the connection was closed" if isinstance(error, EOFError) else type(error).__name__
        reason = str(error) or nameless
        return TierUnavailable(self.tier, f"{self.label}: {reason}")

    def handshake(self, replies: Sequence[Reply]) -> int:
        """The connection's id out of the handshake's replies; raises where one of them is an error."""
        for reply in replies:
            if isinstance(reply, ReplyError):
                if reply.code in {"NOPERM", "ERR", "WRONGPASS", "NOAUTH"}:
                    raise TierUnavailable(self.tier, f"{self.label} refused the connection: {reply}")
                raise_reply(self.tier, reply)
        if not replies or not isinstance(replies[-1], int):
            raise TierProtocolError(self.tier, f"{self.label} did not tell the connection's id")
        return replies[-1]


class LateStores:
    """Connections that may still deliver a store of unknown outcome, by their id at the server.

    A SET that lies unread in a hung server's socket is carried out when the server goes on, even if we have closed
    the connection since, and undoes a delete that was acknowledged in between. So whatever this process sends next
    to that server, from any thread or loop, is preceded by a CLIENT KILL of those connections.
    """

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.renew()

    def renew(self) -> None:
        """After a fork the lock may be held by a thread that is not here; the parent kills its own connections."""
        self._lock = threading.Lock()
        self.ids: tuple[int, ...] = ()

    def add(self, client_id: int) -> None:
        with self._lock:
            if client_id not in self.ids:
                self.ids = (*self.ids, client_id)

    def commands(self, ids: Iterable[int]) -> list[Command]:
        return [("CLIENT", "KILL", "ID", client_id) for client_id in ids]

    def settle(self, ids: tuple[int, ...], replies: Sequence[Reply]) -> None:
        """Takes note of the kills' replies (0: it was gone already); raises where one was refused."""
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise TierUnavailable(
                    self._faults.tier,
                    f"{self._faults.label} refused to kill a connection with a store of unknown outcome: {reply} "
                    "(the user needs +client|kill)",
                )
        with self._lock:
            self.ids = tuple(client_id for client_id in self.ids if client_id not in ids)


def tune(sock: socket.socket) -> None:
    """Small messages at once; a dead peer noticed some day even on an idle connection."""
    if sock.family != getattr(socket, "AF_UNIX", None):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def remaining(deadline: float) -> float:
    """Seconds left until ``deadline`` on the monotonic clock; raises TimeoutError where none are."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def shut(sock: socket.socket | None) -> None:
    """Closes a socket that another thread may be blocked in: that thread sees an end of file."""
    if sock is None:
        return
    with contextlib.suppress(OSError):  # not connected, or gone: closing is what matters
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
