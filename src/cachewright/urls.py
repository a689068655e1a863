"""Tier URLs: what each scheme is, which parameters it takes, and the chain that several make.

========================================  ==========================================================
``memory://?max_entries=10000``           objects in this process
``sqlite:///cache.db``, ``sqlite:////a``  a file, relative or absolute; several processes of one host
``redis://user:pw@host:6379/0``           Redis or Valkey; also ``rediss://`` (TLS), ``valkey://``,
                                          ``redis+unix:///path?db=0``
``redis+cluster://h1:7000,h2:7001``       a cluster; any of its nodes; also ``rediss+cluster://``
``memcached://h1:11211,h2:11211``         one or more servers
``embedded://``, ``embedded:///folder``   a real Valkey that runs with this process, from a wheel
``embedded+cluster://``                   six of them as a cluster
========================================  ==========================================================

Every shared scheme and SQLite take ``timeout`` (seconds per operation, 0.5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote

from cachewright.errors import ConfigurationError
from cachewright.keys import shorten
from cachewright.keys import without_credentials as _bare
from cachewright.runtime.base import Clock
from cachewright.spelling import did_you_mean
from cachewright.tiers.base import Tier
from cachewright.tiers.memory import MemoryTier
from cachewright.url_parts import check_quoting, hosts, is_number, login, read_parameters, split

__all__ = ["check_chain", "make_tier", "make_tiers"]


@dataclass(frozen=True, slots=True)
class _Made:
    """What every scheme's factory is given."""

    url: str  # without credentials, for errors
    parts: SplitResult
    parameters: Mapping[str, Any]
    namespace: str
    clock: Clock
    copy: bool


def make_tiers(urls: Sequence[str | Tier], namespace: str, clock: Clock, copy: bool) -> list[Tier]:
    """The tiers of a chain, checked to make sense together."""
    tiers = [url if isinstance(url, Tier) else make_tier(url, namespace, clock, copy) for url in urls]
    names: dict[str, int] = {}
    for tier in tiers:
        names[tier.name] = names.get(tier.name, 0) + 1
        if names[tier.name] > 1:
            tier.name = f"{tier.name}#{names[tier.name]}"
    check_chain(tiers)
    return tiers


def make_tier(url: object, namespace: str, clock: Clock, copy: bool = False) -> Tier:
    """The tier that a URL names; nothing connects yet.

    Raises:
        ConfigurationError: an unknown scheme or parameter (the nearest right one is named), or a value out of range.
        MissingExtraError: the engine's client is not installed.
    """
    if isinstance(url, (list, tuple, set, frozenset)):
        # Not shown: its URLs may hold passwords.
        raise ConfigurationError(
            f"a {type(url).__name__} of tiers: pass them as separate arguments: Cache('memory://', 'redis://…'), "
            "or Cache(*tiers)"
        )
    if not isinstance(url, str):
        raise ConfigurationError(f"{shorten(url)}: expected a tier URL such as 'redis://localhost:6379/0'")
    parts, query = split(url)
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is not None and "://" not in url:
        raise ConfigurationError(f"{_bare(url)}: write {parts.scheme}:// (a colon and two slashes)")
    if scheme is None:
        if url in _SCHEMES:
            raise ConfigurationError(f"{url}: write {url}:// (a colon and two slashes)")
        raise ConfigurationError(
            f"{_bare(url)}: there is no tier {parts.scheme or _bare(url)!r}"
            f"{did_you_mean(parts.scheme or _bare(url), _SCHEMES)}; "
            f"known: {', '.join(f'{name}://' for name in _SCHEMES)}"
        )
    build, known = scheme
    if parts.scheme in _WITH_HOSTS:
        check_quoting(_bare(url), parts)
    parameters = read_parameters(_bare(url), parts.scheme, query, known)
    return build(_Made(_bare(url), parts, parameters, namespace, clock, copy))


def check_chain(tiers: Sequence[Tier]) -> None:
    """Raises `ConfigurationError` where the tiers' order cannot keep its promises."""
    if not tiers:
        raise ConfigurationError("a cache needs at least one tier: Cache('memory://')")
    names = " > ".join(tier.kind for tier in tiers)
    for place, tier in enumerate(tiers):
        if tier.holds_objects and place > 0:
            raise ConfigurationError(f"{names}: process memory can only be the first tier")
        if not tier.shared and not tier.holds_objects and (place < len(tiers) - 1):
            raise ConfigurationError(f"{names}: SQLite can only be the last tier")
        if not tier.shared and not tier.holds_objects and any(other.shared for other in tiers):
            raise ConfigurationError(
                f"{names}: SQLite cannot stand under a shared tier: it belongs to one host, and a delete on another "
                "host would leave its entry standing"
            )


def _no_place(made: _Made) -> None:
    if made.parts.netloc or made.parts.path not in ("", "/"):
        raise ConfigurationError(f"{made.url}: {made.parts.scheme}:// takes no host or path")


def _memory(made: _Made) -> Tier:
    _no_place(made)
    return MemoryTier(
        namespace=made.namespace,
        copy=made.copy,
        monotonic=made.clock.monotonic,
        now=made.clock.now,
        **made.parameters,
    )


def _sqlite(made: _Made) -> Tier:
    from cachewright.tiers.sqlite import SqliteTier

    path = unquote(made.parts.path)
    if made.parts.netloc or len(path) < 2:
        raise ConfigurationError(
            f"{made.url}: write sqlite:///relative/path.db or sqlite:////absolute/path.db (three or four slashes)"
        )
    return SqliteTier(path=path[1:], namespace=made.namespace, **made.parameters)


def _redis(made: _Made) -> Tier:
    from cachewright.tiers.redis import RedisTier

    (host, port), *more = hosts(made.url, made.parts, 6379)
    if more:
        raise ConfigurationError(
            f"{made.url}: several servers are a cluster: redis+cluster://host:port,host:port"
        )
    db = made.parts.path.strip("/") or "0"
    if not is_number(db):
        raise ConfigurationError(f"{made.url}: {db!r} is no database number: redis://host:6379/0")
    ssl = made.parts.scheme in ("rediss", "valkeys")
    return RedisTier(
        host=host,
        port=port,
        db=int(db),
        ssl=ssl,
        namespace=made.namespace,
        **login(made.parts),
        **made.parameters,
    )


def _redis_unix(made: _Made) -> Tier:
    from cachewright.tiers.redis import RedisTier

    path = unquote(made.parts.path)
    if len(path) < 2:
        raise ConfigurationError(f"{made.url}: names no socket: redis+unix:///run/redis.sock?db=0")
    return RedisTier(unix_path=path, namespace=made.namespace, **login(made.parts), **made.parameters)


def _cluster(made: _Made) -> Tier:
    from cachewright.tiers.redis_cluster import RedisClusterTier

    ssl = made.parts.scheme.startswith("rediss")
    return RedisClusterTier(
        nodes=hosts(made.url, made.parts, 6379),
        ssl=ssl,
        namespace=made.namespace,
        **login(made.parts),
        **made.parameters,
    )


def _memcached(made: _Made) -> Tier:
    from cachewright.tiers.memcached import MemcachedTier

    return MemcachedTier(
        servers=hosts(made.url, made.parts, 11211), namespace=made.namespace, **made.parameters
    )


def _embedded(made: _Made) -> Tier:
    from cachewright.tiers.embedded_tier import embedded_tier

    return embedded_tier(unquote(made.parts.path), made.namespace, **made.parameters)


def _embedded_cluster(made: _Made) -> Tier:
    from cachewright.tiers.embedded_tier import embedded_cluster_tier

    _no_place(made)
    return embedded_cluster_tier(made.namespace, **made.parameters)


_WITH_HOSTS = frozenset(
    {"redis", "rediss", "valkey", "valkeys", "redis+cluster", "rediss+cluster", "memcached"}
)
_TIMEOUT: dict[str, type] = {"timeout": float}
_SCHEMES: dict[str, tuple[Callable[[_Made], Tier], dict[str, type]]] = {
    "memory": (_memory, {"max_entries": int}),
    "sqlite": (_sqlite, _TIMEOUT),
    "redis": (_redis, _TIMEOUT),
    "rediss": (_redis, _TIMEOUT),
    "valkey": (_redis, _TIMEOUT),
    "valkeys": (_redis, _TIMEOUT),
    "redis+unix": (_redis_unix, {"timeout": float, "db": int}),
    "redis+cluster": (_cluster, _TIMEOUT),
    "rediss+cluster": (_cluster, _TIMEOUT),
    "memcached": (_memcached, _TIMEOUT),
    "embedded": (_embedded, _TIMEOUT),
    "embedded+cluster": (_embedded_cluster, _TIMEOUT),
}
