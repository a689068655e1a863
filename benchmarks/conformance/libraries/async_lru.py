"""async-lru: ``alru_cache`` with a life."""

from __future__ import annotations

from benchmarks.conformance.model import MEMORY, AsyncLoad, How, Library, Place, Reader


class AsyncLru(Library):
    name = "async-lru"
    distributions = ("async-lru",)
    tasks = (MEMORY,)

    def awaited(self, place: Place, load: AsyncLoad, how: How) -> Reader:
        from async_lru import alru_cache

        @alru_cache(maxsize=1000, ttl=how.ttl)
        async def get(key: str) -> object:
            return await load(key)

        async def invalidate(key: str) -> None:
            get.cache_invalidate(key)

        return Reader(get, invalidate, get.cache_close)


LIBRARY = AsyncLru()
