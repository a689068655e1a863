"""What both drivers of the Memcached tier share: nodes, turns and answers.

A driver carries batches of requests to their servers and the replies back. It is told which replies belong to which
request by `Turn`, which also keeps a request that is bound to one connection from being sent on another.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from cachewright.errors import TierError, TierProtocolError
from cachewright.tiers.memcached_codec import Reply, Request, check

__all__ = [
    "IDLE_CHECK",
    "RECEIVE",
    "Answer",
    "Driver",
    "Node",
    "Turn",
    "alive",
    "new_generation",
    "open_socket",
]

IDLE_CHECK = 1.0
"""Seconds after which a held connection is looked at before it is used: its server may have gone."""

RECEIVE = 256 * 1024

new_generation = itertools.count(1).__next__
"""Numbers connections, in this process and for all tiers; no two are alike."""


class Node(msgspec.Struct, frozen=True):
    """One server: a host and port, or the path of a Unix socket (then ``port`` is 0)."""

    host: str
    port: int = 0

    @property
    def name(self) -> str:
        """As in URLs and in `placement`: ``host:port``, ``[v6]:port`` or the path."""
        if not self.port:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def addresses(self) -> list[tuple[int, Any]]:
        """``(family, address)`` in the order in which to try them.

        A host *name* is looked up by the system's resolver, which knows of no deadline; an address is not.
        """
        if not self.port:
            return [(socket.AF_UNIX, self.host)]
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        return [(family, address) for family, _, _, _, address in found]


class Answer(msgspec.Struct, frozen=True):
    """What one node said. A reply is None where its request was bound to a connection that is gone: it was not sent."""

    generation: int
    replies: list[Reply | None]


class Driver(Protocol):
    """What the tier needs of either driver. Both are `async def`; the blocking one never suspends."""

    async def exchange(
        self, batches: Mapping[int, Sequence[Request]], deadline: float
    ) -> dict[int, Answer | TierError]:
        """Sends each node (by index) its requests; all answers, or each node's own error.

        Args:
            batches: requests by node index; sent in order on one connection of that node.
            deadline: by `time.monotonic`. Sockets live in real time, whatever clock the runtime shows.
        """

    def connections(self) -> int:
        """How many are open."""

    def close(self) -> None:
        """Closes all, from any thread; those in use, at the end of their use."""

    def after_fork(self) -> None:
        """In a child: closes the child's copies of the descriptors; nothing is sent or shut down."""


class Turn:
    """One batch of one node on one connection, from its first byte out to its last reply in."""

    __slots__ = ("_tier", "_wanted", "generation", "mutates", "replies", "requests", "sent")

    def __init__(self, tier: str, requests: Sequence[Request], generation: int) -> None:
        self._tier = tier
        self.generation = generation
        self.requests = requests
        self.replies: list[Reply | None] = [None] * len(requests)
        self._wanted = [n for n, r in enumerate(requests) if not r.on or r.on == generation]
        self._wanted.reverse()
        self.mutates = any(requests[n].mutates for n in self._wanted)
        self.sent = b"".join([requests[n].wire for n in reversed(self._wanted)])

    @property
    def complete(self) -> bool:
        return not self._wanted

    def take(self, reply: Reply) -> None:
        """The next reply; raises `TierProtocolError` where it cannot be the one."""
        if not self._wanted:
            raise TierProtocolError(self._tier, f"an answer that nobody asked for: {reply.status.decode()}")
        index = self._wanted[-1]
        check(self._tier, self.requests[index], reply)
        self._wanted.pop()
        self.replies[index] = reply

    def answer(self) -> Answer:
        return Answer(self.generation, self.replies)


def alive(sock: socket.socket) -> bool:
    """Whether an idle connection is still of use: no end of stream and no stray bytes wait in it."""
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def open_socket(family: int) -> socket.socket:
    """A non-blocking socket that sends at once."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    if family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
