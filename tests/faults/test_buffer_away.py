"""A repository whose buffer is away when it is made: the process starts all the same, and saves once it is back."""

from __future__ import annotations

import pytest

from cachewright import BufferUnavailable, Cache, ConfigurationError, WriteBehind
from cachewright.runtime.process import wait_until


def users(cache, url, saved, **options):
    behind = WriteBehind(buffer=url, **options)
    return cache.repository("user", str, saved.__setitem__, writes=behind)


def test_a_repository_is_made_while_its_buffer_is_away(own_redis):
    server = own_redis()
    before: dict[int, str] = {}
    with Cache(namespace="shop") as cache:
        users(cache, server.url, before, flusher="none").put(1, "of an earlier process")
        server.pause()
        try:
            saved: dict[int, str] = {}
            with Cache(namespace="shop") as later:
                one = users(later, f"{server.url}?timeout=0.5", saved)
                with pytest.raises(BufferUnavailable):
                    one.put(2, "b")
                with pytest.raises(BufferUnavailable):
                    one.get(2)
                server.resume()
                assert wait_until(lambda: bool(saved), 20)  # it stays at it, unasked
                assert saved == {1: "of an earlier process"}
                one.put(2, "b")
                one.flush(timeout=10)
                assert saved[2] == "b"
        finally:
            server.resume()
    assert before == {}


def test_a_server_that_would_evict_is_refused_at_the_first_contact(own_redis):
    server = own_redis(options={"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"})
    server.pause()
    try:
        with Cache(namespace="shop") as cache:
            one = users(cache, f"{server.url}?timeout=0.5", {})
            server.resume()
            with pytest.raises(ConfigurationError, match=r"allkeys-lru.*noeviction"):
                one.put(1, "a")
    finally:
        server.resume()
