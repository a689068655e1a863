"""What a probe is given: servers, readers of either face behind one blocking interface, bounded waits, other processes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.conformance.model import (
    MEMCACHED,
    REDIS,
    THREADS,
    Cannot,
    Failed,
    How,
    Library,
    Load,
    Place,
    Reader,
    Scenario,
    Store,
)
from cachewright.testing.servers import MemcachedServer, RedisServer

PATIENCE = 8.0  # seconds after which a call that should have ended hangs


def ended(futures: list[Future[Any]], seconds: float = PATIENCE) -> bool:
    return not wait(futures, seconds).not_done


def result(future: Future[Any], what: str, seconds: float = PATIENCE) -> Any:
    """What a call returned.

    Raises:
        Failed: it hangs, or raised.
    """
    if not ended([future], seconds):
        raise Failed(f"hung: {what}")
    if future.cancelled():
        raise Failed(f"{what}: CancelledError")
    error = future.exception()
    if error is not None:
        raise Failed(f"{what}: {type(error).__name__}")
    return future.result()


def until(true: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Origin:
    """A loader that counts its runs, stops at a gate when told to, and returns what ``value`` is at its beginning."""

    def __init__(self, value: Any = "value", *, gated: bool = False) -> None:
        self.value = value
        self.runs = 0
        self.started = threading.Event()
        self.gate = threading.Event()
        self.error: Exception | None = None
        self._lock = threading.Lock()
        if not gated:
            self.gate.set()

    def __call__(self, key: str) -> Any:
        with self._lock:
            self.runs += 1
            value, error = self.value, self.error
        self.started.set()
        self.gate.wait(30)
        if error is not None:
            raise error
        return value


@dataclass
class Face:
    """Blocking calls, each in a thread of its own, or coroutines on one event loop; either way a call is a future."""

    name: str
    loop: asyncio.AbstractEventLoop | None

    def call(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        if self.loop is not None:
            return asyncio.run_coroutine_threadsafe(_awaiting(function, *args), self.loop)
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(function(*args))
            except BaseException as error:  # handed to who waits for the future
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future


async def _awaiting(function: Callable[..., Any], *args: Any) -> Any:
    return await function(*args)


@dataclass
class Caller:
    """A reader, as the probe calls it."""

    face: Face
    reader: Reader

    def get(self, key: str) -> Future[Any]:
        return self.face.call(self.reader.get, key)

    def invalidate(self, key: str) -> Future[Any]:
        if self.reader.invalidate is None:
            raise Cannot("one key of a decorated function cannot be invalidated")
        return self.face.call(self.reader.invalidate, key)


class Variant:
    """One face of a library over one place; every reader that it makes stands for a process of its own."""

    def __init__(self, stage: Stage, face: Face, place: Place, server: RedisServer | None = None) -> None:
        self.stage = stage
        self.face = face
        self.place = place
        self._server = server

    @property
    def redis(self) -> RedisServer:
        """The server behind it."""
        assert self._server is not None
        return self._server

    def __str__(self) -> str:
        return f"{self.face.name} over {self.place.kind}"

    def caller(self, load: Load, how: How = How()) -> Caller:  # noqa: B008  (frozen)
        library = self.stage.library
        if self.face.name == THREADS:
            reader = library.blocking(self.place, load, how)
        else:

            async def aload(key: str) -> Any:
                return await asyncio.to_thread(load, key)

            reader = result(self.face.call(_later(library.awaited, self.place, aload, how)), "set-up")
        self.stage.closing.append((self.face, reader.close))
        return Caller(self.face, reader)

    def store(self, make: Callable[..., Store], *more: Any) -> Store:
        """What ``Library.tagged``, ``above`` or ``signed`` makes, with blocking methods."""
        if self.face.name == THREADS:
            made: Store = make(self.face.name, self.place, *more)
        else:
            made = result(self.face.call(_later(make, self.face.name, self.place, *more)), "set-up")
        self.stage.closing.append((self.face, made.close))

        def blocking(name: str) -> Callable[..., Any]:
            return lambda *args: result(self.face.call(getattr(made, name), *args), name)

        return Store(blocking("get"), blocking("set"), blocking("drop_tag"), blocking("set_tagged"))


def _later(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """Objects of asyncio libraries are made on the loop that will use them."""

    async def run() -> Any:
        return function(*args)

    return run


class Stage:
    """One scenario against one library, in a process of its own."""

    def __init__(self, scenario: Scenario, library: Library) -> None:
        self.scenario = scenario
        self.library = library
        self.closing: list[tuple[Face, Callable[[], Any] | None]] = []
        self.servers: list[RedisServer | MemcachedServer] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def variants(self) -> Iterator[Variant]:
        for face, kind in self.scenario.variants(self.library):
            yield self.variant(Face(face, None if face == THREADS else self.loop()), kind)

    def each(self, test: Callable[[Variant], None], variants: list[Variant] | None = None) -> None:
        """Runs the test on every variant, or on those that are made already; one that fails decides, and the verdict says which ones did."""

        def one(variant: Variant) -> Failed | Cannot | None:
            try:
                test(variant)
            except (Failed, Cannot) as verdict:
                return verdict
            return None

        variants = variants or list(self.variants())
        with ThreadPoolExecutor(len(variants) if self.scenario.side_by_side else 1) as pool:
            verdicts = list(pool.map(one, variants))
        where: dict[str, list[str]] = {}
        for variant, verdict in zip(variants, verdicts, strict=True):
            if isinstance(verdict, Failed):
                where.setdefault(str(verdict), []).append(str(variant))
        if len(where) == 1 and len(variants) == len(next(iter(where.values()))):
            raise Failed(next(iter(where)))
        if where:
            raise Failed("; ".join(f"{why} ({', '.join(some)})" for why, some in where.items()))
        for verdict in verdicts:
            if verdict is None:
                return
        raise Cannot(str(verdicts[0]))

    def variant(self, face: Face, kind: str) -> Variant:
        """Each has a folder and a server of its own."""
        folder = Path(tempfile.mkdtemp())
        if kind == REDIS:
            redis = RedisServer()
            self.servers.append(redis)
            redis.start()
            return Variant(self, face, Place(kind, folder, port=redis.port), redis)
        if kind == MEMCACHED:
            memcached = MemcachedServer()
            self.servers.append(memcached)
            memcached.start()
            return Variant(self, face, Place(kind, folder, port=memcached.port))
        return Variant(self, face, Place(kind, folder))

    def loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            # Its own default is a handful on a small machine; loaders that stop at a gate would wait for one another.
            self._loop.set_default_executor(ThreadPoolExecutor(256))
            threading.Thread(target=self._loop.run_forever, daemon=True).start()
        return self._loop

    def process(self, part: str, variants: list[Variant]) -> subprocess.Popen[str]:
        """One of the scenario's ``parts`` in a process of its own; its output is for the probe to read."""
        more = []
        for variant in variants:
            place = variant.place
            where = {"kind": place.kind, "folder": str(place.folder), "port": place.port}
            more += ["--variant", json.dumps({"face": variant.face.name, **where})]
        command = [
            sys.executable,
            "-m",
            "benchmarks.conformance.child",
            self.scenario.name,
            self.library.name,
        ]
        return subprocess.Popen(
            [*command, "--part", part, *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def close(self) -> None:
        """Closes the libraries, if they let themselves be closed within a second, and ends the servers."""
        closing = [face.call(close) for face, close in self.closing if close is not None]
        ended(closing, 1.0)
        for server in self.servers:
            server.close()
