"""A Redis Cluster as a tier: every key by itself on its node, one batch and one round trip per node.

While a shard fails over, what touches its keys raises `TierUnavailable` and the other shards go on. A `read` of many
keys leaves the keys of a node that failed out, as if they were absent, and raises only where all nodes failed: a swap
of such a key raises by itself. Other operations carry out what they can on the nodes that live, and then raise.
"""

from __future__ import annotations

import ssl as ssl_module
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from cachewright.core.slot import Slot
from cachewright.errors import ConfigurationError, TierError, TierUnavailable
from cachewright.keys import physical_key
from cachewright.runtime.base import Runtime
from cachewright.tiers.base import Generation, Swap, Swapped, Tier
from cachewright.tiers.redis_cluster_batch import Item, run_batch
from cachewright.tiers.redis_cluster_map import ClusterMap, Place, key_slot
from cachewright.tiers.redis_driver import Address, Command, Reply, ReplyError, raise_reply
from cachewright.tiers.redis_large import store_large, swap_large
from cachewright.tiers.redis_scripts import (
    drop_call,
    generation_call,
    is_large,
    is_large_store,
    read_done,
    read_generation,
    read_record,
    read_scan,
    read_slot,
    read_swapped,
    scan_pattern,
    store_call,
    swap_call,
)
from cachewright.tiers.redis_server import Server

__all__ = ["RedisClusterTier"]

T = TypeVar("T")

_SCAN_COUNT: Final = 500
_REDIRECTIONS: Final = 5


class RedisClusterTier(Tier):
    """A cluster, found through any of its nodes.

    Args:
        nodes: host and port of some nodes; the others are learned from them.
        username: ACL user; None for the default user.
        password: never shown in messages, ``repr`` or stats.
        ssl: True for TLS with the system's certificates, or a context of your own.
        namespace: prefix of every key.
        name: the tier's name in stats, events and errors.
        timeout: seconds within which every operation ends, connecting included.
    """

    kind = "redis+cluster"

    def __init__(
        self,
        *,
        nodes: Sequence[tuple[str, int]],
        username: str | None = None,
        password: str | None = None,
        ssl: bool | ssl_module.SSLContext = False,
        namespace: str,
        name: str | None = None,
        timeout: float = 0.5,
    ) -> None:
        if not nodes:
            raise ConfigurationError("a Redis Cluster needs at least one node: redis+cluster://host:port")
        self._label = ",".join(f"{host}:{port}" for host, port in nodes)
        super().__init__(name or f"redis+cluster({self._label})", namespace)
        self.timeout = timeout

        def make(place: Place) -> Server:
            address = Address(host=place[0], port=place[1], username=username, password=password, ssl=ssl)
            return Server(address, self.name, timeout)

        self._map = ClusterMap(self.name, nodes, make)
        self._slots = physical_key(namespace, "k", "")
        self._tags = physical_key(namespace, "t", "")

    @property
    def sharded(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"RedisClusterTier({self._label!r}, namespace={self.namespace!r})"

    async def read(
        self, rt: Runtime, keys: Sequence[str], tags: Sequence[str] = ()
    ) -> tuple[dict[str, Slot], dict[str, Generation]]:
        """See `Tier.read`; keys of a node that failed are left out, unless all failed."""
        names = [(self._slots + key).encode() for key in keys]
        names += [(self._tags + tag).encode() for tag in tags]
        replies = await self._run(
            rt, names, [("GET", name) for name in names], self._until(), repeatable=True
        )
        failures = [reply for reply in replies if isinstance(reply, TierError)]
        if failures and len(failures) == len(replies):
            raise failures[0]
        slots: dict[str, Slot] = {}
        marks: dict[str, Generation] = {}
        for key, reply in zip(keys, replies, strict=False):
            if (slot := read_slot(self.name, self._value(reply))) is not None:
                slots[key] = slot
        for tag, reply in zip(tags, replies[len(keys) :], strict=True):
            if (mark := read_generation(self.name, self._value(reply))) is not None:
                marks[tag] = mark
        return slots, marks

    def _value(self, reply: Reply) -> Reply:
        if isinstance(reply, TierError):
            return None
        if isinstance(reply, ReplyError):
            if reply.code != "WRONGTYPE":  # another type under our name is no slot
                raise_reply(self.name, reply)
            return None
        return reply

    async def swap(self, rt: Runtime, swaps: Sequence[Swap]) -> list[Swapped]:
        """See `Tier.swap`. Where a node fails the others' swaps are carried out and may stand."""
        deadline = self._until()
        now = int(rt.now() * 1000)
        names = [(self._slots + swap.key).encode() for swap in swaps]
        large = [is_large(swap) for swap in swaps]
        small = [at for at in range(len(swaps)) if not large[at]]
        calls = [swap_call(names[at], swaps[at], now) for at in small]
        replies = await self._run(rt, [names[at] for at in small], calls, deadline)
        done = iter([read_swapped(self.name, reply) for reply in self._checked(replies)])
        return [
            await self._swap_large(rt, names[at], swap, now, deadline) if large[at] else next(done)
            for at, swap in enumerate(swaps)
        ]

    async def _swap_large(self, rt: Runtime, name: bytes, swap: Swap, now: int, deadline: float) -> Swapped:
        swapped = await self._on_node(
            rt, name, deadline, lambda server: swap_large(server, rt, name, swap, now, deadline)
        )
        if swapped is not None:
            return swapped
        replies = await self._run(rt, [name], [swap_call(name, swap, now)], deadline)
        return read_swapped(self.name, self._checked(replies)[0])

    async def _on_node(
        self, rt: Runtime, name: bytes, deadline: float, attempt: Callable[[Server], Awaitable[T]]
    ) -> T | None:
        """Runs a transaction on a key's node; None where the slot is on its way to another node.

        WATCH and MULTI cannot follow it there; a script, which is a single command, can.
        """
        await self._map.ensure(rt, deadline)
        slot = key_slot(name)
        for _ in range(_REDIRECTIONS):
            place = self._map.place_of(slot)
            try:
                return await attempt(self._map.server(place))
            except ReplyError as reply:
                if reply.code in {"ASK", "TRYAGAIN"}:
                    return None
                if reply.code != "MOVED":
                    raise_reply(self.name, reply)
                self._map.moved(*self._map.redirected(reply, place))
            except TierError as error:
                self._map.failed(place, error)
                raise
        raise TierUnavailable(self.name, f"hash slot {slot} moved {_REDIRECTIONS} times within one call")

    async def drop(self, rt: Runtime, keys: Sequence[str]) -> list[bool]:
        """See `Tier.drop`."""
        return await self._drop(rt, [(self._slots + key).encode() for key in keys])

    async def _drop(self, rt: Runtime, names: Sequence[bytes]) -> list[bool]:
        calls = [drop_call(name, rt.new_id()) for name in names]
        replies = await self._run(rt, names, calls, self._until(), repeatable=True)
        return [read_done(self.name, reply) for reply in self._checked(replies)]

    async def store(self, rt: Runtime, slots: Mapping[str, Slot]) -> list[bool]:
        """See `Tier.store`."""
        deadline = self._until()
        now = int(rt.now() * 1000)
        names = {key: (self._slots + key).encode() for key in slots}
        stored: dict[str, bool] = {}
        failure: TierError | None = None
        for key, slot in slots.items():
            if is_large_store(slot):
                try:
                    if await self._store_large(rt, names[key], slot, now, deadline):
                        stored[key] = True
                except TierError as error:
                    failure = failure or error
                    stored[key] = False
        rest = [key for key in slots if key not in stored]
        calls = [store_call(names[key], slots[key], rt.new_id(), now) for key in rest]
        replies = self._checked(
            await self._run(rt, [names[key] for key in rest], calls, deadline, store=True)
        )
        if failure is not None:
            raise failure
        stored.update((key, read_done(self.name, reply)) for key, reply in zip(rest, replies, strict=True))
        return [stored[key] for key in slots]

    async def _store_large(
        self, rt: Runtime, name: bytes, slot: Slot, now: int, deadline: float
    ) -> bool | None:
        return await self._on_node(
            rt, name, deadline, lambda server: store_large(server, rt, name, slot, now, deadline)
        )

    async def set_generations(
        self, rt: Runtime, marks: Mapping[str, bytes], *, only_missing: bool
    ) -> dict[str, Generation]:
        """See `Tier.set_generations`."""
        names = [(self._tags + tag).encode() for tag in marks]
        calls = [
            generation_call(name, mark, only_missing)
            for name, mark in zip(names, marks.values(), strict=True)
        ]
        replies = self._checked(await self._run(rt, names, calls, self._until()))
        return {tag: read_record(self.name, reply) for tag, reply in zip(marks, replies, strict=True)}

    async def clear(self, rt: Runtime) -> None:
        """See `Tier.clear`. Nodes that can be reached are cleared, then the first failure is raised."""
        await self._map.ensure(rt, self._until())
        failure: TierError | None = None
        for place in self._map.primaries():
            try:
                await self._clear_node(rt, place)
            except TierError as error:
                self._map.failed(place, error)
                failure = failure or error
        if failure is not None:
            raise failure

    async def _clear_node(self, rt: Runtime, place: Place) -> None:
        server, pattern = self._map.server(place), scan_pattern(self._slots)
        cursor = b""
        while True:
            command = ("SCAN", cursor or b"0", "MATCH", pattern, "COUNT", _SCAN_COUNT)
            reply = (await server.execute(rt, [command], self._until(), repeatable=True))[0]
            if isinstance(reply, ReplyError):
                raise_reply(self.name, reply)
            cursor, names = read_scan(self.name, reply, cursor)
            await self._drop(rt, names)
            if cursor == b"0":
                return

    async def connect(self, rt: Runtime) -> None:
        """Asks a node for the cluster's map; raises where none can be reached or it is no cluster."""
        await self._map.refresh(rt, self._until())

    def _until(self) -> float:
        return time.monotonic() + self.timeout

    async def _run(
        self,
        rt: Runtime,
        names: Sequence[bytes],
        commands: Sequence[Command],
        deadline: float,
        *,
        repeatable: bool = False,
        store: bool = False,
    ) -> list[Reply | TierError]:
        items = [Item(key_slot(name), command) for name, command in zip(names, commands, strict=True)]
        await run_batch(self._map, rt, items, deadline, repeatable=repeatable, store=store)
        return [item.result for item in items]

    def _checked(self, replies: Sequence[Reply | TierError]) -> Sequence[Reply]:
        for reply in replies:
            if isinstance(reply, TierError):
                raise reply
            if isinstance(reply, ReplyError):
                raise_reply(self.name, reply)
        return replies

    def close(self) -> None:
        """See `Tier.close`."""
        for server in self._map.servers():
            server.close()

    def after_fork(self) -> None:
        """See `Tier.after_fork`."""
        for server in self._map.servers():
            server.after_fork()

    def describe(self) -> dict[str, Any]:
        """Addresses of the primaries that are known, and open connections."""
        facts = [server.describe() for server in self._map.servers()]
        return {
            "address": self._label,
            "primaries": [f"{host}:{port}" for host, port in self._map.primaries()],
            "connections": sum(fact["connections"] for fact in facts),
        }
