"""Every tier, behind one face without runtimes and coroutines, for the suite that all of them pass."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cachewright.core.slot import NEVER, Intent, Lease, Slot, StoredEntry
from cachewright.runtime.aio import AIO
from cachewright.runtime.base import drive
from cachewright.runtime.threads import SYSTEM_CLOCK, THREADS
from cachewright.testing.sim.store import SimStore, SimTier
from cachewright.tiers.base import Swap, Swapped, Tier
from cachewright.urls import make_tier

KINDS = [
    "memory",
    "sqlite",
    "redis",
    "valkey",
    "cluster",
    "memcached",
    "memcached3",
    "embedded",
    "sim",
]  # the simulator's must not drift from the real
TIMEOUT = "timeout=10"  # what is tested here is not the deadline, and the machine may be busy


class Kit:
    """A tier to be tested: its methods called plainly, and what slots are made of."""

    NEVER = NEVER

    def __init__(self, kind: str, face: str, make: Callable[[str], Tier], namespace: str) -> None:
        self.kind, self.face, self._make = kind, face, make
        self.tier = make(namespace)
        self.rt: Any = THREADS if face == "threads" else AIO
        self.others: list[Tier] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self.on(self.tier, name, *args, **kwargs)

    def on(self, tier: Tier, name: str, *args: Any, **kwargs: Any) -> Any:
        """One call of one tier; each has an event loop of its own, which connections must survive."""
        if self.face == "threads":
            return drive(getattr(tier, name)(self.rt, *args, **kwargs))

        async def main() -> Any:
            return await getattr(tier, name)(self.rt, *args, **kwargs)

        return asyncio.run(main())

    def at_once(self, works: Sequence[Callable[..., Any]]) -> list[Any]:
        """Runs coroutine functions ``work(rt)`` side by side: a thread each, or a task each on one loop."""
        if self.face == "threads":
            gate = threading.Barrier(len(works))

            def run(work: Callable[..., Any]) -> Any:
                gate.wait(20)
                return drive(work(self.rt))

            with ThreadPoolExecutor(len(works)) as pool:
                return list(pool.map(run, works))

        async def main() -> list[Any]:
            return list(await asyncio.gather(*(work(self.rt) for work in works)))

        return asyncio.run(main())

    def another(self, namespace: str | None = None) -> Tier:
        """A second tier over the same store, as another process has it."""
        tier = self._make(namespace or self.tier.namespace)
        self.others.append(tier)
        return tier

    # What stands

    def slot(self, key: str) -> Any:
        return self.read([key])[0].get(key)

    def put(self, key: str, slot: Slot) -> Slot:
        """Brings a key into a state."""
        standing = self.slot(key)
        assert self.swap([Swap(key, standing, slot)])[0] == Swapped(True)
        return slot

    # What slots are made of

    @staticmethod
    def new_id() -> bytes:
        return os.urandom(8)

    @staticmethod
    def now() -> int:
        return int(time.time() * 1000)

    def entry(self, payload: Any = b"value", *, life: int | None = 60_000, tags: Any = ()) -> StoredEntry:
        now = self.now()
        ends = NEVER if life is None else now + life
        return StoredEntry(payload, now, ends, ends, ends, 1500, tags=tags)

    def stored(self, payload: Any = b"value", **how: Any) -> Slot:
        return Slot(self.new_id(), self.entry(payload, **how))

    def lease(self, life: int = 30_000) -> Lease:
        return Lease(self.new_id(), self.now() + life, life)

    def intent(self, life: int = 30_000) -> Intent:
        return Intent(self.new_id(), self.now() + life)

    def leased(self, entry: StoredEntry | None = None, life: int = 30_000) -> Slot:
        return Slot(self.new_id(), entry, self.lease(life))

    def intended(self, count: int = 1, *, contended: bool = False, life: int = 30_000) -> Slot:
        intents = tuple(self.intent(life) for _ in range(count))
        return Slot(self.new_id(), intents=intents, contended=contended)


@pytest.fixture(scope="session")
def embedded_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of an embedded server that runs as long as the session."""
    folder = tmp_path_factory.mktemp("embedded")
    keeper = make_tier(f"embedded://{folder}?{TIMEOUT}", "keeper", SYSTEM_CLOCK)
    drive(keeper.connect(THREADS))
    yield folder
    keeper.close()


def _url(kind: str, request: pytest.FixtureRequest) -> str:
    get = request.getfixturevalue
    if kind == "memory":
        return "memory://"
    if kind == "sqlite":
        return f"sqlite:///{get('tmp_path')}/cache.db?{TIMEOUT}"
    if kind == "cluster":
        return f"{get('redis_cluster').url}?{TIMEOUT}"
    if kind == "memcached":
        return f"{get('memcached_server').url}?{TIMEOUT}"
    if kind == "memcached3":
        servers = ",".join(server.address for server in get("memcached_servers"))
        return f"memcached://{servers}?{TIMEOUT}"
    if kind == "embedded":
        return f"embedded://{get('embedded_folder')}?{TIMEOUT}"
    return f"{get(f'{kind}_server').url}?{TIMEOUT}"


@pytest.fixture(params=[f"{kind}-{face}" for kind in KINDS for face in ("threads", "asyncio")])
def kit(request: pytest.FixtureRequest, namespace: str) -> Iterator[Kit]:
    kind, face = request.param.split("-")
    if kind == "sim":
        store = SimStore(time.time)
        made = Kit(kind, face, lambda name: SimTier(store, name), namespace)
    else:
        url = _url(kind, request)
        made = Kit(kind, face, lambda name: make_tier(url, name, SYSTEM_CLOCK), namespace)
    yield made
    for tier in (made.tier, *made.others):
        tier.close()


@pytest.fixture
def write_raw(kit: Kit, request: pytest.FixtureRequest) -> Callable[[str, bytes], None]:
    """Puts any bytes under a key, past the tier, with a client that is not ours."""

    def write(key: str, raw: bytes) -> None:
        physical = f"{kit.tier.namespace}:k:{key}"
        if kit.kind == "memory":
            pytest.skip("process memory holds objects, no bytes")
        elif kit.kind == "sqlite":
            path = request.getfixturevalue("tmp_path") / "cache.db"
            kit.connect()  # makes the file
            with sqlite3.connect(path) as connection:
                sql = "INSERT OR REPLACE INTO slots (key, header, payload, flags, ends) VALUES (?, ?, ?, 0, NULL)"
                connection.execute(sql, (physical.encode(), raw, b""))
            connection.close()
        elif isinstance(kit.tier, SimTier):
            kit.tier.write_raw(key, raw)
        elif kit.kind.startswith("memcached"):
            import pymemcache

            tier: Any = kit.tier
            address, wire = tier.locate(key)
            client = pymemcache.Client(address)
            client.set(wire, raw, noreply=False)
            client.close()
        elif kit.kind == "cluster":
            import redis

            node = (
                request.getfixturevalue("redis_cluster").url.split(",")[0].replace("redis+cluster", "redis")
            )
            # Not by `redis.RedisCluster`: it leaves its first connection to the garbage collector.
            with redis.Redis.from_url(node) as client:
                try:
                    client.set(physical, raw)
                    return
                except redis.exceptions.MovedError as moved:
                    host, port = moved.node_addr
            with redis.Redis(host, port) as client:
                client.set(physical, raw)
        else:
            import redis

            kit.connect()
            url = getattr(kit.tier, "url", None) or _url(kit.kind, request).split("?")[0]
            with redis.Redis.from_url(url.replace("valkey://", "redis://")) as client:
                client.set(physical, raw)

    return write
