"""Whether what was given by URL can be reached: asked before the first scene, so that a wrong address is one line."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from cachewright import Cache
from cachewright.errors import ConfigurationError, MissingExtraError, TierError

__all__ = ["check_database", "check_servers"]

_SECONDS = 3
_WAY_OUT = "start it, correct the URL, or leave the option out"


def check_servers(given: Mapping[str, str]) -> None:
    """Connects to each server once.

    Raises:
        ConfigurationError: one could not be reached; the message has its URL without credentials, and the way out.
        MissingExtraError: a broker was given, and its client is not installed.
    """
    for need, url in given.items():
        try:
            if need == "broker":
                _connect_broker(url)
            else:
                with closing(Cache(url, namespace="tour")) as cache:
                    cache.connect(attempts=1)
        except (TierError, OSError, ValueError) as error:
            if isinstance(error, ConfigurationError):
                raise
            raise _unreachable(need, url, error) from error


def check_database(url: str | None) -> None:
    """Connects to the database once, where one was given.

    Raises:
        ConfigurationError: it is no PostgreSQL, or could not be reached.
        MissingExtraError: its client is not installed.
    """
    if not url:
        return
    if not url.startswith(("postgres://", "postgresql://")):
        raise ConfigurationError(f"--database {_shown(url)}: expected postgresql://; SQLite needs no option")
    try:
        import psycopg
    except ImportError as error:
        raise MissingExtraError("a PostgreSQL database", "postgres") from error
    try:
        psycopg.connect(url, connect_timeout=_SECONDS).close()
    except psycopg.Error as error:
        raise _unreachable("database", url, error) from error


def _connect_broker(url: str) -> None:
    try:
        from kombu.connection import Connection
    except ImportError as error:
        raise MissingExtraError("a broker", "celery") from error
    make: Any = Connection  # untyped
    connection = make(url, connect_timeout=_SECONDS)
    try:
        with connection:
            connection.connect()
            connection.default_channel  # noqa: B018  # Redis as a broker is reached with its first channel only
    except (*connection.connection_errors, *connection.channel_errors) as error:
        raise ConnectionError(*str(error).splitlines()[:1]) from error


def _unreachable(need: str, url: str, error: Exception) -> ConfigurationError:
    """One line; a client's message may repeat the URL, so what is secret is taken out of it."""
    why = (str(error).splitlines() or [type(error).__name__])[0]
    if (parts := urlsplit(url)).password:
        why = why.replace(parts.password, "…")
    return ConfigurationError(f"--{need} {_shown(url)}: not reached ({why}): {_WAY_OUT}")


def _shown(url: str) -> str:
    head, found, rest = url.partition("://")
    return head + found + rest.partition("?")[0].rpartition("@")[2]
