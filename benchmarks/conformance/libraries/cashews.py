"""cashews: its decorator with ``lock=True``, as its documentation has it against stampedes."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.conformance.model import (
    MEMORY,
    REDIS,
    TASKS,
    AsyncLoad,
    How,
    Library,
    Place,
    Reader,
    Store,
)


class Cashews(Library):
    name = "cashews"
    distributions = ("cashews",)
    tasks = (MEMORY, REDIS)
    coordinates = tags = (REDIS,)
    levels = signs = (TASKS,)

    def awaited(self, place: Place, load: AsyncLoad, how: How) -> Reader:
        from cashews import Cache

        cache = Cache()
        cache.setup("mem://" if place.kind == MEMORY else place.url, **_connections(how))
        # Its lock lives as long as the value: it takes no life of its own.
        ttl = how.ttl if how.lock is None else how.lock

        @cache(ttl=ttl, key="{key}", lock=True)
        async def get(key: str) -> object:
            return await load(key)

        return Reader(get, cache.delete, cache.close)

    def _store(self, url: str, **settings: object) -> Store:
        from cashews import Cache

        cache = Cache()
        cache.setup(url, **settings)

        async def set_tagged(key: str, value: object, ttl: float, tag: str) -> None:
            cache.register_tag(tag, key)
            await cache.set(key, value, expire=ttl, tags=[tag])

        return Store(
            cache.get,
            lambda key, value, ttl: cache.set(key, value, expire=ttl),
            cache.delete_tags,
            set_tagged,
            cache.close,
        )

    def tagged(self, face: str, place: Place) -> Store:
        return self._store(place.url)

    def above(self, face: str, place: Place) -> Store:
        return self._store(place.url, client_side=True)

    def signed(self, face: str, place: Place, secret: bytes) -> Store:
        return self._store(place.url, secret=secret)

    def forgeries(self, key: str, payload: bytes) -> Iterator[bytes]:
        """The payload names the digest that it is checked with; ``sum`` adds up the bytes of secret, key and value."""
        base = sum(key.encode() + payload)
        for guess in range(base, base + 10_000):
            yield f"sum:{guess:x}_".encode() + payload


def _connections(how: How) -> dict[str, int]:
    return {} if how.connections is None else {"max_connections": how.connections}


LIBRARY = Cashews()
