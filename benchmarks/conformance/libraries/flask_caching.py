"""Flask-Caching: ``memoize`` in an application of its own."""

from __future__ import annotations

from benchmarks.conformance.model import DISK, MEMCACHED, MEMORY, REDIS, How, Library, Load, Place, Reader


class FlaskCaching(Library):
    name = "Flask-Caching"
    distributions = ("Flask-Caching", "cachelib", "Flask")
    threads = (MEMORY, DISK, REDIS, MEMCACHED)

    def blocking(self, place: Place, load: Load, how: How) -> Reader:
        from flask import Flask
        from flask_caching import Cache

        settings = {
            MEMORY: {"CACHE_TYPE": "SimpleCache"},
            DISK: {"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": str(place.folder)},
            REDIS: {"CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": place.url},
            MEMCACHED: {"CACHE_TYPE": "MemcachedCache", "CACHE_MEMCACHED_SERVERS": [place.address]},
        }[place.kind]
        cache = Cache(Flask("probe"), config=settings)

        @cache.memoize(timeout=int(how.ttl))
        def get(key: str) -> object:
            return load(key)

        return Reader(get, lambda key: cache.delete_memoized(get, key))


LIBRARY = FlaskCaching()
