"""django-redis: its backend with timeouts and ``IGNORE_EXCEPTIONS``, as its documentation has them."""

from __future__ import annotations

from benchmarks.conformance.libraries.django import reader
from benchmarks.conformance.model import REDIS, How, Library, Load, Place, Reader


class DjangoRedis(Library):
    name = "django-redis"
    distributions = ("django-redis", "Django")
    threads = (REDIS,)

    def blocking(self, place: Place, load: Load, how: How) -> Reader:
        options = {
            "CLIENT_CLASS": "django_redis.client.DefaultClient",
            "SOCKET_CONNECT_TIMEOUT": 5,
            "SOCKET_TIMEOUT": 5,
            "IGNORE_EXCEPTIONS": True,
        }
        return reader("django_redis.cache.RedisCache", place.url, load, how, options)


LIBRARY = DjangoRedis()
