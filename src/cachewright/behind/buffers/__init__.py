"""Buffers by URL, and where the default one lies."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote

from cachewright.behind.buffers.base import Buffer
from cachewright.errors import ConfigurationError
from cachewright.keys import without_credentials
from cachewright.spelling import did_you_mean

__all__ = ["default_buffer_url", "open_buffer"]

_SYNCHRONOUS = ("full", "normal")
_REDIS = ("redis", "rediss", "valkey", "valkeys", "redis+unix", "redis+cluster", "rediss+cluster")


def default_buffer_url(namespace: str, name: str) -> str:
    """Where a repository's buffer lies when nothing is said.

    ``CACHEWRIGHT_BUFFER`` if it is set (several repositories may share one file), else
    ``$XDG_STATE_HOME/cachewright/<namespace>/<name>.db``.
    """
    given = os.environ.get("CACHEWRIGHT_BUFFER")
    if given:
        return given
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    # quoted: a namespace "../x" or "a/b" must neither leave the folder nor meet another one's file
    path = Path(state) / "cachewright" / _file_name(namespace) / f"{_file_name(name)}.db"
    return f"sqlite:///{quote(str(path))}"


def _file_name(text: str) -> str:
    name = quote(text, safe=" ")
    return name.replace(".", "%2E") if set(name) == {"."} else name


def open_buffer(
    url: str, scope: str, *, max_dirty: int = 100_000, max_dirty_bytes: int = 256 * 1024 * 1024
) -> Buffer:
    """The buffer of that URL; nothing is opened or made before its first use.

    ``sqlite:///relative/path`` or ``sqlite:////absolute/path``, with ``?synchronous=full|normal`` (``full`` by default:
    it survives power loss) and ``?busy=10`` (seconds to wait for another process).

    ``redis://…``, ``rediss://…``, ``valkey://…``, ``valkeys://…``, ``redis+unix://…``, ``redis+cluster://…`` and
    ``rediss+cluster://…`` as for tiers, with ``?durability=wait:N`` (a write counts when N replicas have it; by default
    ``none``), ``wait_timeout=1`` (seconds that these are given), ``timeout=2`` (seconds for every call) and
    ``partitions`` (1; on a cluster 16): a number that stays with the buffer.

    Args:
        url: see above.
        scope: whose records, ``"namespace/repository"``.
        max_dirty: most records of this scope.
        max_dirty_bytes: most bytes of this scope.

    Raises:
        ConfigurationError: a scheme or parameter that is not there.
    """
    shown = without_credentials(url)  # the URL of a server, given here by mistake, may hold a password
    scheme, sep, rest = url.partition("://")
    if sep and scheme in _REDIS:
        from cachewright.behind.buffers.redis_urls import open_redis

        return open_redis(url, scope, max_dirty=max_dirty, max_dirty_bytes=max_dirty_bytes)
    if not sep or scheme != "sqlite":
        raise ConfigurationError(
            f"buffer={shown!r}: expected sqlite:///path (relative), sqlite:////path (absolute), redis://host:6379/0 or "
            f"redis+cluster://host:6379{did_you_mean(scheme, ['sqlite', *_REDIS])}"
        )
    place, _, query = rest.partition("?")
    if not place.startswith("/") or not place.strip("/"):
        raise ConfigurationError(
            f"buffer={shown!r}: sqlite needs three slashes and a path, sqlite:///buffer.db"
        )
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    synchronous = parameters.pop("synchronous", "full").lower()
    if synchronous not in _SYNCHRONOUS:
        raise ConfigurationError(f"buffer={shown!r}: synchronous={synchronous!r}, expected full or normal")
    busy = _number(shown, parameters.pop("busy", "10"))
    for name in parameters:
        hint = did_you_mean(name, ["synchronous", "busy"])
        raise ConfigurationError(f"buffer={shown!r}: there is no parameter {name!r}{hint}")
    from cachewright.behind.buffers.sqlite import SQLiteBuffer

    # a tier's URL is read the same way: what follows the third slash is the path
    path = Path(unquote(place[1:])).expanduser()
    return SQLiteBuffer(
        path.absolute(),
        scope,
        max_dirty=max_dirty,
        max_dirty_bytes=max_dirty_bytes,
        synchronous=synchronous.upper(),
        busy=busy,
    )


def _number(url: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 86_400:
        raise ConfigurationError(f"buffer={url!r}: busy={text!r}, expected seconds")
    return number
