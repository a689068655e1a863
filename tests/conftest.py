"""Fixtures: real servers, started on first use and shared by the session, and servers of a test's own.

A shared server is never stopped, paused or flushed by a test; `namespace` keeps tests apart on it. A test that needs
a server to fail takes one of its own from a factory (`own_redis()`, …). A server that is not installed fails the test.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, TypeVar

import hypothesis
import psutil
import pytest

from cachewright.runtime.process import ServerProcess
from cachewright.testing.servers import (
    EmbeddedCluster,
    MemcachedServer,
    PostgresServer,
    RabbitMQServer,
    RedisCluster,
    RedisServer,
    ValkeyServer,
)
from cachewright.tiers.embedded_cluster import ClusterProcesses
from tests import invariants, stalls

Server = TypeVar("Server", bound=ServerProcess | ClusterProcesses)

# No deadline: the machine may be busy, and a slow example is no wrong example.
hypothesis.settings.register_profile("cachewright", deadline=None, print_blob=True)
hypothesis.settings.load_profile("cachewright")

_MARK = "CACHEWRIGHT_TEST_SESSION"
_MEMORY = "/dev/shm"
_ROOM = 4 << 30


def _work_in_memory() -> None:
    """Files of tests and servers lie in memory where there is room, unless TMPDIR says where.

    A shared machine's disk may stand still for longer than a tier's deadline, and no test is about that. What is about
    the disk itself makes its own slow or full one; `make soak` runs on the real one.
    """
    if "TMPDIR" in os.environ or not os.access(_MEMORY, os.W_OK | os.X_OK):
        return
    if shutil.disk_usage(_MEMORY).free >= _ROOM:
        os.environ["TMPDIR"] = tempfile.tempdir = _MEMORY  # first for other processes, then for this one


_work_in_memory()


def pytest_configure(config: pytest.Config) -> None:
    """Hooks of this file alone would not hear of fixtures of the session."""
    config.pluginmanager.register(invariants)
    config.pluginmanager.register(stalls)


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Names without addresses: every process that runs part of the suite must call a test alike."""
    if isinstance(val, str | bytes | int | float | None) or "0x" not in repr(val):
        return None
    return f"{argname}:{getattr(val, '__qualname__', type(val).__qualname__)}"


@pytest.fixture(scope="session", autouse=True)
def no_process_left() -> Iterator[None]:
    """Set up first, so torn down last: by then every process that the session started must have ended.

    The mark in the environment also finds a grandchild whose parent was killed and that is nobody's child any more.
    """
    mark = os.environ[_MARK] = uuid.uuid4().hex
    yield
    deadline = time.monotonic() + 10
    while left := _left_over(mark):
        if time.monotonic() > deadline:
            pytest.fail(f"the tests left processes behind: {left}")
        time.sleep(0.05)


def _left_over(mark: str) -> list[str]:
    me = psutil.Process()
    found = {process.pid: process for process in me.children(recursive=True)}
    for process in psutil.process_iter():
        try:
            if process.pid != me.pid and process.environ().get(_MARK) == mark:
                found[process.pid] = process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return [line for process in found.values() if (line := _describe(process)) is not None]


def _describe(process: psutil.Process) -> str | None:
    try:
        words = " ".join(process.cmdline())
        # multiprocessing's own helpers live as long as the interpreter.
        if "multiprocessing.resource_tracker" in words or "multiprocessing.forkserver" in words:
            return None
        return f"{process.pid} {process.status()} {words or process.name()}"
    except psutil.NoSuchProcess:
        return None


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test, and after all its other fixtures: no flight, thread, connection, … (`invariants`)."""
    watch = invariants.Invariants()
    yield
    if not request.node.stash[stalls.failed] and (left := watch.left_behind()):
        pytest.fail("the test left behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses."""
    return f"t{uuid.uuid4().hex[:12]}"


# Shared by the session


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """Debian's Redis."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    """Valkey from the wheel, with a password."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[RedisCluster]:
    """Six nodes of Debian's Redis."""
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def valkey_cluster() -> Iterator[EmbeddedCluster]:
    """Six nodes of Valkey from the wheel, with a password."""
    with EmbeddedCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def memcached_servers() -> Iterator[list[MemcachedServer]]:
    """Three of Debian's Memcached."""
    with ExitStack() as stack:
        yield [stack.enter_context(MemcachedServer()) for _ in range(3)]


@pytest.fixture(scope="session")
def memcached_server(memcached_servers: list[MemcachedServer]) -> MemcachedServer:
    """One of the three."""
    return memcached_servers[0]


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitMQServer]:
    """Debian's RabbitMQ; takes about six seconds to start."""
    with RabbitMQServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Debian's PostgreSQL."""
    with PostgresServer() as server:
        yield server


# A test's own: a factory takes the class's arguments and returns a started server, stopped at the test's end


def _factory(make: Callable[..., Server]) -> Iterator[Callable[..., Server]]:
    with ExitStack() as stack:

        def started(*args: Any, **kwargs: Any) -> Server:
            server = make(*args, **kwargs)
            stack.callback(server.close)
            server.start()
            return server

        yield started


@pytest.fixture
def own_redis() -> Iterator[Callable[..., RedisServer]]:
    """Make a Redis that the test may kill, pause and restart."""
    yield from _factory(RedisServer)


@pytest.fixture
def own_valkey() -> Iterator[Callable[..., ValkeyServer]]:
    """Make a Valkey that the test may kill, pause and restart."""
    yield from _factory(ValkeyServer)


@pytest.fixture
def own_memcached() -> Iterator[Callable[..., MemcachedServer]]:
    """Make a Memcached that the test may kill, pause and restart."""
    yield from _factory(MemcachedServer)


@pytest.fixture
def own_rabbitmq() -> Iterator[Callable[..., RabbitMQServer]]:
    """Make a RabbitMQ that the test may kill, pause and restart."""
    yield from _factory(RabbitMQServer)


@pytest.fixture
def own_postgres() -> Iterator[Callable[..., PostgresServer]]:
    """Make a PostgreSQL that the test may kill, pause and restart."""
    yield from _factory(PostgresServer)


@pytest.fixture
def own_cluster() -> Iterator[Callable[..., RedisCluster]]:
    """Make a Redis cluster whose nodes the test may kill."""
    yield from _factory(RedisCluster)
