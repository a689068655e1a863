"""theine: ``Memoize`` with a key function, which is what its documentation recommends."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from benchmarks.conformance.model import MEMORY, AsyncLoad, How, Library, Load, Place, Reader


class Theine(Library):
    name = "theine"
    distributions = ("theine", "theine_core")
    threads = tasks = (MEMORY,)

    def blocking(self, place: Place, load: Load, how: How) -> Reader:
        import theine

        get: Any = theine.Memoize(1000, timedelta(seconds=how.ttl))(load)
        get.key(lambda key: key)
        return Reader(
            get
        )  # "user can not delete/update cache manually when using decorator", says its source

    def awaited(self, place: Place, load: AsyncLoad, how: How) -> Reader:
        import theine

        async def function(key: str) -> object:
            return await load(key)

        cached: Any = theine.Memoize(1000, timedelta(seconds=how.ttl))(function)
        cached.key(lambda key: key)

        async def get(key: str) -> object:
            return await cached(key)

        return Reader(get)


LIBRARY = Theine()
