"""Secret keys as options: one or several, the first in use, the others still accepted."""

from __future__ import annotations

from collections.abc import Iterable

from cachewright.errors import ConfigurationError

__all__ = ["bound", "secret_keys"]


def secret_keys(option: str, keys: object, sizes: str, allowed: range) -> tuple[bytes, ...]:
    """Check keys given as ``option`` and return them as a tuple.

    Raises:
        ConfigurationError: none, not bytes, or of a wrong size; the message never shows a key.
    """
    given: tuple[object, ...]
    if isinstance(keys, (bytes, bytearray)):
        given = (bytes(keys),)
    elif isinstance(keys, str) or not isinstance(keys, Iterable):
        given = (keys,)
    else:
        given = tuple(keys)
    if not given:
        raise ConfigurationError(f"{option} needs at least one key of {sizes}")
    checked: list[bytes] = []
    for index, key in enumerate(given):
        if not isinstance(key, bytes):
            raise ConfigurationError(f"{option}[{index}] is {type(key).__name__}, not bytes of {sizes}")
        if len(key) not in allowed:
            raise ConfigurationError(f"{option}[{index}] has {len(key)} bytes; a key has {sizes}")
        checked.append(key)
    return tuple(checked)


def bound(purpose: bytes, context: bytes, *header: int) -> bytes:
    """Return what a signature or AEAD is bound to, beside the data.

    Length before context: else context ``a`` with data ``bc`` and context ``ab`` with data ``c`` are the same bytes.
    """
    return purpose + bytes(header) + len(context).to_bytes(4, "big") + context
