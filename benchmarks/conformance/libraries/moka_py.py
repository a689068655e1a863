"""moka-py: ``get_with`` for threads, the decorator with ``wait_concurrent`` for coroutines."""

from __future__ import annotations

from typing import Any

from benchmarks.conformance.model import MEMORY, AsyncLoad, How, Library, Load, Place, Reader


class MokaPy(Library):
    name = "moka-py"
    distributions = ("moka-py",)
    threads = tasks = (MEMORY,)

    def blocking(self, place: Place, load: Load, how: How) -> Reader:
        import moka_py

        cache: Any = moka_py.Moka(1000, ttl=how.ttl)
        return Reader(lambda key: cache.get_with(key, lambda: load(key)), cache.remove)

    def awaited(self, place: Place, load: AsyncLoad, how: How) -> Reader:
        import moka_py

        @moka_py.cached(ttl=how.ttl, wait_concurrent=True)
        async def get(key: str) -> object:
            return await load(key)

        async def invalidate(key: str) -> None:
            get.cache_clear()  # type: ignore[attr-defined]  # it drops all keys or none

        return Reader(get, invalidate)


LIBRARY = MokaPy()
