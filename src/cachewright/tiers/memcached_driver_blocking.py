"""The blocking driver: one held connection per thread and node.

No pool, so nobody waits for a connection and no lock is held while one talks. All nodes of one call are talked to at
once, sending and receiving as each is ready, under one deadline. (Sending everything before receiving would lock up:
a server whose answers nobody takes stops reading.)

After a timeout, a broken exchange or any exception (``KeyboardInterrupt`` as well) the connection is closed before
anything else is sent: a connection is taken out of its place while in use, and only a clean one is put back.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Mapping, Sequence

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

__all__ = ["BlockingDriver"]


class _Link:
    """A connection of one thread. Begins to connect at once and goes through the node's addresses in turn."""

    def __init__(self, tier: str, node: Node, max_item: int, epoch: int) -> None:
        self.generation = new_generation()
        self.epoch = epoch  # how often the driver had been closed when this was made
        self.parser = ReplyParser(tier, max_item)
        self.used = 0.0
        self._addresses = iter(node.addresses())
        self.connecting = True
        self._next_address()

    def _next_address(self, failed: OSError | None = None) -> None:
        for family, address in self._addresses:
            self.sock = open_socket(family)
            # A finalizer, since a thread may end without a word: it runs before the socket's own, which would warn.
            self._closer = weakref.finalize(self, self.sock.close)
            try:
                self.sock.connect(address)
            except BlockingIOError as error:
                if (
                    family == socket.AF_UNIX
                ):  # for a Unix socket this means a full backlog: nothing is under way
                    self.close()
                    failed = error
                    continue
            except OSError as error:
                self.close()
                failed = error
                continue
            return
        raise failed or OSError("the host has no address")

    def advance(self) -> None:
        """Called when the socket is writable while connecting: connected, or on to the next address."""
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self.close()
            self._next_address(OSError(code, os.strerror(code)))
        else:
            self.connecting = False

    def close(self) -> None:
        self._closer()


class _Talk:
    """A turn under way on a link of this thread."""

    def __init__(self, node: int, link: _Link, turn: Turn, fresh: bool) -> None:
        self.node, self.link, self.turn, self.fresh = node, link, turn, fresh
        self.out = memoryview(turn.sent)
        self.heard = False

    def events(self) -> int:
        if self.link.connecting:
            return select.POLLOUT
        return select.POLLIN | select.POLLOUT if self.out else select.POLLIN

    def send(self) -> None:
        try:
            while self.out:
                self.out = self.out[self.link.sock.send(self.out) :]
        except BlockingIOError:
            return

    def step(self, event: int) -> None:
        """Goes on as far as it can without waiting. Raises `OSError` or `TierProtocolError`."""
        if self.link.connecting:
            self.link.advance()
            if self.link.connecting:
                return
        if self.out:
            self.send()
        if event & ~select.POLLOUT:
            try:
                data = self.link.sock.recv(RECEIVE)
            except BlockingIOError:
                return
            if not data:
                raise ConnectionResetError("the server closed the connection")
            self.heard = True
            for reply in self.link.parser.feed(data):
                self.turn.take(reply)
            if self.turn.complete and self.link.parser.pending:
                self.turn.take(Reply(b"more"))  # bytes after the last answer: raises


class _Place:
    """A thread's connections that are not in use, by node index."""

    __slots__ = ("__weakref__", "links")

    def __init__(self) -> None:
        self.links: dict[int, _Link] = {}


class BlockingDriver:
    """One held connection per thread and node."""

    def __init__(self, tier: str, nodes: Sequence[Node], max_item: int = MAX_ITEM) -> None:
        self._tier = tier
        self._nodes = nodes
        self._max_item = max_item
        self._reset()

    def _reset(self) -> None:
        # Held for a dictionary look-up, never during I/O. Re-entrant, for a signal handler may use the cache.
        self._lock = threading.RLock()
        self._mine = threading.local()
        self._places: weakref.WeakSet[_Place] = weakref.WeakSet()
        self._links: weakref.WeakSet[_Link] = weakref.WeakSet()
        self._epoch = 0

    async def exchange(
        self, batches: Mapping[int, Sequence[Request]], deadline: float
    ) -> dict[int, Answer | TierError]:
        """See `Driver`; blocks this thread."""
        results: dict[int, Answer | TierError] = {}
        talks: dict[int, _Talk] = {}  # by file descriptor
        poller = select.poll()
        try:
            for node, requests in batches.items():
                self._begin(node, requests, results, talks, poller)
            while talks:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    for talk in talks.values():
                        results[talk.node] = TierTimeout(
                            self._tier, f"{self._nodes[talk.node].name} did not answer within the deadline"
                        )
                    break
                for fd, event in poller.poll(remaining * 1000):
                    self._go_on(fd, event, results, talks, poller)
        finally:
            for talk in talks.values():
                talk.link.close()
        return results

    def _begin(
        self,
        node: int,
        requests: Sequence[Request],
        results: dict[int, Answer | TierError],
        talks: dict[int, _Talk],
        poller: select.poll,
        again: bool = False,
    ) -> None:
        link = None if again else self._take(node, requests)
        fresh = link is None
        if link is None:
            # Requests that are bound to another connection need none of their own.
            if all(r.on for r in requests):
                results[node] = Answer(0, [None] * len(requests))
                return
            try:
                link = _Link(self._tier, self._nodes[node], self._max_item, self._epoch)
            except OSError as error:
                results[node] = self._unavailable(node, error)
                return
            with self._lock:
                self._links.add(link)
        turn = Turn(self._tier, requests, link.generation)
        if turn.complete:
            results[node] = turn.answer()
            self._give_back(node, link)
            return
        talk = _Talk(node, link, turn, fresh)
        fd = link.sock.fileno()
        talks[fd] = talk
        poller.register(fd, talk.events())
        if not link.connecting:
            self._go_on(fd, select.POLLOUT, results, talks, poller)

    def _go_on(
        self,
        fd: int,
        event: int,
        results: dict[int, Answer | TierError],
        talks: dict[int, _Talk],
        poller: select.poll,
    ) -> None:
        talk = talks[fd]
        before = talk.events()
        try:
            talk.step(event)
        except (OSError, TierProtocolError) as error:
            del talks[fd]
            poller.unregister(fd)
            talk.link.close()
            # A held connection whose server has gone. What only reads may be asked again, once, anew; what changes
            # something may not: nobody knows whether it was done.
            if not (talk.fresh or talk.heard or talk.turn.mutates or isinstance(error, TierError)):
                self._begin(talk.node, talk.turn.requests, results, talks, poller, again=True)
            elif isinstance(error, TierError):
                results[talk.node] = error
            else:
                results[talk.node] = self._unavailable(talk.node, error)
            return
        if talk.turn.complete:
            del talks[fd]
            poller.unregister(fd)
            results[talk.node] = talk.turn.answer()
            self._give_back(talk.node, talk.link)
        elif (now := talk.link.sock.fileno()) != fd:  # on to the host's next address
            del talks[fd]
            talks[now] = talk
            poller.unregister(fd)
            poller.register(now, talk.events())
        elif talk.events() != before:
            poller.modify(fd, talk.events())

    def _unavailable(self, node: int, error: OSError) -> TierUnavailable:
        return TierUnavailable(self._tier, f"{self._nodes[node].name}: {error.strerror or error}")

    def _take(self, node: int, requests: Sequence[Request]) -> _Link | None:
        place: _Place | None = getattr(self._mine, "place", None)
        if place is None:
            return None
        with self._lock:
            link = place.links.pop(node, None)
        if link is None:
            return None
        idle = time.monotonic() - link.used
        if (idle > IDLE_CHECK or any(r.mutates for r in requests)) and not alive(link.sock):
            link.close()
            return None
        return link

    def _give_back(self, node: int, link: _Link) -> None:
        link.used = time.monotonic()
        place: _Place | None = getattr(self._mine, "place", None)
        with self._lock:
            if place is None:
                place = self._mine.place = _Place()
                self._places.add(place)
            # A signal handler may have used the cache in between and have left its own connection here.
            if node not in place.links and link.epoch == self._epoch:
                place.links[node] = link
                return
        link.close()

    def connections(self) -> int:
        """See `Driver`."""
        with self._lock:
            links = list(self._links)
        return sum(1 for link in links if link.sock.fileno() >= 0)

    def close(self) -> None:
        """See `Driver`."""
        with self._lock:
            self._epoch += 1
            places = list(self._places)
            links = [link for place in places for link in place.links.values()]
            for place in places:
                place.links = {}
        for link in links:
            link.close()

    def after_fork(self) -> None:
        """See `Driver`."""
        # No lock of the parent's is taken: the thread that held it does not exist here.
        links = list(self._links)
        self._reset()
        for link in links:
            link.close()
