"""The blocking Redis driver: one held connection per thread."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import hiredis

from cachewright.errors import TierError, TierTimeout, TierUnavailable
from cachewright.tiers.redis_driver import (
    NOTHING,
    RECEIVE_SIZE,
    Address,
    Command,
    Faults,
    LateStores,
    Reply,
    Send,
    new_reader,
    pack,
    parsed,
    remaining,
    shut,
    tune,
)

T = TypeVar("T")

__all__ = ["BlockingDriver", "Pending"]

# settle() of a socket's timeout is a system call; within this many seconds the one that is set will do.
_SLACK = 0.002


class _Connection:
    """A socket, its parser and its id at the server."""

    __slots__ = ("__weakref__", "_limit", "_reader", "busy", "client_id", "dismissed", "sock")

    def __init__(self, address: Address, faults: Faults, deadline: float) -> None:
        self.client_id = 0
        self.busy = False
        """Sent, and replies not read: true between calls only where a signal's exception came in between."""
        self.dismissed = False
        """Closed because the tier was: nothing is sent again for the one that waited."""
        self._limit = remaining(deadline)
        self._reader = new_reader(address.password)
        self.sock: socket.socket | ssl.SSLSocket = _open(address, deadline)
        try:
            self.sock.settimeout(self._limit)
            hello = address.handshake()
            self.send(pack(hello), deadline)
            self.client_id = faults.handshake(self.receive(len(hello), deadline))
        except BaseException:
            self.sock.close()
            raise

    def _until(self, deadline: float) -> None:
        left = remaining(deadline)
        if left < self._limit - _SLACK or left > self._limit + _SLACK:
            self.sock.settimeout(left)
            self._limit = left

    def send(self, data: bytes, deadline: float) -> None:
        self._until(deadline)
        self.busy = True
        self.sock.sendall(data)

    def receive(self, count: int, deadline: float) -> list[Reply]:
        replies: list[Reply] = []
        reader = self._reader
        while True:
            while (reply := parsed(reader)) is not NOTHING:
                replies.append(reply)
                if len(replies) == count:
                    if reader.has_data():  # it would answer the next command
                        raise hiredis.ProtocolError("more replies than commands")
                    self.busy = False
                    return replies
            self._until(deadline)
            data = self.sock.recv(RECEIVE_SIZE)
            if not data:
                raise EOFError
            reader.feed(data)

    @property
    def usable(self) -> bool:
        """Whether it is open as far as this side knows."""
        return self.sock.fileno() >= 0

    def stale(self) -> bool:
        """Whether the server closed the connection, or said something unasked, while nobody looked."""
        try:
            poll = select.poll()
            poll.register(self.sock, select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return True

    def __del__(self) -> None:
        # The connection of a thread that has ended.
        sock = getattr(self, "sock", None)
        if sock is not None:
            sock.close()


def _open(address: Address, deadline: float) -> socket.socket | ssl.SSLSocket:
    if address.unix_path:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(remaining(deadline))
            sock.connect(address.unix_path)
        except BaseException:
            sock.close()
            raise
        return sock
    sock = socket.create_connection((address.host, address.port), timeout=remaining(deadline))
    try:
        tune(sock)
        context = address.tls()
        if context is not None:
            sock.settimeout(remaining(deadline))
            secured: ssl.SSLSocket = context.wrap_socket(sock, server_hostname=address.host)
            return secured
        return sock
    except BaseException:
        sock.close()
        raise


class Pending:
    """A batch that was sent and whose replies are not read yet."""

    __slots__ = ("connection", "count", "fresh", "killed", "store")

    def __init__(
        self, connection: _Connection, count: int, killed: tuple[int, ...], store: bool, fresh: bool
    ) -> None:
        self.connection = connection
        self.count = count
        self.killed = killed
        self.store = store
        self.fresh = fresh


class _Pool:
    """At most ``size`` connections for all threads, each used by one at a time; last in, first out."""

    def __init__(self, size: int) -> None:
        self._free = threading.Semaphore(size)
        self._idle: deque[_Connection] = deque()

    def take(self, deadline: float) -> _Connection | None:
        """The right to a connection, and an idle one if there is any."""
        if not self._free.acquire(timeout=remaining(deadline)):
            raise TimeoutError
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def give(self, connection: _Connection | None) -> None:
        if connection is not None and connection.usable:
            self._idle.append(connection)
        self._free.release()


class BlockingDriver:
    """Sends batches to one server and waits for their replies on the calling thread.

    Every method raises `TierError`s only and, where the outcome is unknown, closes the connection first.

    Args:
        address: the server.
        faults: makes the errors.
        late: stores of unknown outcome, shared with the asyncio driver.
        max_connections: None: every thread holds a connection of its own, which costs no checkout. Else the threads
            share so many, and a thread waits for one within its deadline.
    """

    def __init__(
        self, address: Address, faults: Faults, late: LateStores, max_connections: int | None = None
    ) -> None:
        self._address = address
        self._faults = faults
        self._late = late
        self._max_connections = max_connections
        self.after_fork()

    def after_fork(self) -> None:
        """Lets the parent's connections go: closing the descriptor here sends nothing and ends nothing there."""
        for connection in list(getattr(self, "_all", ())):
            connection.sock.close()
        self._local = threading.local()
        self._pool = None if self._max_connections is None else _Pool(self._max_connections)
        self._all: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._lock = threading.Lock()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        with self._lock:
            return sum(1 for connection in self._all if connection.usable)

    @property
    def ready(self) -> bool:
        """Whether this thread holds an open connection."""
        held = getattr(self._local, "connection", None)
        return held is not None and held.usable

    def execute(
        self, commands: Sequence[Command], deadline: float, *, repeatable: bool = False, store: bool = False
    ) -> list[Reply]:
        """Sends all commands in one piece and returns their replies in order.

        Args:
            commands: what to send.
            deadline: on the monotonic clock, for everything together.
            repeatable: reads and drops may be sent once more where a held connection turns out to be closed.
            store: after an unknown outcome the connection is killed at the server before anything else is sent.
        """
        pending = self.start(commands, deadline, repeatable=repeatable, store=store)
        try:
            return self.finish(pending, deadline)
        except TierTimeout:
            raise
        except TierUnavailable:
            connection = pending.connection
            if not repeatable or pending.fresh or connection.usable or connection.dismissed:
                raise  # a fresh connection failed, or the server refused: sending again would gain nothing
        return self.finish(self.start(commands, deadline, store=store), deadline)

    def start(
        self, commands: Sequence[Command], deadline: float, *, repeatable: bool = False, store: bool = False
    ) -> Pending:
        """The first half of `execute`: sends, so that several servers can work at once."""
        connection, fresh = self._take(deadline, check=not repeatable)
        try:
            return self._send(connection, commands, deadline, store, fresh)
        except TierTimeout:
            self._give(connection)
            raise
        except TierUnavailable:
            self._give(connection)
            if not repeatable or fresh:
                raise
        except BaseException:
            self._give(connection)
            raise
        return self.start(commands, deadline, store=store)

    def finish(self, pending: Pending, deadline: float) -> list[Reply]:
        """The second half of `execute`: waits for the replies."""
        try:
            return self._receive(pending, deadline)
        finally:
            self._give(pending.connection)

    async def hold(self, deadline: float, work: Callable[[Send], Awaitable[T]], *, store: bool = False) -> T:
        """Runs ``work`` with a sender that stays on one connection, which nobody else uses meanwhile (WATCH)."""
        connection, _ = self._take(deadline, check=True)

        async def send(commands: Sequence[Command]) -> list[Reply]:
            return self._receive(self._send(connection, commands, deadline, store, True), deadline)

        try:
            return await work(send)
        except BaseException:
            shut(connection.sock)  # keys may still be watched
            raise
        finally:
            self._give(connection)

    def close(self) -> None:
        """Closes the connections of all threads; one that waits for a reply sees its connection broken."""
        with self._lock:
            connections = list(self._all)
            self._all.clear()
        for connection in connections:
            connection.dismissed = True
            shut(connection.sock)

    def _take(self, deadline: float, *, check: bool) -> tuple[_Connection, bool]:
        """A connection for this thread alone, and whether it is a new one."""
        pool = self._pool
        if pool is None:
            held: _Connection | None = getattr(self._local, "connection", None)
        else:
            try:
                held = pool.take(deadline)
            except TimeoutError as error:
                raise self._faults.unsent(self._faults.busy(self._max_connections)) from error
        if held is not None and held.usable:
            if not held.busy and not (check and held.stale()):
                return held, False
            if (
                held.busy
            ):  # its unread reply would answer the next command; what it was, nobody knows any more
                self._late.add(held.client_id)
            shut(held.sock)
        try:
            fresh = _Connection(self._address, self._faults, deadline)
        except BaseException as error:
            if pool is not None:
                pool.give(None)
            raise self._meaning(error, sent=False) from error
        with self._lock:
            self._all.add(fresh)
        if pool is None:
            self._local.connection = fresh
        return fresh, True

    def _give(self, connection: _Connection) -> None:
        if self._pool is not None:
            self._pool.give(connection)

    def _send(
        self,
        connection: _Connection,
        commands: Sequence[Command],
        deadline: float,
        store: bool,
        fresh: bool,
    ) -> Pending:
        killed = self._late.ids
        if killed:
            commands = [*self._late.commands(killed), *commands]
        data = pack(commands)
        try:
            connection.send(data, deadline)
        except BaseException as error:  # a command cut in two makes the connection useless, whatever cut it
            raise self._broken(connection, error, store) from error
        return Pending(connection, len(commands), killed, store, fresh)

    def _receive(self, pending: Pending, deadline: float) -> list[Reply]:
        connection, killed = pending.connection, pending.killed
        try:
            replies = connection.receive(pending.count, deadline)
        except (
            BaseException
        ) as error:  # KeyboardInterrupt too: a reply left unread would answer the next command
            raise self._broken(connection, error, pending.store) from error
        if killed:
            self._late.settle(killed, replies[: len(killed)])
            return replies[len(killed) :]
        return replies

    def _broken(self, connection: _Connection, error: BaseException, store: bool) -> BaseException:
        if store:
            self._late.add(connection.client_id)
        shut(connection.sock)
        return self._meaning(error)

    def _meaning(self, error: BaseException, sent: bool = True) -> BaseException:
        if isinstance(error, (OSError, EOFError, ValueError, hiredis.HiredisError, TierError)):
            return self._faults.of(error) if sent else self._faults.unsent(error)
        return error
