"""URLs of buffers in Redis or Valkey, written as tiers write theirs."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import SplitResult, unquote

from cachewright.behind.buffers.redis import RedisBuffer
from cachewright.behind.buffers.redis_nodes import Cluster, Nodes, OneServer
from cachewright.behind.buffers.redis_partitions import Clock, Partitions
from cachewright.errors import ConfigurationError
from cachewright.keys import without_credentials
from cachewright.tiers.redis_driver import Address
from cachewright.url_parts import check_quoting, hosts, is_number, login, read_parameters, split

__all__ = ["open_redis"]

_PARAMETERS: Final[dict[str, type]] = {
    "durability": str,
    "wait_timeout": float,
    "timeout": float,
    "partitions": int,
}
_MOST_PARTITIONS: Final = 1024


def open_redis(
    url: str, scope: str, *, max_dirty: int, max_dirty_bytes: int, clock: Clock | None = None
) -> RedisBuffer:
    """The buffer of that URL; nothing connects yet.

    Args:
        url: see `open_buffer`.
        scope: whose records.
        max_dirty: most records.
        max_dirty_bytes: most bytes.
        clock: None: the server's, on which all clients agree; a test may bring its own.

    Raises:
        ConfigurationError: a parameter that is not there, or a value out of range.
    """
    shown = f"buffer={without_credentials(url)}"
    parts, query = split(url)
    scheme = parts.scheme
    unix, cluster = scheme == "redis+unix", scheme.endswith("+cluster")
    if not unix:
        check_quoting(shown, parts)
    known = {**_PARAMETERS, "db": int} if unix else _PARAMETERS
    given = read_parameters(shown, scheme, query, known)
    timeout = given.get("timeout", 2.0)
    count = given.get("partitions", 16 if cluster else 1)
    if count > _MOST_PARTITIONS:
        raise ConfigurationError(f"{shown}: partitions={count}: expected 1 to {_MOST_PARTITIONS}")
    nodes = (_cluster if cluster else _server)(shown, parts, given, timeout)
    partitions = Partitions(
        nodes,
        without_credentials(url),
        scope,
        count=count,
        timeout=timeout,
        replicas=_replicas(shown, given.get("durability", "none")),
        wait_timeout=given.get("wait_timeout", 1.0),
        clock=clock,
    )
    return RedisBuffer(partitions, max_dirty=max_dirty, max_dirty_bytes=max_dirty_bytes)


def _replicas(shown: str, durability: str) -> int:
    """How many of them must confirm a write."""
    word, colon, text = durability.partition(":")
    if durability == "none":
        return 0
    if word != "wait" or not colon or not is_number(text) or not 0 < int(text) < 1000:
        raise ConfigurationError(
            f"{shown}: durability={durability[:40]!r}: expected none, or wait:N for N replicas (wait:1)"
        )
    return int(text)


def _server(shown: str, parts: SplitResult, given: dict[str, Any], timeout: float) -> Nodes:
    name = f"buffer {parts.scheme}"
    if parts.scheme == "redis+unix":
        path = unquote(parts.path)
        if len(path) < 2:
            raise ConfigurationError(f"{shown}: names no socket: redis+unix:///run/redis.sock?db=0")
        address = Address(unix_path=path, db=given.get("db", 0), **login(parts))
        return OneServer(address, name, timeout)
    (host, port), *more = hosts(shown, parts, 6379)
    if more:
        raise ConfigurationError(
            f"{shown}: several servers are a cluster: redis+cluster://host:port,host:port"
        )
    db = parts.path.strip("/") or "0"
    if not is_number(db):
        raise ConfigurationError(f"{shown}: {db!r} is no database number: redis://host:6379/0")
    ssl = parts.scheme in ("rediss", "valkeys")
    return OneServer(Address(host=host, port=port, db=int(db), ssl=ssl, **login(parts)), name, timeout)


def _cluster(shown: str, parts: SplitResult, given: dict[str, Any], timeout: float) -> Nodes:
    ssl = parts.scheme.startswith("rediss")
    places = hosts(shown, parts, 6379)
    return Cluster(places, f"buffer {parts.scheme}", timeout, ssl=ssl, **login(parts))
