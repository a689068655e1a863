"""Pickle, only ever signed.

Whoever can write to an unsigned pickle cache runs code in every reader. Here a payload is ``HMAC-SHA256 | pickle``;
the signature covers codec, namespace and key, the algorithm is fixed (an algorithm named by the payload lets a
forger pick the weakest), and nothing is unpickled before the signature has been compared in constant time. Whoever
holds a signing key can run code in all readers: treat it like a deploy key.
"""

from __future__ import annotations

import hmac
import pickle
from collections.abc import Iterable
from typing import Any, Final

from cachewright.codecs.base import ID_PICKLE, Buffer, type_name
from cachewright.codecs.keys import bound, secret_keys
from cachewright.errors import DecodeError, EncodeError

__all__ = ["SignedPickleCodec"]

_MAC_BYTES: Final = 32
_PURPOSE: Final = b"cachewright signed pickle 1\0"
_PROTOCOL: Final = 5


class SignedPickleCodec:
    """Any picklable value, signed and bound to its namespace and key.

    Args:
        keys: one key or several, each of at least 16 bytes. The first signs, all verify: to rotate, put the new
            key in front everywhere, and drop the old one when what it signed has expired.

    Raises:
        ConfigurationError: a key is missing, too short or not bytes.
    """

    id: Final = ID_PICKLE
    name: Final = "pickle"

    def __init__(self, keys: bytes | Iterable[bytes]) -> None:
        self.__keys = secret_keys("pickle_keys", keys, "at least 16 bytes", range(16, 1 << 16))

    def __repr__(self) -> str:
        return f"SignedPickleCodec({len(self.__keys)} keys)"

    def __reduce__(self) -> Any:
        raise TypeError("a SignedPickleCodec holds secrets and cannot be pickled")

    @staticmethod
    def _mac(key: bytes, context: bytes, body: Buffer) -> bytes:
        mac = hmac.new(key, bound(_PURPOSE, context, ID_PICKLE), "sha256")
        mac.update(body)
        return mac.digest()

    def encode(self, value: object, context: bytes, type_: Any | None = None) -> bytes:
        """See :class:`~cachewright.codecs.base.Codec`."""
        try:
            body = pickle.dumps(value, protocol=_PROTOCOL)
        except Exception as error:
            # A class's own __reduce__ may raise anything. Its text may quote the value.
            raise EncodeError(
                f"{type_name(type(value))} cannot be pickled ({type(error).__name__}); convert it first"
            ) from None
        return self._mac(self.__keys[0], context, body) + body

    def decode(self, data: Buffer, context: bytes, type_: Any | None = None) -> object:
        """See :class:`~cachewright.codecs.base.Codec`."""
        view = memoryview(data)
        given, body = bytes(view[:_MAC_BYTES]), view[_MAC_BYTES:]
        if not any(hmac.compare_digest(given, self._mac(key, context, body)) for key in self.__keys):
            raise DecodeError(
                "a pickled payload has no valid signature for this key and namespace; not unpickled"
            )
        try:
            value: object = pickle.loads(body)  # noqa: S301 - verified above
        except Exception as error:
            # Signed, but by code that has changed since: classes moved or gone raise anything.
            raise DecodeError(f"a signed pickle cannot be loaded ({type(error).__name__})") from None
        if isinstance(type_, type) and not hasattr(type_, "__origin__") and not _fits(value, type_):
            raise DecodeError(f"a pickled {type_name(type(value))} is not the wanted {type_name(type_)}")
        return value


def _fits(value: object, type_: type) -> bool:
    try:
        return isinstance(value, type_)
    except TypeError:  # a TypedDict or Protocol: no instance test exists
        return True
