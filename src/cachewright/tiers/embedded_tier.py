"""The tiers behind ``embedded://`` and ``embedded+cluster://``: a server of our own, started at first use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol
from urllib.parse import urlsplit

from cachewright.core.slot import Slot
from cachewright.runtime.base import Runtime
from cachewright.tiers.base import Generation, Swap, Swapped, Tier

__all__ = ["EmbeddedTier", "embedded_cluster_tier", "embedded_tier"]


class _Server(Protocol):
    @property
    def url(self) -> str: ...

    def start(self) -> None: ...


class EmbeddedTier(Tier):
    """A Redis or cluster tier whose server starts with its first use and stops at `close`."""

    kind: ClassVar[str] = "embedded"

    def __init__(
        self,
        name: str,
        namespace: str,
        server: _Server,
        stop: Callable[[], None],
        connect: Callable[[str], Tier],
    ) -> None:
        super().__init__(name, namespace)
        self._server, self._stop, self._connect = server, stop, connect
        self._lock = threading.Lock()
        self._tier: Tier | None = None

    @property
    def url(self) -> str | None:
        """Where the server listens, password included; None before first use."""
        return self._server.url if self._tier is not None else None

    async def _inner(self, rt: Runtime) -> Tier:
        tier = self._tier
        return tier if tier is not None else await rt.offload(self._start)

    def _start(self) -> Tier:
        with self._lock:
            if self._tier is None:
                self._server.start()
                tier = self._tier = self._connect(self._server.url)
                return tier
            return self._tier

    async def read(
        self, rt: Runtime, keys: Sequence[str], tags: Sequence[str] = ()
    ) -> tuple[dict[str, Slot], dict[str, Generation]]:
        return await (await self._inner(rt)).read(rt, keys, tags)

    async def swap(self, rt: Runtime, swaps: Sequence[Swap]) -> list[Swapped]:
        return await (await self._inner(rt)).swap(rt, swaps)

    async def drop(self, rt: Runtime, keys: Sequence[str]) -> list[bool]:
        return await (await self._inner(rt)).drop(rt, keys)

    async def store(self, rt: Runtime, slots: Mapping[str, Slot]) -> list[bool]:
        return await (await self._inner(rt)).store(rt, slots)

    async def set_generations(
        self, rt: Runtime, marks: Mapping[str, bytes], *, only_missing: bool
    ) -> dict[str, Generation]:
        return await (await self._inner(rt)).set_generations(rt, marks, only_missing=only_missing)

    async def clear(self, rt: Runtime) -> None:
        await (await self._inner(rt)).clear(rt)

    async def connect(self, rt: Runtime) -> None:
        await (await self._inner(rt)).connect(rt)

    def close(self) -> None:
        with self._lock:
            tier, self._tier = self._tier, None
        if tier is not None:
            tier.close()
            self._stop()

    async def aclose(self, rt: Runtime) -> None:
        if self._tier is not None:
            await self._tier.aclose(rt)
        await rt.offload(self.close)

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        if self._tier is not None:
            self._tier.after_fork()

    def describe(self) -> dict[str, Any]:
        return self._tier.describe() if self._tier is not None else {}


def embedded_tier(folder: str, namespace: str, timeout: float = 0.5) -> Tier:
    """``embedded://`` (this cache's own server) or ``embedded:///folder`` (shared, and its data survives)."""
    from cachewright.tiers.embedded import EmbeddedServer

    def connect(url: str) -> Tier:
        from cachewright.tiers.redis import RedisTier

        parts = urlsplit(url)
        return RedisTier(
            host=parts.hostname or "127.0.0.1",
            port=parts.port or 6379,
            username=parts.username,
            password=parts.password,
            namespace=namespace,
            timeout=timeout,
        )

    server = EmbeddedServer(folder or None)
    return EmbeddedTier("embedded", namespace, server, server.stop, connect)


def embedded_cluster_tier(namespace: str, timeout: float = 0.5) -> Tier:
    """``embedded+cluster://``: three primaries and three replicas."""
    from cachewright.tiers.embedded_cluster import EmbeddedCluster

    def connect(url: str) -> Tier:
        from cachewright.tiers.redis_cluster import RedisClusterTier

        netloc = urlsplit(url).netloc
        login, _, hosts = netloc.rpartition("@")
        user, _, password = login.partition(":")
        nodes = [(host, int(port)) for host, _, port in (one.rpartition(":") for one in hosts.split(","))]
        return RedisClusterTier(
            nodes=nodes,
            username=user or None,
            password=password or None,
            namespace=namespace,
            timeout=timeout,
        )

    cluster = EmbeddedCluster()
    return EmbeddedTier("embedded+cluster", namespace, cluster, cluster.close, connect)
