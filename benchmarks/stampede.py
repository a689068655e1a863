"""Many callers, one cold key, a load of 0.1 s: how many loads, and how long until all are served."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import cachebox
import cachetools
import redis
from dogpile.cache import make_region

from benchmarks.harness import Result, Row
from cachewright import Cache
from cachewright.testing.servers import RedisServer

LOAD = 0.1
CALLERS = 200


def _threads(call: Callable[[], object]) -> float:
    barrier = threading.Barrier(CALLERS + 1)

    def one() -> None:
        barrier.wait()
        call()

    threads = [threading.Thread(target=one) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    barrier.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def threads() -> Result:
    loads = 0

    def load(x: int = 1) -> int:
        nonlocal loads
        loads += 1
        time.sleep(LOAD)
        return x

    result = Result(f"{CALLERS} threads on one cold key", "the load itself", budget=1.25)
    with RedisServer() as server, Cache() as memory, Cache(server.url, namespace="bench") as shared:
        # Its plain pool refuses the 101st thread.
        pool = redis.BlockingConnectionPool.from_url(server.url, max_connections=100, timeout=20)
        arguments = {"connection_pool": pool, "distributed_lock": True, "thread_local_lock": False}
        region = make_region().configure("dogpile.cache.redis", arguments=arguments)
        tools = cachetools.cached(cachetools.LRUCache(64), condition=threading.Condition())(load)
        box = cachebox.cached(cachebox.LRUCache(64))(load)
        for name, call in {
            "cachewright": lambda: memory.get_or_set("cold", load),
            "cachewright over Redis": lambda: shared.get_or_set("cold", load),
            "cachetools (condition)": lambda: tools(1),
            "cachebox": lambda: box(1),
            "dogpile.cache over Redis": lambda: region.get_or_create("cold", load),
        }.items():
            loads = 0
            seconds = _threads(call)
            result.rows.append(Row(name, seconds, seconds / LOAD, f"{loads} loads"))
    return result


def tasks() -> Result:
    return asyncio.run(_tasks())


async def _tasks() -> Result:
    loads = 0

    async def load() -> int:
        nonlocal loads
        loads += 1
        await asyncio.sleep(LOAD)
        return 1

    result = Result(f"{CALLERS} tasks on one cold key", "the load itself", budget=1.25)
    with RedisServer() as server:
        async with Cache() as memory, Cache(server.url, namespace="bench") as shared:
            for name, cache in (("cachewright", memory), ("cachewright over Redis", shared)):
                loads = 0
                started = time.perf_counter()
                await asyncio.gather(*(cache.aget_or_set("cold", load) for _ in range(CALLERS)))
                seconds = time.perf_counter() - started
                result.rows.append(Row(name, seconds, seconds / LOAD, f"{loads} loads"))
    return result


RUNS = {"stampede-threads": threads, "stampede-tasks": tasks}
