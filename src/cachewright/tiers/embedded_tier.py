"""The tiers behind ``embedded://`` and ``embedded+cluster://``: a server of our own, started at first use.

A shared server whose keeper was killed comes back at another address: started by a process that attaches later, or by
one of those it had. They all look for it when they get no answer, for else each would go on without a tier for ever,
and what it has dropped meanwhile would never be dropped where the others read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar
from urllib.parse import urlsplit

from cachewright.core.slot import Slot
from cachewright.errors import TierError, TierUnavailable
from cachewright.runtime.base import Runtime
from cachewright.tiers.base import Generation, Swap, Swapped, Tier

__all__ = ["EmbeddedTier", "embedded_cluster_tier", "embedded_tier"]


T = TypeVar("T")

LOOK_EVERY = 0.5  # seconds between looks for a server that does not answer
log = logging.getLogger("cachewright")


class _Server(Protocol):
    @property
    def url(self) -> str: ...

    def start(self) -> None: ...


class EmbeddedTier(Tier):
    """A Redis or cluster tier whose server starts with its first use and stops at `close`.

    Args:
        name: as `Tier`.
        namespace: as `Tier`.
        server: started with the first use.
        stop: lets go of it.
        connect: makes the tier for its URL.
        find: says where the server is now, None if nowhere; asked, in a thread, when it does not answer. None: its
            address never changes.
    """

    kind: ClassVar[str] = "embedded"

    def __init__(
        self,
        name: str,
        namespace: str,
        server: _Server,
        stop: Callable[[], None],
        connect: Callable[[str], Tier],
        find: Callable[[], str | None] | None = None,
    ) -> None:
        super().__init__(name, namespace)
        self._server, self._stop, self._connect, self._find = server, stop, connect, find
        self._lock = threading.Lock()
        self._tier: Tier | None = None
        self._connected_to = ""
        self._looking = False
        self._next_look = 0.0

    @property
    def url(self) -> str | None:
        """Where the server listens, password included; None before first use."""
        return self._server.url if self._tier is not None else None

    async def _on(self, rt: Runtime, act: Callable[[Tier], Awaitable[T]]) -> T:
        tier = self._tier
        if tier is None:
            tier = await rt.offload(self._start)
        try:
            return await act(tier)
        except TierUnavailable:
            self._look(tier)
            raise

    def _start(self) -> Tier:
        with self._lock:
            if self._tier is None:
                self._server.start()
                self._connected_to = self._server.url
                tier = self._tier = self._connect(self._connected_to)
                return tier
            return self._tier

    def _look(self, silent: Tier) -> None:
        """Has the server looked for in the background: a call must end in time, and starting one may take seconds.

        The call fails all the same, so that what it should have dropped is remembered, and replayed where the server
        is found.
        """
        if self._find is None or not self._lock.acquire(blocking=False):
            return
        try:
            now = time.monotonic()
            if self._looking or self._tier is not silent or now < self._next_look:
                return
            self._looking, self._next_look = True, now + LOOK_EVERY
        finally:
            self._lock.release()
        threading.Thread(
            target=self._follow, args=(self._find, silent), name="cachewright-find", daemon=True
        ).start()

    def _follow(self, find: Callable[[], str | None], silent: Tier) -> None:
        url = None
        try:
            url = find()
        except (TierError, OSError) as error:
            log.warning("%s: its server does not answer, and no other could be started: %s", self.name, error)
        finally:
            with self._lock:
                self._looking = False
                # Closed meanwhile, perhaps opened again: then that is newer than what was found.
                moved = url is not None and url != self._connected_to and self._tier is silent
                if url is not None and moved:
                    self._tier, self._connected_to = self._connect(url), url
        if moved:
            silent.close()

    async def read(
        self, rt: Runtime, keys: Sequence[str], tags: Sequence[str] = ()
    ) -> tuple[dict[str, Slot], dict[str, Generation]]:
        return await self._on(rt, lambda tier: tier.read(rt, keys, tags))

    async def swap(self, rt: Runtime, swaps: Sequence[Swap]) -> list[Swapped]:
        return await self._on(rt, lambda tier: tier.swap(rt, swaps))

    async def drop(self, rt: Runtime, keys: Sequence[str]) -> list[bool]:
        return await self._on(rt, lambda tier: tier.drop(rt, keys))

    async def store(self, rt: Runtime, slots: Mapping[str, Slot]) -> list[bool]:
        return await self._on(rt, lambda tier: tier.store(rt, slots))

    async def set_generations(
        self, rt: Runtime, marks: Mapping[str, bytes], *, only_missing: bool
    ) -> dict[str, Generation]:
        return await self._on(rt, lambda tier: tier.set_generations(rt, marks, only_missing=only_missing))

    async def clear(self, rt: Runtime) -> None:
        await self._on(rt, lambda tier: tier.clear(rt))

    async def connect(self, rt: Runtime) -> None:
        await self._on(rt, lambda tier: tier.connect(rt))

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
        self._looking = False  # the thread that did is the parent's
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
    return EmbeddedTier("embedded", namespace, server, server.stop, connect, server.find)


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
