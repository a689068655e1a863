"""How the calls of the buffer in Redis reach its partitions: one server, or the nodes of a cluster.

Both take `Item`s and fill in their results, a failure of a server in the place of a reply, so that what touches other
servers goes on.
"""

from __future__ import annotations

import ssl as ssl_module
from collections.abc import Sequence
from typing import Protocol

from cachewright.errors import TierError
from cachewright.runtime.base import Runtime
from cachewright.tiers.redis_cluster_batch import Item, run_batch
from cachewright.tiers.redis_cluster_map import ClusterMap, Place
from cachewright.tiers.redis_driver import Address, Command, ReplyError
from cachewright.tiers.redis_scripts import with_source
from cachewright.tiers.redis_server import Server

__all__ = ["Cluster", "Nodes", "OneServer"]


class Nodes(Protocol):
    """What the buffer needs of either."""

    async def run(
        self, rt: Runtime, items: Sequence[Item], deadline: float, *, repeatable: bool = False
    ) -> None:
        """Fills in the results. Nothing is raised; see `BlockingDriver.execute` for ``repeatable``."""

    def close(self) -> None:
        """Closes all connections, from any thread; later use opens new ones."""

    def after_fork(self) -> None:
        """In a forked child: lets the parent's connections go."""


class OneServer:
    """One server, or a primary with replicas behind one address."""

    def __init__(self, address: Address, name: str, timeout: float) -> None:
        self._server = Server(address, name, timeout)

    async def run(
        self, rt: Runtime, items: Sequence[Item], deadline: float, *, repeatable: bool = False
    ) -> None:
        """See `Nodes.run`."""
        todo = items
        while todo:
            commands: list[Command] = []
            for item in todo:
                commands += (item.command,) if item.follow is None else (item.command, item.follow)
            try:
                replies = iter(await self._server.execute(rt, commands, deadline, repeatable=repeatable))
            except TierError as error:
                for item in todo:
                    item.result = error
                return
            for item in todo:
                item.result = next(replies)
                item.followed = next(replies) if item.follow is not None else None
            todo = [item for item in todo if _unknown_script(item)]
            for item in todo:
                item.command = with_source(item.command)
        if any(isinstance(item.result, ReplyError) and item.result.code == "READONLY" for item in items):
            self._server.close()  # demoted to a replica: the same name may lead to the new primary by now

    def close(self) -> None:
        """See `Nodes.close`."""
        self._server.close()

    def after_fork(self) -> None:
        """See `Nodes.after_fork`."""
        self._server.after_fork()


def _unknown_script(item: Item) -> bool:
    unknown = isinstance(item.result, ReplyError) and item.result.code == "NOSCRIPT"
    return unknown and item.command[0] == "EVALSHA"


class Cluster:
    """A cluster, found through any of its nodes: one round trip to each node that a call concerns, all at once."""

    def __init__(
        self,
        places: Sequence[Place],
        name: str,
        timeout: float,
        *,
        username: str | None = None,
        password: str | None = None,
        ssl: bool | ssl_module.SSLContext = False,
    ) -> None:
        def make(place: Place) -> Server:
            address = Address(host=place[0], port=place[1], username=username, password=password, ssl=ssl)
            return Server(address, name, timeout)

        self._map = ClusterMap(name, places, make)

    async def run(
        self, rt: Runtime, items: Sequence[Item], deadline: float, *, repeatable: bool = False
    ) -> None:
        """See `Nodes.run`."""
        try:
            await run_batch(self._map, rt, items, deadline, repeatable=repeatable)
        except TierError as error:  # no node tells who serves what, which is asked before anything is sent
            error.unsent = True
            for item in items:
                item.result = error

    def close(self) -> None:
        """See `Nodes.close`."""
        for server in self._map.servers():
            server.close()

    def after_fork(self) -> None:
        """See `Nodes.after_fork`."""
        for server in self._map.servers():
            server.after_fork()
