"""Both faces, tiers on real Memcached servers, and raw bytes to them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from cachewright.errors import TierUnavailable
from cachewright.runtime.aio import AIO
from cachewright.runtime.base import Runtime, drive
from cachewright.runtime.threads import THREADS
from cachewright.tiers.memcached import MemcachedTier
from tests.slots import slot


class Face:
    """Calls a tier's methods under one runtime; the asyncio one keeps a loop."""

    def __init__(self, rt: Runtime, runner: asyncio.Runner | None) -> None:
        self.rt, self._runner = rt, runner

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return drive(coroutine) if self._runner is None else self._runner.run(coroutine)

    def __call__(self, method: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **kwargs: Any) -> Any:
        return self.run(method(self.rt, *args, **kwargs))

    def works(self, method: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> bool:
        """Calls; False where the tier cannot be reached."""
        try:
            self(method, *args)
        except TierUnavailable:
            return False
        return True

    def stored(self, tier: MemcachedTier, keys: list[str]) -> bool:
        """Stores an entry under each key; False where the tier cannot be reached."""
        return self.works(tier.store, {key: slot() for key in keys})


@pytest.fixture(params=["threads", "asyncio"])
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    if request.param == "threads":
        yield Face(THREADS, None)
        return
    with asyncio.Runner() as runner:
        yield Face(AIO, runner)


@pytest.fixture
def make_tier(namespace: str) -> Iterator[Callable[..., MemcachedTier]]:
    with contextlib.ExitStack() as stack:

        def make(*servers: Any, **options: Any) -> MemcachedTier:
            pairs = [("127.0.0.1", s.port) if hasattr(s, "port") else s for s in servers]
            # Generous by default: a busy machine must not fail a test that is not about time.
            options = {"timeout": 5.0, "namespace": namespace, **options}
            tier = MemcachedTier(servers=pairs, **options)
            stack.callback(tier.close)
            return tier

        yield make


@pytest.fixture
def tier(make_tier, memcached_server) -> MemcachedTier:
    return make_tier(memcached_server)


def _raw(server_port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server_port), timeout=5) as sock:
        sock.sendall(request + b"mn\r\n")
        got = b""
        while not got.endswith(b"MN\r\n"):
            got += sock.recv(65536)
    return got[:-4]


@pytest.fixture
def raw() -> Callable[[int, bytes], bytes]:
    """Sends bytes to a server's port; what it answers."""
    return _raw


def _together(n: int, work: Callable[[], Any]) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures, failures


@pytest.fixture
def together() -> Callable[[int, Callable[[], Any]], None]:
    """Runs a function in so many threads at once; fails with what any of them raised."""
    return _together
