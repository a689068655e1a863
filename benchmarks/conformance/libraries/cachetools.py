"""cachetools: ``cached`` with a condition, its way to keep threads from loading the same key."""

from __future__ import annotations

import threading

from benchmarks.conformance.model import MEMORY, How, Library, Load, Place, Reader


class Cachetools(Library):
    name = "cachetools"
    distributions = ("cachetools",)
    threads = (MEMORY,)

    def blocking(self, place: Place, load: Load, how: How) -> Reader:
        import cachetools

        @cachetools.cached(cachetools.TTLCache(1000, how.ttl), condition=threading.Condition())
        def get(key: str) -> object:
            return load(key)

        def invalidate(key: str) -> None:
            with get.cache_condition:
                get.cache.pop(get.cache_key(key), None)

        return Reader(get, invalidate)


LIBRARY = Cachetools()
