"""The Memcached tier: slots in one or several Memcached servers (1.6 or newer), over the meta protocol.

A slot is one item: its header followed by its payload, client flags 0, under the physical key (hashed where Memcached
would not take it), on the node that `placement` names. So any client can read it.

A swap compares headers. Memcached compares numbers: each state of an item has a *CAS unique*. The tier therefore
reads an item, compares its header and sends ``ms … C<cas>`` on the same connection; where the caller has just read or
written the slot over a connection that still stands, the first of these is left out. CAS uniques start over when a
server restarts, so one is never used on another connection than the one that it was read on.

A node that does not answer affects its own keys only. `read` leaves these out while other nodes answer, and raises
when every node that it asked has failed; everything that changes something carries out the rest first and then raises.
With several nodes, one that has timed out is not asked again for half a second: a chain's breaker cannot do that,
since the tier as a whole still answers.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from cachewright.core import slot as transitions
from cachewright.core.slot import Slot
from cachewright.errors import ConfigurationError, TierError, TierProtocolError, TierTimeout, TierUnavailable
from cachewright.keys import check_namespace, memcached_key, physical_key, shorten, without_credentials
from cachewright.runtime.base import Runtime
from cachewright.tiers import memcached_codec as codec
from cachewright.tiers.base import Generation, Swap, Swapped, Tier
from cachewright.tiers.memcached_codec import MAX_ITEM, Reply, Request
from cachewright.tiers.memcached_driver import Answer, Driver, Node
from cachewright.tiers.memcached_driver_blocking import BlockingDriver
from cachewright.tiers.memcached_steps import Seen, SlotSteps, Steps, parse_record
from cachewright.tiers.placement import Placement

__all__ = ["MemcachedTier"]

T = TypeVar("T")

log = logging.getLogger("cachewright")

NODE_PAUSE = 0.5
"""Seconds for which one node of several is left alone after it did not answer."""


class MemcachedTier(Tier):
    """Slots in Memcached.

    Args:
        servers: ``(host, port)`` pairs or absolute paths of Unix sockets. Every process must write a server in the
            same way, in any order: keys are placed by these names.
        namespace: begins every key.
        name: for stats and errors; ``"memcached"`` unless given.
        timeout: seconds that one operation may take in all: connecting, sending and receiving. The system's look-up
            of a host *name* knows no deadline on the blocking face; use an address where that matters.
        max_item: the largest value, in bytes, that a server is believed to send.

    Raises:
        ConfigurationError: no servers, one twice, one that is no address, or a timeout that is not positive.
    """

    kind: ClassVar[str] = "memcached"
    shared: ClassVar[bool] = True
    scannable: ClassVar[bool] = False
    server_time: ClassVar[bool] = False
    """`Generation.changed` is this process's clock: Memcached writes no time of its own into values."""

    def __init__(
        self,
        *,
        servers: Sequence[tuple[str, int] | str],
        namespace: str,
        name: str | None = None,
        timeout: float = 0.5,
        max_item: int = MAX_ITEM,
    ) -> None:
        super().__init__(name or "memcached", check_namespace(namespace))
        if type(timeout) not in (int, float) or not 0 < timeout < math.inf:
            raise ConfigurationError(f"timeout {timeout!r}: it must be a number of seconds above 0")
        if isinstance(servers, str):
            raise ConfigurationError(
                f"servers {without_credentials(servers)!r}: give a list, such as [('127.0.0.1', 11211)]"
            )
        nodes = [_node(server) for server in servers]
        self.timeout = timeout
        self._max_item = max_item
        self._nodes = nodes
        self._placement = Placement([node.name for node in nodes])
        self._blocking = BlockingDriver(self.name, nodes, max_item)
        self._async: Driver | None = None
        self._making = threading.Lock()
        self._limits: dict[int, int] = {}
        self._paused: dict[int, float] = {}  # node → not before this monotonic second
        self._too_large = 0

    # ------------------------------------------------------------------ the tier's operations

    async def read(
        self, rt: Runtime, keys: Sequence[str], tags: Sequence[str] = ()
    ) -> tuple[dict[str, Slot], dict[str, Generation]]:
        """See `Tier`. Keys and tags of a node that failed are left out as long as another node answered."""
        batches: dict[int, list[Request]] = {}
        owners: dict[int, list[tuple[bool, str]]] = {}
        for is_tag, names in ((False, keys), (True, tags)):
            for one in names:
                wire, node = self._place("t" if is_tag else "k", one)
                batches.setdefault(node, []).append(codec.get(wire))
                owners.setdefault(node, []).append((is_tag, one))
        slots: dict[str, Slot] = {}
        generations: dict[str, Generation] = {}
        failed: list[TierError] = []
        for node, answer in (await self._exchange(rt, batches, time.monotonic() + self.timeout)).items():
            if isinstance(answer, TierError):
                failed.append(answer)
                continue
            for (is_tag, one), reply in zip(owners[node], answer.replies, strict=True):
                if reply is None or reply.status != b"VA":
                    if reply is not None and reply.status == b"SERVER_ERROR":
                        raise TierUnavailable(self.name, f"the server could not read: {reply.text}")
                elif is_tag:
                    generation = parse_record(reply.value)
                    if generation is not None:
                        generations[one] = generation
                else:
                    slots[one] = transitions.parse(reply.value, Seen(answer.generation, reply.cas))
        if failed and len(failed) == len(batches):
            raise failed[0]
        return slots, generations

    async def swap(self, rt: Runtime, swaps: Sequence[Swap]) -> list[Swapped]:
        """See `Tier`."""
        steps = self._steps(rt)
        jobs: list[tuple[int, Steps[Swapped]]] = []
        for swap in swaps:
            wire, node = self._place("k", swap.key)
            jobs.append((node, steps.swap(wire, node, swap.expected, swap.new)))
        return await self._run(rt, jobs)

    async def drop(self, rt: Runtime, keys: Sequence[str]) -> list[bool]:
        """See `Tier`."""
        steps = self._steps(rt)
        jobs: list[tuple[int, Steps[bool]]] = []
        for key in keys:
            wire, node = self._place("k", key)
            jobs.append((node, steps.drop(wire, node)))
        return await self._run(rt, jobs)

    async def store(self, rt: Runtime, slots: Mapping[str, Slot]) -> list[bool]:
        """See `Tier`. On an absent key a lease is added first and the entry swapped into it."""
        steps = self._steps(rt)
        jobs: list[tuple[int, Steps[bool]]] = []
        for key, slot in slots.items():
            wire, node = self._place("k", key)
            jobs.append((node, steps.store(wire, node, slot)))
        return await self._run(rt, jobs)

    async def set_generations(
        self, rt: Runtime, marks: Mapping[str, bytes], *, only_missing: bool
    ) -> dict[str, Generation]:
        """See `Tier`; with this process's time (see `server_time`)."""
        steps = self._steps(rt)
        jobs: list[tuple[int, Steps[Generation]]] = []
        for tag, mark in marks.items():
            wire, node = self._place("t", tag)
            jobs.append((node, steps.mark(wire, mark, only_missing)))
        return dict(zip(marks, await self._run(rt, jobs), strict=True))

    async def clear(self, rt: Runtime) -> None:
        """Nothing: Memcached cannot list its keys. The core sets a new generation of its namespace tag."""

    async def connect(self, rt: Runtime) -> None:
        """Reaches every server once.

        Raises:
            TierError: the first one that could not be reached, and why.
        """
        everyone = {node: [codec.noop()] for node in range(len(self._nodes))}
        for answer in (await self._exchange(rt, everyone, time.monotonic() + self.timeout)).values():
            if isinstance(answer, TierError):
                raise answer

    # ------------------------------------------------------------------ its end

    def close(self) -> None:
        """See `Tier`."""
        self._blocking.close()
        if self._async is not None:
            self._async.close()

    def after_fork(self) -> None:
        """See `Tier`."""
        self._making = threading.Lock()
        self._blocking.after_fork()
        if self._async is not None:
            self._async.after_fork()

    def describe(self) -> dict[str, Any]:
        """Servers, those that are left alone at the moment, open connections of this process, refused items."""
        now = time.monotonic()
        return {
            "servers": list(self._placement.names),
            "paused": [self._nodes[n].name for n, until in list(self._paused.items()) if until > now],
            "connections": self._blocking.connections() + (self._async.connections() if self._async else 0),
            "timeout": self.timeout,
            "too_large": self._too_large,
        }

    @property
    def sharded(self) -> bool:
        return len(self._nodes) > 1

    def __repr__(self) -> str:
        servers = ", ".join(self._placement.names)
        return f"<MemcachedTier {self.name!r} of {servers}, namespace {self.namespace!r}>"

    # ------------------------------------------------------------------ carrying it out

    def locate(self, key: str) -> tuple[str, bytes]:
        """The name of the server that holds ``key``, and the key's form there."""
        wire, node = self._place("k", key)
        return self._nodes[node].name, wire

    def _place(self, kind: Any, key: str) -> tuple[bytes, int]:
        wire = memcached_key(physical_key(self.namespace, kind, key))
        return wire, self._placement.node(wire)

    def _steps(self, rt: Runtime) -> SlotSteps:
        # The lease that a store adds must outlive the operation, or an evicted one would let another load in.
        return SlotSteps(self.name, rt.now, rt.new_id, int(self.timeout * 1000) + 1000, self._limits)

    async def _run(self, rt: Runtime, jobs: Sequence[tuple[int, Steps[T]]]) -> list[T]:
        """Runs many keys' steps side by side; raises the first error when all have come to their end."""
        deadline = time.monotonic() + self.timeout
        results: dict[int, T] = {}
        failed: dict[int, TierError] = {}
        pending: dict[int, Request] = {}

        def advance(index: int, reply: Reply | None, generation: int, begin: bool = False) -> None:
            try:
                steps = jobs[index][1]
                pending[index] = next(steps) if begin else steps.send((reply, generation))
            except StopIteration as stop:
                results[index] = stop.value
            except TierError as error:
                failed[index] = error
                if isinstance(error, TierProtocolError):
                    self._too_large += 1
                    log.warning("%s", error)

        for index in range(len(jobs)):
            advance(index, None, 0, begin=True)
        while pending:
            batches: dict[int, list[Request]] = {}
            owners: dict[int, list[int]] = {}
            for index, request in pending.items():
                batches.setdefault(jobs[index][0], []).append(request)
                owners.setdefault(jobs[index][0], []).append(index)
            pending.clear()
            for node, answer in (await self._exchange(rt, batches, deadline)).items():
                if isinstance(answer, TierError):
                    failed.update((index, answer) for index in owners[node])
                    continue
                for index, reply in zip(owners[node], answer.replies, strict=True):
                    advance(index, reply, answer.generation)
        if failed:
            raise failed[min(failed)]
        return [results[index] for index in range(len(jobs))]

    async def _exchange(
        self, rt: Runtime, batches: Mapping[int, Sequence[Request]], deadline: float
    ) -> dict[int, Answer | TierError]:
        driver = self._driver(rt)
        if len(self._nodes) == 1:
            return await driver.exchange(batches, deadline)
        results: dict[int, Answer | TierError] = {}
        now = time.monotonic()
        asked: dict[int, Sequence[Request]] = {}
        for node, requests in batches.items():
            until = self._paused.get(node)
            if until is not None and until > now:
                results[node] = TierUnavailable(
                    self.name, f"{self._nodes[node].name} did not answer a moment ago and is left alone"
                )
                continue
            if until is not None:
                self._paused[node] = now + NODE_PAUSE  # this call is the probe; others go on without
            asked[node] = requests
        for node, answer in (await driver.exchange(asked, deadline)).items():
            results[node] = answer
            if isinstance(answer, TierTimeout):
                self._paused[node] = time.monotonic() + NODE_PAUSE
            else:
                self._paused.pop(node, None)
        return results

    def _driver(self, rt: Runtime) -> Driver:
        if rt.name != "asyncio":
            return self._blocking
        if self._async is None:
            with self._making:
                if self._async is None:
                    from cachewright.tiers.memcached_driver_aio import AsyncDriver

                    self._async = AsyncDriver(self.name, self._nodes, self._max_item)
        return self._async


def _node(server: object) -> Node:
    if isinstance(server, str):
        if server.startswith("/"):
            return Node(server)
        raise ConfigurationError(
            f"server {without_credentials(server)!r}: give (host, port), or the absolute path of a Unix socket"
        )
    if isinstance(server, (tuple, list)) and len(server) == 2:
        host, port = server
        if isinstance(host, str) and host and type(port) is int and 0 < port < 65536:
            try:
                host.encode("idna")
            except UnicodeError as error:
                raise ConfigurationError(f"server {shorten(host)}: no valid host name ({error})") from None
            return Node(host, port)
    raise ConfigurationError(f"server {server!r}: give (host, port) with a port of 1 to 65535")
