"""Keys as tiers see them: what a public key may be, and how it stands in a store.

A public key is whatever ``str`` the user chose. A *physical* key is what a tier stores:
``<namespace>:<kind>:<key>``. The kind keeps the user's keys apart from the cache's own, and since a
namespace holds no ``:``, no two namespaces can meet either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from cachewright.errors import ConfigurationError, InvalidKeyError

__all__ = [
    "KEY_LIMIT",
    "TAG_LIMIT",
    "Kind",
    "check_key",
    "check_keys",
    "check_namespace",
    "check_tag",
    "memcached_key",
    "physical_key",
    "shorten",
    "without_credentials",
]

KEY_LIMIT = 65_536
"""Bytes of UTF-8 that a public key may have."""

TAG_LIMIT = 1_024
"""Bytes of UTF-8 that a tag may have."""

MEMCACHED_LIMIT = 250
"""Bytes that Memcached allows a key to have."""

Kind = Literal["k", "t"]
"""``k``: the slot of a user's key. ``t``: a tag's generation. (``h`` is kept for hashed keys.)"""

# Memcached's text protocol ends a key at a space and a command at CR LF, so neither may be in a key;
# bytes above 0x7e are left out because clients disagree on them.
_MEMCACHED_PLAIN = re.compile(rf"[\x21-\x7e]{{1,{MEMCACHED_LIMIT}}}").fullmatch
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}").fullmatch
_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,64}").fullmatch


def shorten(value: object, width: int = 60) -> str:
    """Describe ``value`` for an error message: its ``repr`` where that is short and safe, else its type."""
    if isinstance(value, str):
        text = str.__str__(value)
        return repr(text) if len(text) <= width else f"{text[:width]!r}… ({len(text):,} characters)"
    if isinstance(value, (bytes, bytearray)):
        return repr(bytes(value[:width])) + ("…" if len(value) > width else "")
    # Above this the repr of an int may raise (sys.set_int_max_str_digits).
    if value is None or type(value) in (bool, float) or (type(value) is int and value.bit_length() < 200):
        return repr(value)
    return f"<{type(value).__qualname__}>"


def without_credentials(url: str) -> str:
    """Return a URL, or what was meant as one, without user, password, query and fragment, for messages.

    A password may hold anything where its owner forgot to quote it, also what would end it: everything up to the
    last ``@`` goes, wherever that stands. Where the ``@host`` was forgotten, it stands in the port's place.
    """
    before, at, after = url.rpartition("@")
    scheme, found, rest = (before if at else url).partition("://")
    if found and not _SCHEME(scheme):
        found, rest = "", url
    rest = after if at else rest if found else url
    for mark in "?#":
        rest = rest.partition(mark)[0]
    if found:
        hosts, slash, path = rest.partition("/")
        rest = ",".join(map(_with_port, hosts.split(","))) + slash + path
    shown = f"{scheme}://{rest}" if found else rest
    return shown if len(shown) <= 200 else f"{shown[:200]}…"


def _with_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return f"{name}:…" if colon and not port.isdigit() and not host.endswith("]") else host


def check_key(key: object, *, limit: int = KEY_LIMIT) -> str:
    """Return ``key`` as a plain ``str`` if every tier could hold it.

    Args:
        key: anything; only a non-empty ``str`` that UTF-8 can encode is accepted.
        limit: the most bytes of UTF-8 that it may have.

    Raises:
        InvalidKeyError: it is not; the message says which rule it breaks and what to do.
    """
    # On the way of every call: one branch for the ordinary case, where characters are bytes.
    if type(key) is str and key and key[0] != "\0" and key.isascii() and len(key) <= limit:
        return key
    return _check_text(key, "key", limit)


def check_keys(keys: Iterable[object]) -> list[str]:
    """Return several keys, each checked and once.

    Raises:
        InvalidKeyError: one of them cannot be a key, or a single ``str`` was given where several are expected.
    """
    if isinstance(keys, str | bytes):
        raise InvalidKeyError(f"{shorten(keys)}: expected several keys; put a single one in a list")
    return list(dict.fromkeys(check_key(key) for key in keys))


def check_tag(tag: object) -> str:
    """Return ``tag`` if it is a non-empty ``str`` of at most 1 KiB of UTF-8.

    Raises:
        InvalidKeyError: it is not.
    """
    if type(tag) is str and tag and tag[0] != "\0" and tag.isascii() and len(tag) <= TAG_LIMIT:
        return tag
    if isinstance(tag, (list, tuple, set, frozenset)):
        raise InvalidKeyError(
            f"a {type(tag).__name__} where one tag is expected: pass them one by one, as in invalidate_tags(*tags)"
        )
    return _check_text(tag, "tag", TAG_LIMIT)


def _check_text(text: object, what: str, limit: int) -> str:
    if not isinstance(text, str):
        raise InvalidKeyError(
            f"{what} {shorten(text)} is of type {type(text).__qualname__}: a {what} must be a str; "
            f'write it out, such as f"user:{{user_id}}"'
        )
    # A subclass may print itself differently (a str Enum does, and not alike in all Python versions);
    # its characters are what counts.
    plain = str.__str__(text)
    if not plain:
        raise InvalidKeyError(f"{what} '' is empty: a {what} must have at least one character")
    if plain[0] == "\0":
        raise InvalidKeyError(
            f"{what} {shorten(plain)} begins with NUL: those are the cache's own; put a word before it"
        )
    try:
        size = len(plain.encode())
    except UnicodeEncodeError as error:
        raise InvalidKeyError(
            f"{what} {shorten(plain)} cannot be encoded as UTF-8 (a lone surrogate at position {error.start}): "
            "decode the bytes it came from properly, or use their .hex()"
        ) from None
    if size > limit:
        raise InvalidKeyError(
            f"{what} {shorten(plain)} has {size:,} bytes, and the limit is {limit:,}: "
            f"use a shorter name, or the hexdigest of a hash of the long part"
        )
    return plain


def check_namespace(namespace: object) -> str:
    """Return ``namespace`` if it is 1 to 64 of the ASCII letters, digits, ``_``, ``.`` and ``-``.

    Raises:
        ConfigurationError: it is not.
    """
    if isinstance(namespace, str) and _NAMESPACE(namespace):
        return str.__str__(namespace)
    reason = ""
    if isinstance(namespace, str) and ":" in namespace:
        # Namespace "a" with key "k:x" and namespace "a:k" with key "x" must not be one key.
        reason = "; a ':' would let two namespaces meet in one key, so write '.' instead"
    raise ConfigurationError(
        f"namespace {shorten(namespace)}: it must be a str of 1 to 64 ASCII letters, digits, '_', '.' or '-'{reason}"
    )


def physical_key(namespace: str, kind: Kind, key: str) -> str:
    """Return the key under which a tier stores ``key``; the parts are taken as already checked."""
    return f"{namespace}:{kind}:{key}"


def memcached_key(physical: str) -> bytes:
    """Return a physical key in a form that Memcached takes.

    A key that fits stays as it is. Any other becomes ``<namespace>:h:<kind><SHA-256 in hex>``, which no
    plain key can be: a plain key's kind is never ``h``.
    """
    if _MEMCACHED_PLAIN(physical):
        return physical.encode("ascii")
    namespace, kind, _ = physical.split(":", 2)
    import hashlib  # few keys are that long

    return f"{namespace}:h:{kind}{hashlib.sha256(physical.encode()).hexdigest()}".encode("ascii")
