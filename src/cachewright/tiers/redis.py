"""A Redis or Valkey server as a tier.

A slot is one string under ``<namespace>:k:<key>``: header, then payload, with the slot's physical life as its expiry.
A tag's generation is 16 bytes under ``<namespace>:t:<tag>``: the mark and the server's time of change in ms.
"""

from __future__ import annotations

import ssl as ssl_module
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cachewright.core.slot import Slot
from cachewright.keys import physical_key
from cachewright.runtime.base import Runtime
from cachewright.tiers.base import Generation, Swap, Swapped, Tier
from cachewright.tiers.redis_driver import Address, Command, Reply, ReplyError, checked
from cachewright.tiers.redis_large import store_large, swap_large
from cachewright.tiers.redis_scripts import (
    drop_call,
    generation_call,
    is_large,
    is_large_store,
    missing_scripts,
    read_done,
    read_generation,
    read_record,
    read_scan,
    read_slot,
    read_swapped,
    scan_pattern,
    store_call,
    swap_call,
    with_source,
)
from cachewright.tiers.redis_server import Server

__all__ = ["RedisTier"]

_SCAN_COUNT = 500


class RedisTier(Tier):
    """One server, standalone or a primary with replicas behind one address.

    Args:
        host: name or IP address.
        port: TCP port.
        db: number of the database.
        username: ACL user; None for the default user.
        password: never shown in messages, ``repr`` or stats.
        unix_path: path of a Unix socket instead of host and port.
        ssl: True for TLS with the system's certificates, or a context of your own.
        namespace: prefix of every key.
        name: the tier's name in stats, events and errors.
        timeout: seconds within which every operation ends, connecting included.
        max_connections: so many connections are shared by all threads, which wait for a free one within the timeout;
            None: every thread holds one of its own, which is faster. An event loop has one, or two with large values.
    """

    kind = "redis"

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 6379,
        db: int = 0,
        username: str | None = None,
        password: str | None = None,
        unix_path: str | None = None,
        ssl: bool | ssl_module.SSLContext = False,
        namespace: str,
        name: str | None = None,
        timeout: float = 0.5,
        max_connections: int | None = None,
    ) -> None:
        address = Address(
            host=host, port=port, db=db, username=username, password=password, unix_path=unix_path, ssl=ssl
        )
        super().__init__(name or f"redis({address.label})", namespace)
        self.timeout = timeout
        self._server = Server(address, self.name, timeout, max_connections)
        self._slots = physical_key(namespace, "k", "")
        self._tags = physical_key(namespace, "t", "")

    def __repr__(self) -> str:
        return f"RedisTier({self._server.address.label!r}, namespace={self.namespace!r})"

    async def read(
        self, rt: Runtime, keys: Sequence[str], tags: Sequence[str] = ()
    ) -> tuple[dict[str, Slot], dict[str, Generation]]:
        """See `Tier.read`. One GET, or one MGET for slots and generations together."""
        deadline = time.monotonic() + self.timeout
        prefix = self._slots
        if len(keys) == 1 and not tags:
            reply = (await self._server.execute(rt, (("GET", prefix + keys[0]),), deadline, repeatable=True))[
                0
            ]
            if isinstance(reply, ReplyError):
                if reply.code != "WRONGTYPE":  # another type under our name is no slot, as for MGET
                    self._server.refused(reply)
                return {}, {}
            slot = read_slot(self.name, reply)
            return ({keys[0]: slot} if slot is not None else {}), {}
        if not keys and not tags:
            return {}, {}
        command = ("MGET", *[prefix + key for key in keys], *[self._tags + tag for tag in tags])
        reply = (await self._run(rt, [command], deadline, repeatable=True))[0]
        values = checked(self.name, reply, list, "a value for each key", len(keys) + len(tags))
        slots = {
            key: slot
            for key, value in zip(keys, values, strict=False)
            if (slot := read_slot(self.name, value)) is not None
        }
        marks = {
            tag: mark
            for tag, value in zip(tags, values[len(keys) :], strict=True)
            if (mark := read_generation(self.name, value)) is not None
        }
        return slots, marks

    async def swap(self, rt: Runtime, swaps: Sequence[Swap]) -> list[Swapped]:
        """See `Tier.swap`."""
        deadline = time.monotonic() + self.timeout
        now = int(rt.now() * 1000)
        prefix = self._slots
        small = [swap for swap in swaps if not is_large(swap)]
        calls = [swap_call((prefix + swap.key).encode(), swap, now) for swap in small]
        replies = await self._run(rt, calls, deadline) if calls else []
        results = [read_swapped(self.name, reply) for reply in replies]
        if len(small) == len(swaps):
            return results
        done = iter(results)
        return [
            await self._swap_large(rt, swap, now, deadline) if is_large(swap) else next(done)
            for swap in swaps
        ]

    async def _swap_large(self, rt: Runtime, swap: Swap, now: int, deadline: float) -> Swapped:
        try:
            key = (self._slots + swap.key).encode()
            return await swap_large(self._server, rt, key, swap, now, deadline)
        except ReplyError as reply:
            self._server.refused(reply)

    async def drop(self, rt: Runtime, keys: Sequence[str]) -> list[bool]:
        """See `Tier.drop`."""
        prefix = self._slots
        return await self._drop(rt, [(prefix + key).encode() for key in keys])

    async def _drop(self, rt: Runtime, keys: Sequence[bytes]) -> list[bool]:
        if not keys:
            return []
        calls = [drop_call(key, rt.new_id()) for key in keys]
        replies = await self._run(rt, calls, time.monotonic() + self.timeout, repeatable=True)
        return [read_done(self.name, reply) for reply in replies]

    async def store(self, rt: Runtime, slots: Mapping[str, Slot]) -> list[bool]:
        """See `Tier.store`."""
        deadline = time.monotonic() + self.timeout
        now = int(rt.now() * 1000)
        names = {key: (self._slots + key).encode() for key in slots}
        stored: dict[str, bool] = {}
        for key, slot in slots.items():
            if is_large_store(slot) and await self._store_large(rt, names[key], slot, now, deadline):
                stored[key] = True
        rest = [key for key in slots if key not in stored]
        if rest:
            calls = [store_call(names[key], slots[key], rt.new_id(), now) for key in rest]
            replies = await self._run(rt, calls, deadline, store=True)
            stored.update(
                (key, read_done(self.name, reply)) for key, reply in zip(rest, replies, strict=True)
            )
        return [stored[key] for key in slots]

    async def _store_large(self, rt: Runtime, name: bytes, slot: Slot, now: int, deadline: float) -> bool:
        try:
            return await store_large(self._server, rt, name, slot, now, deadline)
        except ReplyError as reply:
            self._server.refused(reply)

    async def set_generations(
        self, rt: Runtime, marks: Mapping[str, bytes], *, only_missing: bool
    ) -> dict[str, Generation]:
        """See `Tier.set_generations`."""
        if not marks:
            return {}
        calls = [
            generation_call((self._tags + tag).encode(), mark, only_missing) for tag, mark in marks.items()
        ]
        replies = await self._run(rt, calls, time.monotonic() + self.timeout)
        return {tag: read_record(self.name, reply) for tag, reply in zip(marks, replies, strict=True)}

    async def clear(self, rt: Runtime) -> None:
        """See `Tier.clear`. Each step has its deadline; the whole takes as long as the server has keys."""
        pattern = scan_pattern(self._slots)
        cursor = b""
        while True:
            command = ("SCAN", cursor or b"0", "MATCH", pattern, "COUNT", _SCAN_COUNT)
            replies = await self._run(rt, [command], time.monotonic() + self.timeout, repeatable=True)
            cursor, keys = read_scan(self.name, replies[0], cursor)
            await self._drop(rt, keys)
            if cursor == b"0":
                return

    async def connect(self, rt: Runtime) -> None:
        """Reaches the server once; raises where it cannot be reached or refuses the credentials."""
        await self._run(rt, [("PING",)], time.monotonic() + self.timeout, repeatable=True)

    async def _run(
        self,
        rt: Runtime,
        commands: Sequence[Command],
        deadline: float,
        *,
        repeatable: bool = False,
        store: bool = False,
    ) -> list[Reply]:
        server = self._server
        replies = await server.execute(rt, commands, deadline, repeatable=repeatable, store=store)
        missing = missing_scripts(commands, replies)
        if missing:
            again = [with_source(commands[at]) for at in missing]
            fresh = await server.execute(rt, again, deadline, repeatable=repeatable, store=store)
            for at, reply in zip(missing, fresh, strict=True):
                replies[at] = reply
        for reply in replies:
            if isinstance(reply, ReplyError):
                server.refused(reply)
        return replies

    def close(self) -> None:
        """See `Tier.close`."""
        self._server.close()

    async def aclose(self, rt: Runtime) -> None:
        """See `Tier.aclose`."""
        self._server.close()

    def after_fork(self) -> None:
        """See `Tier.after_fork`."""
        self._server.after_fork()

    def describe(self) -> dict[str, Any]:
        """Address and open connections."""
        return self._server.describe()
