"""dogpile.cache: a region with a distributed lock, as its documentation has it for several processes."""

from __future__ import annotations

from benchmarks.conformance.model import MEMCACHED, MEMORY, REDIS, How, Library, Load, Place, Reader


class Dogpile(Library):
    name = "dogpile.cache"
    distributions = ("dogpile.cache",)
    threads = (MEMORY, REDIS, MEMCACHED)
    coordinates = (REDIS, MEMCACHED)

    def blocking(self, place: Place, load: Load, how: How) -> Reader:
        from dogpile.cache import make_region

        region = make_region()
        if place.kind == MEMORY:
            region.configure("dogpile.cache.memory", expiration_time=how.ttl)
        elif place.kind == MEMCACHED:
            arguments: dict[str, object] = {"url": [place.address], "distributed_lock": True}
            if how.lock is not None:
                arguments["lock_timeout"] = max(1, int(how.lock))
            region.configure("dogpile.cache.pymemcache", expiration_time=how.ttl, arguments=arguments)
        else:
            region.configure("dogpile.cache.redis", expiration_time=how.ttl, arguments=_redis(place, how))
        return Reader(lambda key: region.get_or_create(key, lambda: load(key)), region.delete)


def _redis(place: Place, how: How) -> dict[str, object]:
    arguments: dict[str, object] = {
        "host": place.host,
        "port": place.port,
        "distributed_lock": True,
        "thread_local_lock": False,
        "redis_expiration_time": max(1, int(how.ttl * 2)),
    }
    if how.lock is not None:
        arguments["lock_timeout"] = how.lock
    if how.connections is not None:
        import redis

        arguments["connection_pool"] = redis.BlockingConnectionPool.from_url(
            place.url, max_connections=how.connections, timeout=20
        )
    return arguments


LIBRARY = Dogpile()
