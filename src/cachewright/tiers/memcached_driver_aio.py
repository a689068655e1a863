"""The asyncio driver: one connection per event loop and node, shared by all its tasks.

Requests of one tick of the loop leave in one write; replies come back in order, each turn taking its own. A caller
that is cancelled only stops listening: its turn stays in line, so the replies behind it still find their owners. A
turn that is over its deadline closes the connection, and with it everyone behind it: they wait for the same server.

Sockets are our own and only watched by the loop (``add_reader``), since a transport can be closed by a living loop
alone, while ours must be let go from any thread, after the loop has ended, and in a forked child.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from cachewright.errors import TierError, TierProtocolError, TierTimeout, TierUnavailable
from cachewright.tiers.memcached_codec import MAX_ITEM, Reply, ReplyParser, Request
from cachewright.tiers.memcached_driver import (
    IDLE_CHECK,
    RECEIVE,
    Answer,
    Node,
    Turn,
    alive,
    new_generation,
    open_socket,
)

__all__ = ["AsyncDriver"]


class _Waiting:
    """A turn in line, and who listens for its end."""

    __slots__ = ("deadline", "fresh", "future", "heard", "turn")

    def __init__(self, turn: Turn, deadline: float, fresh: bool, loop: asyncio.AbstractEventLoop) -> None:
        self.turn = turn
        self.deadline = deadline
        self.fresh = fresh
        self.heard = False
        # Errors travel as results: an exception in a future that nobody awaits any more would be logged as lost.
        self.future: asyncio.Future[Answer | TierError | None] = loop.create_future()

    def tell(self, result: Answer | TierError | None) -> None:
        if not self.future.done():
            self.future.set_result(result)


class _Link:
    """One connection of one loop. All methods but `let_go` run on that loop."""

    def __init__(self, tier: str, node: Node, max_item: int, loop: asyncio.AbstractEventLoop) -> None:
        self.generation = new_generation()
        self.loop = loop
        self.dead = False
        self._tier, self._node = tier, node
        self._parser = ReplyParser(tier, max_item)
        self._line: deque[_Waiting] = deque()
        self._out: list[bytes] = []
        self._rest = memoryview(b"")
        self._flushing = False
        self._used = time.monotonic()
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0
        self._sock: socket.socket | None = None
        self._connecting: asyncio.Task[None] | None = loop.create_task(self._connect())

    # ------------------------------------------------------------------ the way out

    def submit(self, requests: Sequence[Request], deadline: float) -> _Waiting:
        """Puts a batch in line."""
        turn = Turn(self._tier, requests, self.generation)
        waiting = _Waiting(turn, deadline, self._connecting is not None, self.loop)
        if turn.complete:
            waiting.tell(turn.answer())
            return waiting
        self._line.append(waiting)
        self._out.append(turn.sent)
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)
        if self._alarm is None or deadline < self._alarm_at:
            self._set_alarm(deadline)
        return waiting

    def usable(self, requests: Sequence[Request]) -> bool:
        """Whether to put ``requests`` in line here; notices that the server has gone while nothing was asked."""
        if self.dead:
            return False
        if self._line or self._connecting is not None or self._sock is None:
            return True
        idle = time.monotonic() - self._used
        if (idle <= IDLE_CHECK and not any(r.mutates for r in requests)) or alive(self._sock):
            return True
        self.end(TierUnavailable(self._tier, f"{self._node.name}: the server closed the connection"))
        return False

    def _flush(self) -> None:
        if self._connecting is not None or self.dead:
            return  # connecting ends with a flush
        self._flushing = False
        if self._rest:
            return  # the writer goes on as soon as the server takes more
        self._rest = memoryview(b"".join(self._out))
        self._out.clear()
        self._write(watched=False)

    def _write(self, watched: bool = True) -> None:
        assert self._sock is not None
        try:
            while self._rest:
                self._rest = self._rest[self._sock.send(self._rest) :]
        except BlockingIOError:
            if not watched:
                self.loop.add_writer(self._sock, self._write)
            return
        except OSError as error:
            self._broken(error)
            return
        if watched:
            self.loop.remove_writer(self._sock)
            if self._out:
                self._flush()

    async def _connect(self) -> None:
        try:
            await self._reach()
        except OSError as error:
            self._connecting = None
            self._broken(error)
        except asyncio.CancelledError:
            # The loop is ending, or this link is.
            self._connecting = None
            self.end(TierUnavailable(self._tier, f"{self._node.name}: given up while connecting"))
            raise

    async def _reach(self) -> None:
        node, loop = self._node, self.loop
        addresses: list[tuple[int, Any]] = [(socket.AF_UNIX, node.host)]
        if node.port:
            found = await loop.getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
            addresses = [(family, address) for family, _, _, _, address in found]
        failed = OSError("the host has no address")
        for family, address in addresses:
            sock = self._sock = open_socket(family)
            self._closer = weakref.finalize(self, sock.close)
            try:
                await loop.sock_connect(sock, address)
            except OSError as error:
                failed = error
                sock.close()
                continue
            if self.dead:
                return
            self._connecting = None
            loop.add_reader(sock, self._read)
            self._flush()
            return
        raise failed

    # ------------------------------------------------------------------ the way back

    def _read(self) -> None:
        if self._sock is None or self.dead:
            return
        ended: list[_Waiting] = []
        try:
            data = self._sock.recv(RECEIVE)
            if not data:
                raise ConnectionResetError("the server closed the connection")
            for reply in self._parser.feed(data):
                self._take(reply, ended)
            if self._parser.pending:
                self._head("the beginning of one").heard = True
        except BlockingIOError:
            return
        except TierProtocolError as error:
            # What came along with nonsense is not to be believed either. Those further back in line were told
            # nothing yet and have only lost their connection.
            for waiting in [*ended, *([self._line.popleft()] if self._line else [])]:
                waiting.tell(error)
            self._broken(ConnectionResetError("closed after an answer that makes no sense"))
            return
        except OSError as error:
            self._broken(error)
        for waiting in ended:
            waiting.tell(waiting.turn.answer())
        if not self._line:
            self._used = time.monotonic()

    def _take(self, reply: Reply, ended: list[_Waiting]) -> None:
        head = self._head(reply.status.decode())
        head.heard = True
        head.turn.take(reply)
        if head.turn.complete:
            ended.append(self._line.popleft())

    def _head(self, what: str) -> _Waiting:
        if not self._line:
            raise TierProtocolError(self._tier, f"an answer that nobody asked for: {what}")
        return self._line[0]

    # ------------------------------------------------------------------ the end

    def _set_alarm(self, deadline: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = self.loop.call_later(max(0.0, deadline - time.monotonic()), self._ring)

    def _ring(self) -> None:
        """The nearest deadline has come: whoever is over his ends the connection."""
        self._alarm = None
        if not self._line:
            return
        now = time.monotonic()
        if all(w.deadline > now for w in self._line):
            self._set_alarm(min(w.deadline for w in self._line))
            return
        late = TierTimeout(self._tier, f"{self._node.name} did not answer within the deadline")
        for waiting in self._line:
            if waiting.deadline <= now:
                waiting.tell(late)
        self._broken(ConnectionResetError("closed, since the server does not answer"))

    def _broken(self, error: OSError) -> None:
        self.end(TierUnavailable(self._tier, f"{self._node.name}: {error.strerror or error}"))

    def end(self, error: TierError) -> None:
        """Closes; tells everyone in line ``error``, or None where it may be asked again, once, on a new connection."""
        if self.dead:
            return
        line, self._line = self._line, deque()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._sock is not None and self._sock.fileno() >= 0 and not self.loop.is_closed():
            self.loop.remove_reader(self._sock)
            self.loop.remove_writer(self._sock)
        self.let_go()
        if self._connecting is not None:
            self._connecting.cancel()
        for waiting in line:
            again = not (waiting.fresh or waiting.heard or waiting.turn.mutates)
            waiting.tell(None if again else error)

    def let_go(self) -> None:
        """Closes the descriptor and nothing else: for loops that are gone, and children of a fork."""
        self.dead = True
        if self._sock is not None:
            self._closer()

    @property
    def open(self) -> bool:
        return not self.dead and self._sock is not None


class AsyncDriver:
    """One connection per event loop and node."""

    def __init__(self, tier: str, nodes: Sequence[Node], max_item: int = MAX_ITEM) -> None:
        self._tier = tier
        self._nodes = nodes
        self._max_item = max_item
        self._lock = threading.Lock()
        self._homes: dict[asyncio.AbstractEventLoop, dict[int, _Link]] = {}

    async def exchange(
        self, batches: Mapping[int, Sequence[Request]], deadline: float
    ) -> dict[int, Answer | TierError]:
        """See `Driver`."""
        loop = asyncio.get_running_loop()
        results: dict[int, Answer | TierError] = {}
        under_way: dict[int, _Waiting] = {}
        for node, requests in batches.items():
            under_way[node] = self._link(loop, node, requests).submit(requests, deadline)
        for node, waiting in under_way.items():
            result = await waiting.future
            if result is None:
                # A held connection whose server has gone, and nothing but reads: once more, on a new one.
                result = await self._link(loop, node, batches[node]).submit(batches[node], deadline).future
            if result is None:
                result = TierUnavailable(self._tier, f"{self._nodes[node].name}: the connection broke twice")
            results[node] = result
        return results

    def _link(self, loop: asyncio.AbstractEventLoop, node: int, requests: Sequence[Request]) -> _Link:
        found = self._homes.get(loop, {}).get(node)
        if found is not None and found.usable(requests):
            return found
        link = _Link(self._tier, self._nodes[node], self._max_item, loop)
        with self._lock:
            gone = [other for other in self._homes if other.is_closed()]
            left = [link for other in gone for link in self._homes.pop(other).values()]
            self._homes.setdefault(loop, {})[node] = link
        for dead in left:
            dead.let_go()
        return link

    def connections(self) -> int:
        """See `Driver`."""
        with self._lock:
            return sum(link.open for home in self._homes.values() for link in list(home.values()))

    def close(self) -> None:
        """See `Driver`. Links of a loop that runs in another thread are closed by that loop, as soon as it gets to it."""
        with self._lock:
            homes, self._homes = self._homes, {}
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        for loop, home in homes.items():
            for link in home.values():
                if loop is not here and loop.is_running():
                    with contextlib.suppress(RuntimeError):  # it ended just now: the next line's case
                        loop.call_soon_threadsafe(self._end, link)
                        continue
                if loop.is_closed():
                    link.let_go()
                else:
                    self._end(link)

    def _end(self, link: _Link) -> None:
        link.end(TierUnavailable(self._tier, "the tier was closed"))

    def after_fork(self) -> None:
        """See `Driver`. The loops' selectors are shared with the parent, so nothing is taken out of them here."""
        homes, self._homes = self._homes, {}
        self._lock = threading.Lock()
        for home in homes.values():
            for link in home.values():
                link.let_go()
