"""cachewright, both faces, on every engine."""

from __future__ import annotations

from typing import ClassVar

from benchmarks.conformance.model import (
    DISK,
    MEMCACHED,
    MEMORY,
    REDIS,
    TASKS,
    THREADS,
    AsyncLoad,
    How,
    Library,
    Load,
    Place,
    Reader,
    Store,
)


def _url(place: Place) -> str:
    return {
        MEMORY: "memory://",
        DISK: f"sqlite:///{place.folder}/cache.db",
        REDIS: place.url,
        MEMCACHED: f"memcached://{place.address}",
    }[place.kind]


def _options(how: How) -> dict[str, float]:
    return {"ttl": how.ttl} if how.lock is None else {"ttl": how.ttl, "lease": how.lock}


class Cachewright(Library):
    name = "cachewright"
    distributions = ("cachewright",)
    threads = tasks = (MEMORY, DISK, REDIS, MEMCACHED)
    coordinates = (DISK, REDIS, MEMCACHED)
    tags = (MEMORY, DISK, REDIS, MEMCACHED)
    levels = signs = (THREADS, TASKS)
    open: ClassVar[dict[str, str]] = {
        "coherence": "the feed that tells other processes' memories of a change is not built yet; "
        "`local_ttl` (5 s) bounds how long they differ"
    }

    def blocking(self, place: Place, load: Load, how: How) -> Reader:
        from cachewright import Cache

        cache = Cache(_url(place), **_options(how))  # type: ignore[arg-type]
        return Reader(lambda key: cache.get_or_set(key, lambda: load(key)), cache.delete, cache.close)

    def awaited(self, place: Place, load: AsyncLoad, how: How) -> Reader:
        from cachewright import Cache

        cache = Cache(_url(place), **_options(how))  # type: ignore[arg-type]

        async def get(key: str) -> object:
            async def loader() -> object:
                return await load(key)

            return await cache.aget_or_set(key, loader)

        return Reader(get, cache.adelete, cache.aclose)

    def _store(self, face: str, *tiers: str, **options: object) -> Store:
        from cachewright import Cache

        cache = Cache(*tiers, jitter=0, **options)  # type: ignore[arg-type]
        if face == THREADS:
            return Store(
                cache.get,
                lambda key, value, ttl: cache.set(key, value, ttl=ttl),
                cache.invalidate_tags,
                lambda key, value, ttl, tag: cache.set(key, value, ttl=ttl, tags=tag),
                cache.close,
            )
        return Store(
            cache.aget,
            lambda key, value, ttl: cache.aset(key, value, ttl=ttl),
            cache.ainvalidate_tags,
            lambda key, value, ttl, tag: cache.aset(key, value, ttl=ttl, tags=tag),
            cache.aclose,
        )

    def tagged(self, face: str, place: Place) -> Store:
        return self._store(face, _url(place))

    def above(self, face: str, place: Place) -> Store:
        # Not the default of 5 s: that would hide what the memory makes of an entry's own life.
        return self._store(face, "memory://", place.url, local_ttl=600)

    def signed(self, face: str, place: Place, secret: bytes) -> Store:
        return self._store(face, place.url, codec="pickle", pickle_keys=secret)


LIBRARY = Cachewright()
