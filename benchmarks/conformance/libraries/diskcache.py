"""diskcache: ``memoize`` around ``barrier`` around ``memoize``, its double-checked locking."""

from __future__ import annotations

from typing import Any

from benchmarks.conformance.model import DISK, THREADS, How, Library, Load, Place, Reader, Store


class Diskcache(Library):
    name = "diskcache"
    distributions = ("diskcache",)
    threads = coordinates = tags = (DISK,)

    def blocking(self, place: Place, load: Load, how: How) -> Reader:
        import diskcache

        cache = diskcache.Cache(str(place.folder))

        @cache.memoize(expire=how.ttl, name="get")
        @diskcache.barrier(cache, diskcache.Lock, name="lock", expire=how.lock)
        @cache.memoize(expire=how.ttl, name="get")
        def get(key: str) -> Any:
            return load(key)

        return Reader(get, lambda key: cache.delete(get.__cache_key__(key)), cache.close)

    def tagged(self, face: str, place: Place) -> Store:
        import diskcache

        assert face == THREADS
        cache = diskcache.Cache(str(place.folder), tag_index=True)
        return Store(
            cache.get,
            lambda key, value, ttl: cache.set(key, value, expire=ttl),
            cache.evict,
            lambda key, value, ttl, tag: cache.set(key, value, expire=ttl, tag=tag),
            cache.close,
        )


LIBRARY = Diskcache()
