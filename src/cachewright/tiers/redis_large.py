"""Swaps and stores of large slots, by WATCH / GETRANGE / MULTI SET EXEC on a held connection.

Lua would copy the payload several times while the whole server waits: a store of 1 MB takes twice as long. EXEC is
refused where the key changed since WATCH, so a swap that lands late is as harmless as a script's.
"""

from __future__ import annotations

from typing import Final

from cachewright.core.slot import HEADER_FIXED, Slot
from cachewright.runtime.base import Runtime
from cachewright.tiers.base import Swap, Swapped
from cachewright.tiers.redis_driver import Command, Reply, ReplyError, Send, checked
from cachewright.tiers.redis_scripts import compares_whole, life_argument, may_hold_intents, read_slot
from cachewright.tiers.redis_server import Server

__all__ = ["store_large", "swap_large"]

_ATTEMPTS: Final = 4


async def swap_large(
    server: Server, rt: Runtime, key: bytes, swap: Swap, now: int, deadline: float
) -> Swapped:
    """Carries out one swap. Raises `ReplyError` where the server refuses one of the commands."""

    async def work(send: Send) -> Swapped:
        want = swap.expected.header if swap.expected is not None else b""
        whole = compares_whole(swap.expected)
        commands: list[Command] = [("WATCH", key), ("GETRANGE", key, 0, max(0, len(want) - 1))]
        if whole:
            commands.append(("STRLEN", key))
        replies = await send(commands)
        check(replies[0])
        have = (
            b""
            if isinstance(replies[1], ReplyError) and replies[1].code == "WRONGTYPE"
            else check(replies[1])
        )
        if have == want and (not whole or replies[2] == len(want)):
            replies = await send([("MULTI",), _change(key, swap.new, now), ("EXEC",)])
            if isinstance(replies[-1], list):
                check(checked(server.tier, replies[-1], list, "one result", 1)[0])
                return Swapped(True)
            if replies[-1] is not None:
                check(replies[1])
                check(replies[-1])
        replies = await send([("UNWATCH",), ("GET", key)])
        standing = replies[1]
        if isinstance(standing, ReplyError) and standing.code == "WRONGTYPE":
            return Swapped(False)
        return Swapped(False, read_slot(server.tier, check(standing)))

    return await server.hold(rt, deadline, work)


async def store_large(server: Server, rt: Runtime, key: bytes, slot: Slot, now: int, deadline: float) -> bool:
    """Stores where no intents stand; False: not done, the script must decide.

    Raises `ReplyError` where the server refuses one of the commands.
    """

    async def work(send: Send) -> bool:
        for _ in range(_ATTEMPTS):
            watched, head = await send([("WATCH", key), ("GETRANGE", key, 0, HEADER_FIXED - 1)])
            check(watched)
            if not isinstance(head, ReplyError) and may_hold_intents(head):
                await send([("UNWATCH",)])
                return False
            replies = await send([("MULTI",), _change(key, slot, now), ("EXEC",)])
            if isinstance(replies[-1], list):
                check(checked(server.tier, replies[-1], list, "one result", 1)[0])
                return True
            if replies[-1] is not None:
                check(replies[1])
                check(replies[-1])
        return False

    return await server.hold(rt, deadline, work, store=True)


def _change(key: bytes, new: Slot | None, now: int) -> Command:
    if new is None:
        return ("DEL", key)
    life = life_argument(new, now)
    value = new.header + new.payload
    return ("SET", key, value, "PX", life) if life else ("SET", key, value)


def check(reply: Reply) -> Reply:
    """The reply, unless it is an error, which is raised."""
    if isinstance(reply, ReplyError):
        raise reply
    return reply
