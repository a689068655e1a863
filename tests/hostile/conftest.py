"""Every store under a cache, both faces, and raw bytes planted in it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cachewright import Cache
from cachewright.core.breaker import NAMESPACE_TAG
from cachewright.core.slot import NEVER, Slot, StoredEntry
from cachewright.runtime.base import drive
from cachewright.runtime.threads import SYSTEM_CLOCK, THREADS
from cachewright.tiers.base import Tier
from cachewright.urls import make_tier

SHARED = ["sqlite", "redis", "cluster", "memcached"]
TIMEOUT = "timeout=10"  # the deadline is not what is tested, and the machine may be busy


class Caller:
    """A cache's methods by their plain names, on one face; the awaiting one keeps its loop."""

    def __init__(self, cache: Cache, runner: asyncio.Runner | None) -> None:
        self.cache, self._runner = cache, runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if self._runner is None:
            return getattr(self.cache, name)
        runner = self._runner

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await getattr(self.cache, f"a{name}")(*args, **kwargs)

        return lambda *args, **kwargs: runner.run(call(*args, **kwargs))


class Store:
    """One store: caches over it, and bytes planted behind their back."""

    def __init__(self, kind: str, face: str, url: str, namespace: str, stack: contextlib.ExitStack) -> None:
        self.kind, self.face, self.url, self.namespace, self._stack = kind, face, url, namespace, stack
        self._planter: Tier | None = None

    def cache(self, *above: str, namespace: str | None = None, **options: Any) -> Caller:
        cache = Cache(*above, self.url, namespace=namespace or self.namespace, **options)
        runner = self._stack.enter_context(asyncio.Runner()) if self.face == "asyncio" else None
        caller = Caller(cache, runner)
        self._stack.callback(caller.close)
        return caller

    def _raw(self) -> Tier:
        if self._planter is None:
            self._planter = make_tier(self.url, self.namespace, SYSTEM_CLOCK)
            self._stack.callback(self._planter.close)
        return self._planter

    def plant(self, key: str, raw: bytes) -> None:
        """Makes ``raw`` all that stands under a key, as another program would."""
        tier = self._raw()
        drive(tier.drop(THREADS, [key]))
        carrier = Slot(b"carrier!", StoredEntry(b"", 0, NEVER, NEVER, NEVER), foreign=raw)
        assert drive(tier.store(THREADS, {key: carrier})) == [True]
        assert (self.standing(key) or b"")[:88] == raw[:88]

    def plant_tag(self, tag: str, mark: bytes) -> None:
        """Makes ``mark`` a tag's generation."""
        drive(self._raw().set_generations(THREADS, {tag: mark}, only_missing=False))

    def stamp(self) -> tuple[tuple[str, bytes], ...]:
        """The tags that an entry needs to be valid here: on Memcached, which cannot be searched, its namespace's."""
        if self.kind != "memcached":
            return ()
        marks = drive(
            self._raw().set_generations(THREADS, {NAMESPACE_TAG: THREADS.new_id()}, only_missing=True)
        )
        return ((NAMESPACE_TAG, marks[NAMESPACE_TAG].mark),)

    def standing(self, key: str) -> bytes | None:
        """The bytes that stand under a key; of a newer version's slot, its header."""
        slot = drive(self._raw().read(THREADS, [key]))[0].get(key)
        return None if slot is None else slot.header + slot.payload


def _url(kind: str, request: pytest.FixtureRequest) -> str:
    get = request.getfixturevalue
    if kind == "memory":
        return "memory://"
    if kind == "sqlite":
        return f"sqlite:///{get('tmp_path')}/cache.db?{TIMEOUT}"
    server = {"redis": "redis_server", "cluster": "redis_cluster", "memcached": "memcached_server"}[kind]
    return f"{get(server).url}?{TIMEOUT}"


def _store(request: pytest.FixtureRequest, namespace: str) -> Iterator[Store]:
    kind, face = request.param.split("-")
    with contextlib.ExitStack() as stack:
        yield Store(kind, face, _url(kind, request), namespace, stack)


@pytest.fixture(params=[f"{kind}-{face}" for kind in ["memory", *SHARED] for face in ("threads", "asyncio")])
def store(request: pytest.FixtureRequest, namespace: str) -> Iterator[Store]:
    """Every store, both faces."""
    yield from _store(request, namespace)


@pytest.fixture(params=[f"{kind}-threads" for kind in SHARED])
def bytes_store(request: pytest.FixtureRequest, namespace: str) -> Iterator[Store]:
    """Every store that holds bytes."""
    yield from _store(request, namespace)


class Liar:
    """A server on loopback: it lets clients in properly and then says what it was told to say, whatever it is asked.

    Args:
        answer: said after every request, or a function of it; nothing said leaves the connection open.
        welcome: said to the first thing that a client sends (a Redis client asks for its connection's id).
    """

    def __init__(self, answer: bytes | Callable[[bytes], bytes], welcome: bytes | None = None) -> None:
        self._answer, self._welcome = answer, welcome
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._held: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.heard = b""
        self._start(self._accept)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def _start(self, work: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._held.append(client)
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        say = self._welcome if self._welcome is not None else self._answer
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                self.heard += data
                client.sendall(say(data) if callable(say) else say)
                say = self._answer

    def close(self) -> None:
        for sock in (self._listener, *self._held):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(5)


@pytest.fixture
def liar() -> Iterator[Callable[..., Liar]]:
    """Makes lying servers that end with the test."""
    made: list[Liar] = []

    def make(answer: Any, welcome: bytes | None = None) -> Liar:
        made.append(Liar(answer, welcome))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(params=["threads", "asyncio"])
def open_cache(request: pytest.FixtureRequest, namespace: str) -> Iterator[Callable[..., Caller]]:
    """Caches by URL on either face, closed at the test's end."""
    with contextlib.ExitStack() as stack:

        def make(*urls: str, **options: Any) -> Caller:
            runner = stack.enter_context(asyncio.Runner()) if request.param == "asyncio" else None
            caller = Caller(Cache(*urls, **{"namespace": namespace, **options}), runner)
            stack.callback(caller.close)
            return caller

        yield make
