"""redis-py: the bare client as cache-aside, and its client-side cache."""

from __future__ import annotations

import json

from benchmarks.conformance.model import REDIS, THREADS, Cannot, How, Library, Load, Place, Reader, Store


class RedisPy(Library):
    name = "redis-py"
    distributions = ("redis", "hiredis")
    threads = (REDIS,)
    client = True
    levels = (THREADS,)

    def blocking(self, place: Place, load: Load, how: How) -> Reader:
        import redis

        client = redis.Redis(host=place.host, port=place.port)

        def get(key: str) -> object:
            found = client.get(key)
            if found is not None:
                return json.loads(found)  # type: ignore[arg-type]
            value = load(key)
            client.set(key, json.dumps(value), px=int(how.ttl * 1000))
            return value

        return Reader(get, client.delete, client.close)

    def above(self, face: str, place: Place) -> Store:
        import redis
        from redis.cache import CacheConfig

        client = redis.Redis(
            host=place.host, port=place.port, protocol=3, cache_config=CacheConfig(), decode_responses=True
        )
        try:
            client.ping()
        except redis.ConnectionError as error:
            if "7.4" not in str(error):
                raise
            raise Cannot("its client-side cache refuses Redis before 7.4 and Valkey 9.1") from error
        return Store(
            client.get, lambda key, value, ttl: client.set(key, value, px=int(ttl * 1000)), close=client.close
        )


LIBRARY = RedisPy()
