"""Hits in process memory: a decorated function, an awaited one, and `get`, beside functools and peers."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable

import cachebox
import cachetools
from dogpile.cache import make_region

from benchmarks.harness import Result, compare, compare_async
from cachewright import Cache


def decorated() -> Result:
    cache = Cache()

    def bare(x: int) -> int:
        return x

    region = make_region().configure("dogpile.cache.memory")
    contenders: dict[str, Callable[[int], int]] = {
        "functools.lru_cache": functools.lru_cache(1024)(bare),
        "cachewright": cache.cached(bare),
        "cachetools (lock)": cachetools.cached(cachetools.LRUCache(1024), lock=threading.Lock())(bare),
        "cachebox": cachebox.cached(cachebox.LRUCache(1024))(bare),
        "dogpile.cache": region.cache_on_arguments()(bare),
    }
    direct = {name: _direct(function) for name, function in contenders.items()}
    return compare(
        "decorated hit in memory, one int argument", direct, "functools.lru_cache",
        number=50_000, empty=True, budget=3.0, due=4.0,
    )  # fmt: skip


def _direct(function: Callable[[int], int]) -> Callable[[], int]:
    return lambda: function(1)


def get() -> Result:
    cache = Cache()
    cache.set("key", 1)

    @functools.lru_cache(1024)
    def lru(x: int) -> int:
        return x

    box = cachebox.LRUCache(1024)
    box["key"] = 1
    plain = cachetools.TTLCache(1024, 300)
    plain["key"] = 1
    region = make_region().configure("dogpile.cache.memory")
    region.set("key", 1)
    return compare(
        "get: a hit in memory",
        {
            "functools.lru_cache": lambda: lru(1),
            "cachewright": lambda: cache.get("key"),
            "cachebox": lambda: box.get("key"),
            "cachetools (no lock)": lambda: plain.get("key"),
            "dogpile.cache": lambda: region.get("key"),
        },
        "functools.lru_cache",
        number=50_000,
        empty=True,
        budget=4.0,
    )


def awaited() -> Result:
    return asyncio.run(_awaited())


async def _awaited() -> Result:
    cache = Cache()

    async def bare(x: int) -> int:
        return x

    ours = cache.cached(bare)
    boxed = cachebox.cached(cachebox.LRUCache(1024))(bare)
    contenders = {
        "the bare function": lambda: bare(1),
        "cachewright": lambda: ours(1),
        "cachebox": lambda: boxed(1),
    }
    try:
        from cashews import cache as cashews_cache

        cashews_cache.setup("mem://")
        theirs = cashews_cache(ttl=300)(bare)
        contenders["cashews"] = lambda: theirs(1)
    except ImportError:
        pass
    return await compare_async(
        "awaited hit in memory", contenders, "the bare function", number=5_000, budget=2.2
    )


RUNS = {"decorated": decorated, "get": get, "awaited": awaited}
