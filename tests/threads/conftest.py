"""Chains of real tiers, and what of them this process holds open."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cachewright import Cache

CHAINS = [
    "memory",
    "sqlite",
    "redis",
    "cluster",
    "memcached",
    "memory > redis",
    "redis > memcached",
    "memory > redis > memcached",
]


class Rig:
    """One chain: makes caches on it, and says what this process holds of it."""

    def __init__(self, chain: str, urls: list[str], namespace: str) -> None:
        self.chain, self.urls, self.namespace = chain, urls, namespace
        self.shared = chain != "memory"
        """Another process sees the same entries."""
        self._ports = {int(port) for url in urls for port in re.findall(r":(\d+)\b", url)}

    def make(self, **options: Any) -> Cache:
        return Cache(*self.urls, namespace=self.namespace, **options)

    def open(self) -> list[str]:
        """Connections to the tiers and files of theirs that this process holds open."""
        me = psutil.Process()
        found = [
            f"{c.laddr.port} -> {c.raddr.port} {c.status}"
            for c in me.net_connections("tcp")
            if getattr(c.raddr, "port", 0) in self._ports and c.fd != -1
        ]
        files = {url.partition(":///")[2] for url in self.urls if url.startswith("sqlite")}
        return found + [f.path for f in me.open_files() if any(f.path.startswith(path) for path in files)]


def soon(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether it becomes true in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@pytest.fixture(params=CHAINS)
def rig(request: pytest.FixtureRequest, tmp_path: Path, namespace: str) -> Rig:
    def url(tier: str) -> str:
        if tier == "memory":
            return "memory://"
        if tier == "sqlite":
            return f"sqlite:///{tmp_path}/cache.db"
        name = {"redis": "redis_server", "cluster": "redis_cluster", "memcached": "memcached_server"}[tier]
        return str(request.getfixturevalue(name).url)

    return Rig(request.param, [url(tier) for tier in request.param.split(" > ")], namespace)


@pytest.fixture
def cache(rig: Rig) -> Iterator[Cache]:
    """A cache on the chain; afterwards closed, with nothing of it left open."""
    cache = rig.make()
    yield cache
    cache.close()
    assert soon(lambda: not rig.open()), rig.open()


@pytest.fixture
def becomes() -> Callable[..., bool]:
    """`soon`, for tests (test folders are no packages to import from)."""
    return soon


@pytest.fixture
def threads_of_ours() -> Callable[[], list[str]]:
    """Those background threads of caches that this test has started."""
    before = {thread.ident for thread in threading.enumerate()}
    return lambda: [
        thread.name
        for thread in threading.enumerate()
        if thread.ident not in before
        and thread.name.startswith("cachewright-")
        and thread.name != "cachewright-spawner"  # belongs to the fixtures
    ]
