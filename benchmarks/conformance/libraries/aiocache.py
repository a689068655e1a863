"""aiocache: ``cached_stampede``, its decorator against stampedes, with its default lease of 2 s."""

from __future__ import annotations

from benchmarks.conformance.model import MEMORY, REDIS, AsyncLoad, How, Library, Place, Reader


class Aiocache(Library):
    name = "aiocache"
    distributions = ("aiocache",)
    tasks = (MEMORY, REDIS)
    coordinates = (REDIS,)

    def awaited(self, place: Place, load: AsyncLoad, how: How) -> Reader:
        from aiocache import Cache, cached_stampede

        where: dict[str, object] = {"cache": Cache.MEMORY}
        if place.kind == REDIS:
            # No limit to its connections: it raises where they run out, and says to adapt their number to the load.
            where = {"cache": Cache.REDIS, "endpoint": place.host, "port": place.port}
        lease = 2 if how.lock is None else how.lock

        @cached_stampede(lease=lease, ttl=int(how.ttl), key_builder=lambda function, key: key, **where)
        async def get(key: str) -> object:
            return await load(key)

        return Reader(get, get.cache.delete, get.cache.close)


LIBRARY = Aiocache()
