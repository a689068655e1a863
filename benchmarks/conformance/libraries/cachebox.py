"""cachebox: ``cached``, whose lock against stampedes is on by default."""

from __future__ import annotations

from typing import Any

from benchmarks.conformance.model import MEMORY, AsyncLoad, How, Library, Load, Place, Reader


class Cachebox(Library):
    name = "cachebox"
    distributions = ("cachebox",)
    threads = tasks = (MEMORY,)

    def blocking(self, place: Place, load: Load, how: How) -> Reader:
        import cachebox

        cache: Any = cachebox.TTLCache(1000, how.ttl)

        @cachebox.cached(cache)
        def get(key: str) -> object:
            return load(key)

        return Reader(get, lambda key: cache.pop(cachebox.make_key(key), None))

    def awaited(self, place: Place, load: AsyncLoad, how: How) -> Reader:
        import cachebox

        cache: Any = cachebox.TTLCache(1000, how.ttl)

        @cachebox.cached(cache)
        async def get(key: str) -> object:
            return await load(key)

        async def invalidate(key: str) -> None:
            cache.pop(cachebox.make_key(key), None)

        return Reader(get, invalidate)


LIBRARY = Cachebox()
