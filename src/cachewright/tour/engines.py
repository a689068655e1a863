"""The servers of the tour: given by URL, installed on this machine, or embedded; started when a scene needs them."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from cachewright.errors import ConfigurationError
from cachewright.runtime.process import ServerProcess
from cachewright.testing.servers import (
    MemcachedServer,
    RabbitMQServer,
    RedisCluster,
    RedisServer,
    missing_servers,
)
from cachewright.tiers.embedded import ValkeyProcess
from cachewright.tiers.embedded_cluster import ClusterProcesses, EmbeddedCluster
from cachewright.tiers.redis_process import RedisProcess
from cachewright.tour.plain_memcached import PlainMemcached

__all__ = ["Choice", "Engine", "Engines"]

Choice = Literal["local", "embedded"]
Need = Literal["redis", "memcached", "cluster", "broker"]
# Which program each needs on this machine.
_PROGRAMS = {"redis": "redis", "memcached": "memcached", "cluster": "redis", "broker": "rabbitmq"}
_SCHEMES = {
    "redis": ("redis", "rediss", "valkey", "valkeys"),
    "memcached": ("memcached",),
    "cluster": ("redis+cluster", "rediss+cluster"),
    "broker": ("amqp", "amqps", "redis", "rediss"),
}


@dataclass(frozen=True)
class Engine:
    """One engine that runs.

    Attributes:
        title: what it is and where it came from; no credentials.
        url: with credentials: never shown.
        server: ours to stop and kill, or None where its URL was given.
    """

    title: str
    url: str
    server: ServerProcess | ClusterProcesses | None

    @property
    def process(self) -> RedisProcess | None:
        """A single Redis or Valkey of ours."""
        return self.server if isinstance(self.server, RedisProcess) else None


class Engines:
    """Starts each engine once, when first asked for or ahead of time, and stops them all.

    Args:
        choice: ``"local"``: what is installed, embedded for what is missing. ``"embedded"``: everything from the wheel.
        given: URLs by need; what is given is used and never stopped.

    Raises:
        ConfigurationError: a URL of the wrong kind.
    """

    def __init__(self, choice: Choice, given: Mapping[str, str | None]) -> None:
        self.choice = choice
        self.given = {need: url for need, url in given.items() if url}
        for need, url in self.given.items():
            if urlsplit(url).scheme not in _SCHEMES[need]:
                expected = " or ".join(f"{scheme}://" for scheme in _SCHEMES[need])
                raise ConfigurationError(f"--{need} {_place(url)}: expected {expected}")
        self._missing = missing_servers()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(4, "cachewright-tour-engines")
        self._started: dict[str, Future[Engine]] = {}

    def prepare(self, *needs: str) -> None:
        """Starts those in the background."""
        for need in needs:
            self._future(need)

    def __getitem__(self, need: str) -> Engine:
        return self._future(need).result()

    def embedded(self, need: str) -> bool:
        """Whether Valkey stands in for what the strategy names."""
        return need not in self.given and (self.choice == "embedded" or _PROGRAMS[need] in self._missing)

    def close(self) -> None:
        """Stops what was started, the farthest first."""
        with self._lock:
            started = list(self._started.values())
        for future in reversed(started):
            if future.cancel():
                continue
            if future.exception() is None and (server := future.result().server) is not None:
                server.close()
        self._pool.shutdown()

    def _future(self, need: str) -> Future[Engine]:
        with self._lock:
            if need not in self._started:
                self._started[need] = self._pool.submit(self._start, need)
            return self._started[need]

    def _start(self, need: str) -> Engine:
        if need in self.given:
            url = self.given[need]
            return Engine(f"{_GIVEN[need]} at {_place(url)}", url, None)
        embedded = self.embedded(need)
        server = _MAKE[need, embedded]()
        server.start()
        where = "embedded" if embedded else "local"
        return Engine(f"{_NAMES[need, embedded].format(_version(server))}, {where}", server.url, server)


def _place(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _version(server: Any) -> str:
    if isinstance(server, ClusterProcesses):
        return f"{_redis_version(server.nodes[0])}, {len(server.nodes)} nodes"
    if isinstance(server, RedisProcess):
        return _redis_version(server)
    if isinstance(server, MemcachedServer):
        with PlainMemcached(server.url) as client:
            return client.version()
    log = server.log_path.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"RabbitMQ (\d+(\.\d+)+)", log)
    return found[1] if found else ""


def _redis_version(node: RedisProcess) -> str:
    info = node.info("server")
    return info.get("valkey_version") or info["redis_version"]


_GIVEN = {"redis": "Redis", "memcached": "Memcached", "cluster": "Redis Cluster", "broker": "the broker"}
_NAMES = {
    ("redis", False): "Redis {}",
    ("redis", True): "Valkey {}",
    ("memcached", False): "Memcached {}",
    ("memcached", True): "Valkey {} in Memcached's place",
    ("cluster", False): "Redis Cluster {}",
    ("cluster", True): "Valkey cluster {}",
    ("broker", False): "RabbitMQ {}",
    ("broker", True): "Valkey {} in RabbitMQ's place",
}
_MAKE: dict[tuple[str, bool], Callable[[], Any]] = {
    ("redis", False): RedisServer,
    ("redis", True): ValkeyProcess,
    ("memcached", False): MemcachedServer,
    ("memcached", True): ValkeyProcess,
    ("cluster", False): RedisCluster,
    ("cluster", True): EmbeddedCluster,
    ("broker", False): RabbitMQServer,
    ("broker", True): ValkeyProcess,
}
