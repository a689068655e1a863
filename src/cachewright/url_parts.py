"""The grammar that URLs of tiers and of buffers share: hosts, ports, credentials, numbers. Errors show no password."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from cachewright.errors import ConfigurationError
from cachewright.keys import without_credentials
from cachewright.spelling import did_you_mean

__all__ = ["check_quoting", "hosts", "is_number", "login", "number", "read_parameters", "split"]


def split(url: str) -> tuple[SplitResult, list[tuple[str, str]]]:
    """The URL's parts and parameters.

    Raises:
        ConfigurationError: it is none.
    """
    try:
        parts = urlsplit(url)
        return parts, parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        # Python's own words quote what stands before the host.
        why = f" ({error})" if "@" not in url else ""
        raise ConfigurationError(f"{without_credentials(url)}: not a URL{why}") from None


def check_quoting(shown: str, parts: SplitResult) -> None:
    """Raises where the password of a URL with hosts ends too early.

    Args:
        shown: the URL without credentials.
        parts: its parts.
    """
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        # Not "…: 'hunter' is no port": what stands before the @ is a part of the password.
        raise ConfigurationError(
            f"{shown}: a password with '/', '?' or '#' must be quoted (urllib.parse.quote(password, safe=''))"
        )


def read_parameters(
    shown: str, scheme: str, query: Collection[tuple[str, str]], known: Mapping[str, type]
) -> dict[str, Any]:
    """Values of the parameters, each known by that name and of that type.

    Raises:
        ConfigurationError: one that is not known (the nearest right one is named), or a value out of range.
    """
    parameters = {}
    for name, text in query:
        if name not in known:
            hint = did_you_mean(name, known)
            written = repr(name) if name.isidentifier() and len(name) <= 40 else "so written"
            raise ConfigurationError(
                f"{shown}: {scheme}:// takes no parameter {written}{hint}; known: {', '.join(known)}"
            )
        parameters[name] = number(shown, name, text, known[name])
    return parameters


def number(shown: str, name: str, text: str, kind: type) -> Any:
    """A parameter's value; raises `ConfigurationError` where it is none above 0 (for ``db``: from 0 on)."""
    if kind is str:
        return text
    try:
        found = kind(text)
    except ValueError:
        found = -1
    if not 0 <= found < 1e12 or (found == 0 and name != "db"):
        what = "a whole number" if kind is int else "seconds"
        # Something long, or with more in it than a number, is the rest of another URL, perhaps with its password.
        value = repr(text) if len(text) <= 20 and not set(text) & set("@:/?#") else "…"
        raise ConfigurationError(f"{shown}: {name}={value}: expected {what} above 0")
    return found


def is_number(text: str) -> bool:
    """Whether ``int`` takes it and it is meant as one."""
    # isdigit alone takes "²", which int refuses; int refuses thousands of digits too.
    return text.isascii() and text.isdigit() and len(text) < 10


def hosts(shown: str, parts: SplitResult, default: int) -> list[tuple[str, int]]:
    """Hosts and ports, ``default`` where none is given; raises `ConfigurationError` where there is no host."""
    netloc = parts.netloc.rpartition("@")[2]
    found = [host for host in netloc.split(",") if host]
    if not found:
        raise ConfigurationError(f"{shown}: names no server: {parts.scheme}://host:{default}")
    return [_port(shown, host, default) for host in found]


def _port(shown: str, host: str, default: int) -> tuple[str, int]:
    name, colon, text = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    if not colon:
        name, text = host, str(default)
    if not is_number(text) or not 0 < int(text) < 65536:
        # Not shown: where "@host" was forgotten, it is the password.
        raise ConfigurationError(f"{shown}: what stands after {name + ':'!r} is no port (1 to 65535)")
    return name.strip("[]") or "localhost", int(text)


def login(parts: SplitResult) -> dict[str, Any]:
    """User and password, unquoted."""
    user, password = parts.username, parts.password
    return {"username": unquote(user) if user else None, "password": unquote(password) if password else None}
