"""A backend for regions of dogpile.cache, over the tiers of a `Cache`.

::

    region = make_region().configure(
        "cachewright", expiration_time=60, arguments={"tiers": ["redis://localhost:6379/0"], "ttl": 3600}
    )

dogpile decides when a value is too old and who builds it anew; the backend stores, and lends it a lock that a dead
holder does not keep. Values pass the cache's codec, never `pickle` (unless the cache has the signed one).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, cast

from cachewright.cache import Cache
from cachewright.errors import ConfigurationError, MissingExtraError
from cachewright.integrations.lease_lock import LeaseLock
from cachewright.keys import shorten
from cachewright.options import MISSING, Freshness
from cachewright.spelling import did_you_mean

try:
    from dogpile.cache.api import (
        NO_VALUE,
        BackendFormatted,
        BackendSetType,
        CacheBackend,
        CachedValue,
        CacheMutex,
        SerializedReturnType,
    )
except ImportError as error:
    raise MissingExtraError("the backend for dogpile.cache", "dogpile") from error

__all__ = ["CachewrightBackend"]

_STORE = ("ttl", "jitter", "tags")  # options of every value that is set
_MAKE = tuple(
    name
    for name, parameter in inspect.signature(Cache).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
)


class CachewrightBackend(CacheBackend):
    """See the module. ``cache`` is the `Cache` below; close it, if need be, when the region is done with.

    Args:
        arguments: ``cache``, a `Cache`; or ``tiers``, URLs in a list or, parted by spaces, in a str, and beside them
            any option of `Cache`. With both: ``ttl``, ``jitter`` and ``tags`` of what the region stores. Without a
            ``ttl`` a given cache's own holds, and what a cache made here holds stays until it is evicted.

    Raises:
        ConfigurationError: an argument that is unknown, missing or wrong.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        given = dict(arguments)
        _check_names(given)
        cache, tiers = given.pop("cache", None), given.pop("tiers", None)
        if (cache is None) == (tiers is None):
            which = "both 'cache' and 'tiers'" if cache is not None else "neither 'cache' nor 'tiers'"
            raise ConfigurationError(
                f"arguments of the dogpile backend name {which}: give one, as in "
                "arguments={'tiers': ['redis://localhost:6379/0'], 'ttl': 3600}"
            )
        options = {name: given.pop(name) for name in _STORE if name in given}
        if cache is None:
            self.cache = Cache(*(tiers.split() if isinstance(tiers, str) else tiers), **given)
            options.setdefault("ttl", None)
        elif not isinstance(cache, Cache):
            raise ConfigurationError(f"cache={shorten(cache)}: expected a cachewright.Cache")
        elif given:
            raise ConfigurationError(f"{', '.join(given)}: a given cache has its own; leave them out")
        else:
            self.cache = cache
        self._options = cast(Freshness, options)

    # What a region without a serializer hands over is stored as it is, but for its class: a plain tuple.

    def get(self, key: str) -> BackendFormatted:
        return _as_value(self.cache.get(key, MISSING))

    def get_multi(self, keys: Iterable[str]) -> list[BackendFormatted]:
        names = list(keys)
        found = self.cache.get_many(names)
        return [_as_value(found.get(name, MISSING)) for name in names]

    def set(self, key: str, value: BackendSetType) -> None:
        self.set_multi({key: value})

    def set_multi(self, mapping: Mapping[str, BackendSetType]) -> None:
        plain = {key: tuple(value) if isinstance(value, tuple) else value for key, value in mapping.items()}
        self.cache.set_many(plain, **self._options)

    # With a serializer it is bytes. The two are kept apart: a region may have been set up otherwise before.

    def get_serialized(self, key: str) -> SerializedReturnType:
        return _as_bytes(self.cache.get(key, MISSING))

    def get_serialized_multi(self, keys: Iterable[str]) -> list[SerializedReturnType]:
        names = list(keys)
        found = self.cache.get_many(names)
        return [_as_bytes(found.get(name, MISSING)) for name in names]

    def delete(self, key: str) -> None:
        self.cache.delete(key)

    def delete_multi(self, keys: Iterable[str]) -> None:
        self.cache.delete_many(list(keys))

    def get_mutex(self, key: str) -> CacheMutex:
        """The lock under which dogpile builds the value of ``key``: one for all processes on these tiers."""
        return _Mutex(self.cache, key)


class _Mutex(LeaseLock, CacheMutex):
    """A `LeaseLock` is all that dogpile asks for."""


def _as_value(found: Any) -> BackendFormatted:
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict) and "ct" in found[1]:
        return CachedValue(*found)
    return NO_VALUE  # nothing, or what a region did not put there


def _as_bytes(found: Any) -> SerializedReturnType:
    return found if isinstance(found, bytes) else NO_VALUE


def _check_names(given: Mapping[str, Any]) -> None:
    known = ("cache", "tiers", *dict.fromkeys((*_STORE, *_MAKE, *Freshness.__annotations__)))
    for name in given:
        if name not in known:
            raise ConfigurationError(
                f"arguments of the dogpile backend: there is no {name!r}{did_you_mean(str(name), known)}; "
                f"known: {', '.join(known)}"
            )
