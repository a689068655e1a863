"""Django's cache framework: ``get_or_set`` of its own backends."""

from __future__ import annotations

from typing import Any

from benchmarks.conformance.model import DISK, MEMCACHED, MEMORY, REDIS, How, Library, Load, Place, Reader


def reader(
    backend: str, location: str, load: Load, how: How, options: dict[str, Any] | None = None
) -> Reader:
    """A set of caches of its own, as ``django.core.cache.caches`` is one: each thread has its own connection."""
    from django.conf import settings
    from django.core.cache import CacheHandler

    if not settings.configured:
        settings.configure()
    chosen = {"BACKEND": backend, "LOCATION": location, "TIMEOUT": how.ttl, "OPTIONS": options or {}}
    caches = CacheHandler({"default": chosen})

    def invalidate(key: str) -> None:
        caches["default"].delete(key)

    return Reader(lambda key: caches["default"].get_or_set(key, lambda: load(key), how.ttl), invalidate)


class Django(Library):
    name = "Django"
    distributions = ("Django",)
    threads = (MEMORY, DISK, REDIS, MEMCACHED)  # its asyncio face takes no coroutine to load with

    def blocking(self, place: Place, load: Load, how: How) -> Reader:
        backends = "django.core.cache.backends"
        backend, location = {
            # Every location is one memory that all backends of this name in the process share.
            MEMORY: (f"{backends}.locmem.LocMemCache", str(id(load))),
            DISK: (f"{backends}.filebased.FileBasedCache", str(place.folder)),
            REDIS: (f"{backends}.redis.RedisCache", place.url),
            MEMCACHED: (f"{backends}.memcached.PyMemcacheCache", place.address),
        }[place.kind]
        return reader(backend, location, load, how)


LIBRARY = Django()
