"""Loads of many keys while the authority is away: as those of one key, shared, kept for a while, and helped from below."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from cachewright import Cache
from cachewright.runtime.process import free_port
from cachewright.testing.servers import MemcachedServer, RedisServer


def test_callers_share_one_load_and_memory_keeps_it() -> None:
    calls: list[list[str]] = []
    begun, go = threading.Event(), threading.Event()

    def load(keys: list[str]) -> dict[str, int]:
        calls.append(keys)
        begun.set()
        assert go.wait(30)
        return dict.fromkeys(keys, 1)

    with Cache("memory://", f"redis://127.0.0.1:{free_port()}", local_ttl=60) as cache:
        found: list[dict[str, int]] = []

        def ask() -> None:
            found.append(cache.get_or_set_many(["a", "b"], load))

        callers = [threading.Thread(target=ask) for _ in range(8)]
        callers[0].start()
        assert begun.wait(30)
        for caller in callers[1:]:
            caller.start()
        pause = threading.Event()
        flights = cache.engine.state.flights
        for _ in range(5000):
            if len([f for f in flights._open.values() for _ in f.waiters]) == 7:
                break
            pause.wait(0.002)
        go.set()
        for caller in callers:
            caller.join(30)
        assert found == [{"a": 1, "b": 1}] * 8
        assert cache.get_or_set_many(["a", "b"], load) == {"a": 1, "b": 1}
        assert calls == [["a", "b"]]
        assert "LeaseLost" not in cache.stats()["events"], "nobody had one"


def test_lower_tiers_answer(
    own_redis: Callable[..., RedisServer], memcached_server: MemcachedServer, namespace: str
) -> None:
    server = own_redis()
    urls = [f"redis://127.0.0.1:{server.port}", f"memcached://127.0.0.1:{memcached_server.port}"]

    def never(keys: list[str]) -> dict[str, Any]:
        raise AssertionError(f"the origin was asked for {keys}")

    with Cache(*urls, namespace=namespace) as cache:
        cache.get_or_set_many(["a", "b"], lambda keys: dict.fromkeys(keys, "below"))
        server.stop()
        assert cache.get_or_set_many(["a", "b"], never) == {"a": "below", "b": "below"}
        found = cache.get_or_set_many(
            ["a", "c"], lambda keys: {key: f"{key} from the origin" for key in keys}
        )
        assert found == {"a": "below", "c": "c from the origin"}
