"""Every chain, on both faces, behind one blocking way of calling; and loaders that wait to be let go."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from cachewright import Cache
from cachewright.core.state import now_ms
from cachewright.runtime.base import drive
from cachewright.runtime.threads import SYSTEM_CLOCK, THREADS
from cachewright.tiers.base import Tier
from cachewright.urls import make_tier

CHAINS = [
    "memory",
    "sqlite",
    "redis",
    "valkey",
    "cluster",
    "memcached",
    "memory > redis",
    "redis > memcached",
    "memory > redis > memcached",
]
PATIENCE = 20.0


class HandClock:
    """Time that a test moves by hand; it starts at the machine's."""

    def __init__(self) -> None:
        self.offset = 0.0
        self._wall, self._mono = time.time(), time.monotonic()

    def now(self) -> float:
        return self._wall + self.offset

    def monotonic(self) -> float:
        return self._mono + self.offset

    def move(self, seconds: float) -> None:
        self.offset += seconds


class Gated:
    """A function that tells that it has begun and goes on when it is let."""

    def __init__(self, result: Any = None) -> None:
        self.result = result
        self.calls = 0
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        self.begun.set()
        if not self.go.wait(PATIENCE):
            raise AssertionError("nobody let it go")
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result(*args) if callable(self.result) else self.result

    def has_begun(self) -> None:
        assert self.begun.wait(PATIENCE), "it was never called"


class GatedTier(Tier):
    """A real tier before which (``before``) or after which (``after``) chosen operations wait once."""

    kind = "gated"

    def __init__(self, inner: Tier) -> None:
        super().__init__(inner.name, inner.namespace)
        self.inner = inner
        self.shared, self.scannable, self.server_time = inner.shared, inner.scannable, inner.server_time  # type: ignore[misc]
        self.before: dict[str, Gated] = {}
        self.after: dict[str, Gated] = {}

    async def _pass(self, rt: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        if name in self.before:
            await rt.offload(self.before.pop(name))
        result = await getattr(self.inner, name)(rt, *args, **kwargs)
        if name in self.after:
            await rt.offload(self.after.pop(name))
        return result

    async def read(self, rt: Any, keys: Any, tags: Any = ()) -> Any:
        return await self._pass(rt, "read", keys, tags)

    async def swap(self, rt: Any, swaps: Any) -> Any:
        return await self._pass(rt, "swap", swaps)

    async def drop(self, rt: Any, keys: Any) -> Any:
        return await self._pass(rt, "drop", keys)

    async def store(self, rt: Any, slots: Any) -> Any:
        return await self._pass(rt, "store", slots)

    async def set_generations(self, rt: Any, marks: Any, *, only_missing: bool) -> Any:
        return await self._pass(rt, "set_generations", marks, only_missing=only_missing)

    async def clear(self, rt: Any) -> None:
        await self.inner.clear(rt)

    def close(self) -> None:
        self.inner.close()


class Yard:
    """One chain on one face."""

    Gated, HandClock = Gated, HandClock

    def __init__(self, chain: str, face: str, urls: list[str], namespace: str) -> None:
        self.chain, self.face, self.urls, self.namespace = chain, face, urls, namespace
        self.alone = chain == "memory"
        """No other process sees the entries."""
        self.has_local = chain.startswith("memory >")
        self._made: list[Cache] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        if face == "asyncio":
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.cache = self.make()

    def make(self, *tiers: str | Tier, **options: Any) -> Cache:
        """A cache on the chain, such as another process has it."""
        cache = Cache(*(tiers or self.urls), namespace=self.namespace, **{"jitter": 0, **options})
        self._made.append(cache)
        return cache

    def gated(self, place: int) -> tuple[Cache, Any]:
        """A cache on the chain whose tier at ``place`` can be made to wait."""
        tiers = [make_tier(url, self.namespace, SYSTEM_CLOCK) for url in self.urls]
        gate = GatedTier(tiers[place])
        tiers[place] = gate
        return self.make(*tiers), gate

    def other(self) -> Cache:
        """Another process's cache; in a chain that serves this process only, the same one."""
        return self.cache if self.alone else self.make()

    # Calling

    def start(self, name: str, *args: Any, on: Any = None, **kwargs: Any) -> Future[Any]:
        """Begins a method of ``on`` (the cache) and returns at once."""
        target = on if on is not None else self.cache
        if self._loop is not None:
            return asyncio.run_coroutine_threadsafe(getattr(target, f"a{name}")(*args, **kwargs), self._loop)
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(getattr(target, name)(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future

    def do(self, name: str, *args: Any, on: Any = None, **kwargs: Any) -> Any:
        """Calls a method of ``on`` (the cache) to its end."""
        if self._loop is None:
            return getattr(on if on is not None else self.cache, name)(*args, **kwargs)
        return self.start(name, *args, on=on, **kwargs).result(PATIENCE)

    def loader(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` as the face likes it: under asyncio an ``async def`` that waits in a thread."""
        if self._loop is None:
            return function

        async def load(*args: Any) -> Any:
            return await asyncio.to_thread(function, *args)

        return functools.update_wrapper(load, function) if hasattr(function, "__name__") else load

    def cached(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """``function`` decorated, to be called plainly."""
        decorated = self.cache.cached(**options)(self.loader(function))
        if self._loop is None:
            return decorated
        return lambda *args: asyncio.run_coroutine_threadsafe(decorated(*args), self._loop).result(PATIENCE)  # type: ignore[arg-type]

    # Looking

    def standing(self, key: str, *, shared: bool = False, cache: Cache | None = None) -> dict[str, Any]:
        """The values of the fresh and valid entries of all tiers (``shared``: without process memory above)."""
        state = (cache or self.cache).engine.state
        found = {}
        local = state.chain.local
        if local is not None and not shared:
            node = local.table.get(key)
            if node is not None and node.deadline > local.monotonic():
                found["memory"] = node.value
        for level in state.chain.levels:
            slot = drive(level.tier.read(THREADS, [key]))[0].get(key)
            entry = slot.entry if slot is not None else None
            if entry is None or now_ms(THREADS) >= entry.fresh_until:
                continue
            if drive(state.is_valid(THREADS, entry, {})):
                found[level.tier.name] = state.value_of(key, entry, None, level.tier.name)
        return found

    def authority(self, key: str) -> Any:
        """What the authority holds for a key."""
        name = self.cache.engine.state.chain.authority.tier.name
        return next(view for view in self.do("inspect", key).tiers if view.tier == name)

    def waiting(self, key: str, cache: Cache | None = None) -> int:
        """How many callers wait for the key's flight in this process."""
        flight = (cache or self.cache).engine.state.flights._open.get((key, False))
        return len(flight.waiters) if flight is not None else 0

    @staticmethod
    def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        deadline = time.monotonic() + seconds
        while not (result := condition()):
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.002)
        return result

    def close(self) -> None:
        for cache in self._made:
            if self._loop is not None:
                asyncio.run_coroutine_threadsafe(cache.aclose(), self._loop).result(PATIENCE)
            else:
                cache.close()
        if self._loop is not None:
            loop = self._loop
            asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(PATIENCE)
            loop.call_soon_threadsafe(loop.stop)
            self.until(lambda: not loop.is_running())
            loop.close()


@pytest.fixture
def make_yard(
    request: pytest.FixtureRequest, tmp_path: Path, namespace: str
) -> Iterator[Callable[..., Yard]]:
    """Makes the yard of a chain and face."""
    made = []

    def url(tier: str) -> str:
        if tier == "memory":
            return "memory://"
        if tier == "sqlite":
            return f"sqlite:///{tmp_path}/cache.db?timeout=10"
        names = {"cluster": "redis_cluster", "memcached": "memcached_server"}
        return f"{request.getfixturevalue(names.get(tier, f'{tier}_server')).url}?timeout=10"

    def make(chain: str, face: str) -> Yard:
        yard = Yard(chain, face, [url(tier) for tier in chain.split(" > ")], namespace)
        made.append(yard)
        return yard

    yield make
    for yard in made:
        yard.close()


@pytest.fixture(params=[f"{chain} | {face}" for chain in CHAINS for face in ("threads", "asyncio")])
def yard(request: pytest.FixtureRequest, make_yard: Callable[..., Yard]) -> Yard:
    """Every chain on both faces; narrowed by ``@pytest.mark.parametrize("yard", […], indirect=True)``."""
    return make_yard(*request.param.split(" | "))
