"""One connection of an event loop to a Redis server: it writes in batches and matches replies by their order."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections import deque

import hiredis

from cachewright.errors import TierError
from cachewright.tiers.redis_driver import (
    NOTHING,
    RECEIVE_SIZE,
    Address,
    Faults,
    LateStores,
    Reply,
    new_reader,
    pack,
    parsed,
    tune,
)

__all__ = ["Connection"]


class _Batch:
    """Commands that were handed in together, and who waits for their replies."""

    __slots__ = ("count", "deadline", "future", "replies", "store")

    def __init__(self, count: int, deadline: float, store: bool, future: asyncio.Future[list[Reply]]) -> None:
        self.count = count
        self.deadline = deadline
        self.store = store
        self.future = future
        self.replies: list[Reply] = []


class _Tls:
    """TLS without a socket: bytes in, bytes out."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)

    async def handshake(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await loop.sock_sendall(sock, self._out.read())
                data = await loop.sock_recv(sock, RECEIVE_SIZE)
                if not data:
                    raise EOFError from None
                self._in.write(data)
            else:
                await loop.sock_sendall(sock, self._out.read())
                return

    def encrypt(self, data: bytes) -> bytes:
        if data:
            self._tls.write(data)
        return self._out.read()

    def decrypt(self, data: bytes) -> bytes:
        self._in.write(data)
        parts: list[bytes] = []
        while True:
            try:
                part = self._tls.read(RECEIVE_SIZE)
            except ssl.SSLWantReadError:
                return b"".join(parts)
            if not part:
                raise EOFError
            parts.append(part)


class Connection:
    """Opens itself in the background; what is handed in meanwhile waits, within its deadline.

    Made and used on its loop's thread; `close` and `let_go` alone may be called from any.
    """

    def __init__(self, address: Address, faults: Faults, late: LateStores) -> None:
        self.ready = False
        self.closed = False
        self.dismissed = False
        """Closed because the tier was: nothing is sent again for those that waited."""
        self._address = address
        self._faults = faults
        self._late = late
        self._client_id = 0
        self._sock: socket.socket | None = None
        self._tls: _Tls | None = None
        self._reader = new_reader(address.password)
        self._waiting: deque[_Batch] = deque()
        self._unsent: list[bytes] = []  # for the next tick, or for when the connection is open
        self._rest: bytes | memoryview = (
            b""  # what the socket did not take yet; nothing else is written before it
        )
        self._flushing = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._opening = self._loop.create_task(self._open())

    def submit(
        self, data: bytes, count: int, deadline: float, store: bool = False
    ) -> asyncio.Future[list[Reply]]:
        """Sends packed commands, with others of this tick where there are any; the future gets their replies.

        A caller that gives up cancels its future and disturbs nobody: its replies are read and thrown away.
        """
        future: asyncio.Future[list[Reply]] = self._loop.create_future()
        if self.closed:
            future.set_exception(self._faults.unsent(EOFError()))
            return future
        alone = self.ready and not self._waiting
        self._waiting.append(_Batch(count, deadline, store, future))
        if self._timer is None or deadline < self._timer_at:
            self._watch(deadline)
        if alone:
            self._write(data)
        else:
            self._unsent.append(data)
            if self.ready and not self._flushing:
                self._flushing = True
                self._loop.call_soon(self._flush)
        return future

    def ended(self) -> bool:
        """Whether the server closed an idle connection and the loop has not come round to seeing it."""
        if self._sock is None or not self.ready or self._waiting:
            return False
        try:
            return not self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    # -- opening

    async def _open(self) -> None:
        try:
            sock = await self._connect()
            self._sock = sock
            self._loop.add_reader(sock, self._readable)
            hello = self._address.handshake()
            replies: asyncio.Future[list[Reply]] = self._loop.create_future()
            # Its deadline is that of whoever waits behind it.
            self._waiting.appendleft(_Batch(len(hello), float("inf"), False, replies))
            self._write(pack(hello))
            self._client_id = self._faults.handshake(await replies)
            self.ready = True
            self._flush()
        except asyncio.CancelledError:
            self.fail(EOFError("the event loop ended"))
            raise
        except (OSError, EOFError, ValueError, TierError) as error:
            self.fail(error)

    async def _connect(self) -> socket.socket:
        address, loop = self._address, self._loop
        if address.unix_path:
            return await self._dial(socket.AF_UNIX, address.unix_path)
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        for at, (family, _, _, _, place) in enumerate(found):
            try:
                return await self._dial(family, place)
            except OSError:
                if at == len(found) - 1:
                    raise
        raise OSError(f"no address found for {address.host}")

    async def _dial(self, family: int, place: object) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await self._loop.sock_connect(sock, place)  # type: ignore[arg-type]
            tune(sock)
            context = self._address.tls()
            if context is not None:
                self._tls = _Tls(context, self._address.host)
                await self._tls.handshake(self._loop, sock)
        except BaseException:
            sock.close()
            raise
        return sock

    # -- sending

    def _flush(self) -> None:
        self._flushing = False
        if self.closed or self._rest or not self._unsent:
            return
        data = b"".join(self._unsent) if len(self._unsent) > 1 else self._unsent[0]
        self._unsent.clear()
        self._write(data)

    def _write(self, data: bytes) -> None:
        assert self._sock is not None
        try:
            if self._tls is not None:
                data = self._tls.encrypt(data)
            taken = self._sock.send(data)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            self.fail(error)
            return
        if taken < len(data):
            self._rest = memoryview(data)[taken:]
            self._loop.add_writer(self._sock, self._writable)

    def _writable(self) -> None:
        assert self._sock is not None
        try:
            taken = self._sock.send(self._rest)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(error)
            return
        self._rest = self._rest[taken:]
        if not self._rest:
            self._loop.remove_writer(self._sock)
            self._flush()

    # -- receiving

    def _readable(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(RECEIVE_SIZE)
            if not data:
                raise EOFError
            if self._tls is not None:
                data = self._tls.decrypt(data)
            self._reader.feed(data)
            self._deliver()
        except BlockingIOError:
            return
        except (OSError, EOFError, ValueError, hiredis.HiredisError) as error:
            self.fail(error)

    def _deliver(self) -> None:
        reader, waiting = self._reader, self._waiting
        while (reply := parsed(reader)) is not NOTHING:
            if not waiting:
                raise hiredis.ProtocolError("more replies than commands")
            batch = waiting[0]
            batch.replies.append(reply)
            if len(batch.replies) == batch.count:
                waiting.popleft()
                if not batch.future.done():
                    batch.future.set_result(batch.replies)

    # -- deadlines

    def _watch(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_later(max(0.0, deadline - time.monotonic()), self._check)

    def _check(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        first = min(batch.deadline for batch in self._waiting)
        if first <= time.monotonic():
            self.fail(TimeoutError())
        else:
            self._watch(first)

    # -- ending

    def fail(self, error: BaseException) -> None:
        """Closes, and tells all that wait why; what was sent may still take effect."""
        if self.closed:
            return
        if not self._loop.is_closed():
            if self._sock is not None and self._sock.fileno() >= 0:
                self._loop.remove_reader(self._sock)
                self._loop.remove_writer(self._sock)
            self._opening.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, sent = list(self._waiting), self.ready  # before it is open only the handshake is sent
        self.let_go()
        for batch in waiting:
            if batch.store and self._client_id:
                self._late.add(self._client_id)
            if not batch.future.done() and not self._loop.is_closed():
                reason = error if isinstance(error, Exception) else EOFError()
                batch.future.set_exception(self._faults.of(reason) if sent else self._faults.unsent(reason))

    def let_go(self) -> None:
        """Closes the descriptor and nothing else."""
        self.closed = True
        self.ready = False
        self._waiting.clear()
        self._unsent.clear()
        self._rest = b""
        if self._sock is not None:
            self._sock.close()

    def close(self) -> None:
        """Closes from any thread, also when the loop is gone."""
        self.dismissed = True
        error = EOFError("the tier was closed")
        loop = self._loop
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if loop is not here and loop.is_running():
            try:
                loop.call_soon_threadsafe(self.fail, error)
                return
            except RuntimeError:  # closed in this very moment
                pass
        self.fail(error)

    def __del__(self) -> None:
        sock = getattr(self, "_sock", None)
        if sock is not None:
            sock.close()
