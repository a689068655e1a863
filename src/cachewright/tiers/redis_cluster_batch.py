"""Carries a batch to the nodes of a cluster: grouped by node, all nodes at once, redirections followed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from cachewright.errors import TierError, TierProtocolError, TierUnavailable
from cachewright.runtime.base import Runtime
from cachewright.tiers.redis_cluster_map import ClusterMap, Place
from cachewright.tiers.redis_driver import Command, Reply, ReplyError
from cachewright.tiers.redis_driver_threads import Pending
from cachewright.tiers.redis_scripts import with_source
from cachewright.tiers.redis_server import Server

__all__ = ["Item", "run_batch"]

_ROUNDS: Final = 6
"""So often a command may be sent on: MOVED, ASK, an unknown script; each says that it was not executed."""
_GRACE: Final = 0.005
"""Replies that have arrived while we waited for a hung node are still read."""


class Item:
    """One command, where it belongs, and what became of it: a reply, `ReplyError` included, or a `TierError`.

    What is to ``follow`` (WAIT) is sent behind it on the same connection, wherever the command is sent on to.
    """

    __slots__ = ("asked", "command", "follow", "followed", "result", "slot")

    def __init__(self, slot: int, command: Command, follow: Command | None = None) -> None:
        self.slot = slot
        self.command = command
        self.follow = follow
        self.followed: Reply = None
        """The reply to ``follow``."""
        self.asked: Place | None = None
        """The node that an ASK names, for the next round only."""
        self.result: Reply | TierError = None


async def run_batch(
    nodes: ClusterMap,
    rt: Runtime,
    items: Sequence[Item],
    deadline: float,
    *,
    repeatable: bool = False,
    store: bool = False,
) -> None:
    """Fills in the results. Raises only where no node can tell who serves what."""
    if not items:
        return
    await nodes.ensure(rt, deadline)
    todo: Sequence[Item] = items
    for _ in range(_ROUNDS):
        groups = _by_node(nodes, todo)
        if not groups:
            return
        batches = {
            place: [command for item in group for command in _commands(item)]
            for place, group in groups.items()
        }
        outcomes = await _send_all(nodes, rt, batches, deadline, repeatable, store)
        todo = []
        for place, group in groups.items():
            outcome = outcomes[place]
            if isinstance(outcome, TierError):
                nodes.failed(place, outcome)
                for item in group:
                    item.result = outcome
            else:
                todo += _take(nodes, place, group, outcome)
        if not todo:
            return
    for item in todo:
        item.result = TierUnavailable(
            nodes.tier, f"hash slot {item.slot} was sent on {_ROUNDS} times within one call"
        )
        item.result.unsent = True  # whoever sends a command on has not executed it


def _by_node(nodes: ClusterMap, items: Sequence[Item]) -> dict[Place, list[Item]]:
    groups: dict[Place, list[Item]] = {}
    for item in items:
        try:
            place = item.asked or nodes.place_of(item.slot)
        except TierError as error:
            error.unsent = True  # or sent on by a node, which then has not executed it
            item.result = error
        else:
            groups.setdefault(place, []).append(item)
    return groups


def _commands(item: Item) -> tuple[Command, ...]:
    commands = (item.command,) if item.follow is None else (item.command, item.follow)
    return (("ASKING",), *commands) if item.asked is not None else commands


def _take(nodes: ClusterMap, place: Place, group: Sequence[Item], replies: list[Reply]) -> list[Item]:
    """Gives the replies to their items; returns those that must be sent once more, here or elsewhere."""
    again = []
    found = iter(replies)
    for item in group:
        reply = next(found)
        if item.asked is not None:
            reply = next(found)
            item.asked = None
        item.result = reply
        if item.follow is not None:
            item.followed = next(found)
        if not isinstance(reply, ReplyError):
            continue
        if reply.code in {"MOVED", "ASK"}:
            try:
                slot, other = nodes.redirected(reply, place)
            except TierProtocolError as error:
                item.result = error
                continue
            if reply.code == "ASK":
                item.asked = other
            else:
                nodes.moved(slot, other)
        elif reply.code == "NOSCRIPT" and item.command[0] == "EVALSHA":
            item.command = with_source(item.command)
        else:
            if reply.code in {"CLUSTERDOWN", "READONLY", "LOADING", "MASTERDOWN"}:
                nodes.outdated()
            continue
        again.append(item)
    return again


async def _send_all(
    nodes: ClusterMap,
    rt: Runtime,
    batches: dict[Place, list[Command]],
    deadline: float,
    repeatable: bool,
    store: bool,
) -> dict[Place, list[Reply] | TierError]:
    servers = {place: nodes.server(place) for place in batches}
    if len(batches) == 1 or rt.name == "threads":
        if len(batches) > 1:
            return _send_blocking(servers, batches, deadline, store)
        ((place, commands),) = batches.items()
        try:
            server = servers[place]
            return {place: await server.execute(rt, commands, deadline, repeatable=repeatable, store=store)}
        except TierError as error:
            return {place: error}
    from cachewright.tiers.redis_driver_aio import execute_all

    work = [(servers[place].aio, commands) for place, commands in batches.items()]
    outcomes = await execute_all(work, deadline, repeatable=repeatable, store=store)
    return dict(zip(batches, outcomes, strict=True))


def _send_blocking(
    servers: dict[Place, Server], batches: dict[Place, list[Command]], deadline: float, store: bool
) -> dict[Place, list[Reply] | TierError]:
    """Sends to all nodes, then waits for all: those with an open connection first, lest a hung one keep them."""
    outcomes: dict[Place, list[Reply] | TierError] = {}
    pending: dict[Place, Pending] = {}
    for place in sorted(batches, key=lambda place: not servers[place].blocking.ready):
        driver = servers[place].blocking
        now = time.monotonic()
        # Connecting to a hung node may not use up what the others need.
        until = deadline if driver.ready else now + (deadline - now) / 2
        try:
            pending[place] = driver.start(batches[place], until, store=store)
        except TierError as error:
            outcomes[place] = error
    for place, sent in pending.items():
        try:
            until = max(deadline, time.monotonic() + _GRACE)
            outcomes[place] = servers[place].blocking.finish(sent, until)
        except TierError as error:
            outcomes[place] = error
    return outcomes
