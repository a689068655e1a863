"""Reads of 200 B from Redis: one after another from a thread, and 500 at once from an event loop."""

from __future__ import annotations

import asyncio
import time

import redis
import redis.asyncio
from dogpile.cache import make_region

from benchmarks.harness import Result, compare, per_second
from cachewright import Cache
from cachewright.testing.servers import RedisServer

VALUE = "x" * 200


def sync_get() -> Result:
    with RedisServer() as server, Cache(server.url, namespace="bench") as cache:
        cache.set("key", VALUE)
        client = redis.Redis.from_url(server.url)
        client.set("raw", VALUE)
        region = make_region().configure("dogpile.cache.redis", arguments={"url": server.url})
        region.set("key", VALUE)
        return compare(
            "get of 200 B from Redis, one thread",
            {
                "redis-py (hiredis)": lambda: client.get("raw"),
                "cachewright": lambda: cache.get("key"),
                "dogpile.cache": lambda: region.get("key"),
            },
            "redis-py (hiredis)",
            number=2_000,
            budget=0.75,
            due=1.2,
        )


def async_get() -> Result:
    with RedisServer() as server:
        return asyncio.run(_async_get(server.url))


async def _async_get(url: str) -> Result:
    rates: dict[str, list[float]] = {"redis.asyncio": [], "cachewright": []}
    # Its plain pool refuses the 101st caller; the blocking one is what its documentation has for this.
    client = redis.asyncio.Redis(
        connection_pool=redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=50)
    )
    async with Cache(url, namespace="bench") as cache:
        await cache.aset("key", VALUE)
        await client.set("raw", VALUE)
        for _ in range(7):
            for name, read in (
                ("redis.asyncio", lambda: client.get("raw")),
                ("cachewright", lambda: cache.aget("key")),
            ):
                started = time.perf_counter()
                for _ in range(4):
                    await asyncio.gather(*(read() for _ in range(500)))
                rates[name].append(2_000 / (time.perf_counter() - started))
    await client.aclose()
    best = {name: sorted(found)[len(found) // 2] for name, found in rates.items()}
    return per_second("500 concurrent reads of 200 B from Redis, asyncio", best, "redis.asyncio", budget=8.0)


RUNS = {"redis": sync_get, "redis-async": async_get}
