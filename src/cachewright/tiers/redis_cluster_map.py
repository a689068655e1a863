"""Which node of a Redis Cluster serves which hash slot, kept up to date from redirections and failures.

The map comes from CLUSTER SLOTS, asked of any node that answers, through the same drivers and within the deadline of
the operation that needs it. A map is never waited for otherwise: after a failure the next operation asks again, at
most every `REFRESH_EVERY` seconds, so that the new primary is found soon after the others have elected it.
"""

from __future__ import annotations

import time
from binascii import crc_hqx
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from cachewright.errors import TierError, TierProtocolError, TierTimeout, TierUnavailable
from cachewright.runtime.base import Runtime
from cachewright.tiers.redis_driver import Reply, ReplyError, raise_reply
from cachewright.tiers.redis_server import Server

Place = tuple[str, int]

__all__ = ["REFRESH_EVERY", "SLOTS", "ClusterMap", "Place", "key_slot", "parse_slots", "redirection"]

SLOTS: Final = 16384
REFRESH_EVERY: Final = 0.1
HUNG_FOR: Final = 0.5
"""A node that let a deadline pass is not asked again for this long: each call would wait out its whole deadline."""


def key_slot(key: bytes) -> int:
    """The hash slot of a physical key; of the part between the first braces, where there is one."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


def redirection(reply: ReplyError, asked: Place) -> tuple[int, Place]:
    """Slot and node out of ``MOVED 3999 127.0.0.1:6381``; an empty host means the one that was asked.

    Raises:
        ValueError: it names none.
    """
    _, slot, place = str(reply).split(" ")[:3]
    host, _, port = place.rpartition(":")
    return _within(int(slot), 0, SLOTS - 1), (host or asked[0], _within(int(port), 1, 65535))


def parse_slots(reply: Reply, asked: Place) -> tuple[list[Place | None], set[Place]]:
    """The primary of each slot, and all nodes, out of the reply to CLUSTER SLOTS.

    Raises:
        ValueError: it cannot be one. Ranges are checked before anything is made of their size.
    """
    owners: list[Place | None] = [None] * SLOTS
    nodes: set[Place] = set()
    covered = 0
    for row in _rows(reply, 0):
        first, last, *members = _rows(row, 3)
        last = _within(last, _within(first, 0, SLOTS - 1), SLOTS - 1)
        covered = _within(covered + last + 1 - first, 1, SLOTS)  # no slot has two primaries
        places = [
            (_host(member[0]) or asked[0], _within(member[1], 1, 65535)) for member in map(_node, members)
        ]
        nodes.update(places)
        owners[first : last + 1] = [places[0]] * (last + 1 - first)
    return owners, nodes


def _rows(reply: Reply, least: int) -> list[Reply]:
    if type(reply) is not list or len(reply) < least:
        raise ValueError("something else in a list's place")
    return reply


def _node(member: Reply) -> list[Reply]:
    return _rows(member, 2)


def _within(number: Reply, least: int, most: int) -> int:
    if type(number) is not int or not least <= number <= most:
        raise ValueError(f"something else in the place of a number from {least} to {most}")
    return number


def _host(raw: Reply) -> str:
    return raw.decode() if isinstance(raw, bytes) and raw != b"?" else ""


class ClusterMap:
    """The nodes, each with its drivers, and who serves what. Shared by all threads and loops.

    What it holds is replaced, never changed in parts that would have to agree, so it needs no lock; two that refresh
    at once do the same work twice.
    """

    def __init__(self, tier: str, seeds: Sequence[Place], make: Callable[[Place], Server]) -> None:
        self.tier = tier
        self._seeds = list(dict.fromkeys(seeds))
        self._make = make
        self._servers: dict[Place, Server] = {}
        self._owners: list[Place | None] | None = None
        self._hung: dict[Place, float] = {}
        self._mute: dict[
            Place, float
        ] = {}  # asked for the map in vain: others first; it had a part of the time only
        self._stale = False
        self._asked_at = 0.0
        self._turn = 0

    def server(self, place: Place) -> Server:
        """The node's drivers."""
        found = self._servers.get(place)
        return found if found is not None else self._servers.setdefault(place, self._make(place))

    def servers(self) -> list[Server]:
        """All nodes that were ever spoken to and still belong to the cluster."""
        return list(self._servers.values())

    def primaries(self) -> list[Place]:
        """The nodes that serve slots."""
        return list(dict.fromkeys(place for place in self._owners or () if place is not None))

    def place_of(self, slot: int) -> Place:
        """The node that serves ``slot``; raises at once where none does or it hung a moment ago."""
        place = self._owners[slot] if self._owners is not None else None
        if place is None:
            self._stale = True
            raise TierUnavailable(self.tier, f"no node serves hash slot {slot}")
        until = self._hung.get(place)
        if until is not None:
            if time.monotonic() < until:
                raise TierUnavailable(self.tier, f"{place[0]}:{place[1]} did not answer a moment ago")
            self._hung.pop(place, None)
        return place

    def moved(self, slot: int, place: Place) -> None:
        """Takes a MOVED at its word for this slot; the rest of the map is asked for soon."""
        if self._owners is not None:
            self._owners[slot] = place
        self._stale = True

    def redirected(self, reply: ReplyError, asked: Place) -> tuple[int, Place]:
        """`redirection`; raises `TierProtocolError` where the reply names no slot or node."""
        try:
            return redirection(reply, asked)
        except ValueError as error:
            raise TierProtocolError(self.tier, f"a redirection that leads nowhere: {reply}") from error

    def failed(self, place: Place, error: TierError) -> None:
        """Remembers that a node failed: somebody else may serve its slots by now."""
        self._stale = True
        if isinstance(error, TierTimeout):
            self._hung[place] = time.monotonic() + HUNG_FOR

    def outdated(self) -> None:
        """Something showed that the map is not true any more."""
        self._stale = True

    async def ensure(self, rt: Runtime, deadline: float) -> None:
        """Sees to it that there is a map; raises where no node can tell one."""
        if self._owners is None:
            await self.refresh(rt, deadline)
        elif self._stale and time.monotonic() - self._asked_at >= REFRESH_EVERY:
            try:
                await self.refresh(rt, deadline)
            except TierError:
                self._stale = True  # the old map still leads to the shards that live

    async def refresh(self, rt: Runtime, deadline: float) -> None:
        """Asks one node after the other for the map, each for a part of the time that is left."""
        self._asked_at = time.monotonic()
        failure: TierError | None = None
        for place in self._candidates():
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                await self._ask(rt, place, time.monotonic() + left / 3)
                return
            except TierError as error:
                self._mute[place] = time.monotonic() + HUNG_FOR
                failure = error
        raise failure or TierUnavailable(self.tier, "no node of the cluster answered in time")

    async def _ask(self, rt: Runtime, place: Place, deadline: float) -> None:
        server = self.server(place)
        reply = (await server.execute(rt, [("CLUSTER", "SLOTS")], deadline, repeatable=True))[0]
        if isinstance(reply, ReplyError):
            if "cluster support disabled" in str(reply):
                raise TierProtocolError(
                    self.tier, f"{server.address.label} is not part of a cluster: use redis:// for it"
                ) from reply
            raise_reply(self.tier, reply)
        try:
            owners, nodes = parse_slots(reply, place)
        except ValueError as error:
            raise TierProtocolError(
                self.tier, f"{server.address.label} answered CLUSTER SLOTS with nonsense: {error}"
            ) from error
        if not nodes:
            raise TierUnavailable(self.tier, f"{server.address.label} knows no slots yet")
        self._owners = owners
        self._stale = False
        self._forget(nodes.union(self._seeds))

    def _forget(self, keep: set[Place]) -> None:
        for place in [place for place in self._servers if place not in keep]:
            self._servers.pop(place).close()

    def _candidates(self) -> Iterable[Place]:
        """Nodes to ask, another one first each time; those that failed lately last."""
        self._turn += 1
        known = list(dict.fromkeys([*self.primaries(), *self._servers, *self._seeds]))
        start = self._turn % len(known)
        now = time.monotonic()
        return sorted(
            known[start:] + known[:start],
            key=lambda place: max(self._hung.get(place, 0.0), self._mute.get(place, 0.0)) > now,
        )
