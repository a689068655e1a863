"""AES-256-GCM around whatever a codec wrote.

A payload becomes ``version | key id (4) | nonce (12) | ciphertext and tag``. The tag also covers namespace, key, codec
and flags, so that nothing moves to another key or is read by another codec. The nonce is random: with one key, stay
below 2**32 writes (a key rotated every few weeks does).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import Any, Final

from cachewright.codecs.base import Buffer
from cachewright.codecs.keys import bound, secret_keys
from cachewright.errors import DecodeError, MissingExtraError

__all__ = ["Encryption"]

_VERSION: Final = 1
_ID_BYTES: Final = 4
_NONCE_BYTES: Final = 12
_HEAD: Final = 1 + _ID_BYTES + _NONCE_BYTES
_PURPOSE: Final = b"cachewright aes-256-gcm 1\0"


class Encryption:
    """AES-256-GCM with key rotation.

    Args:
        keys: one key or several, each of 32 bytes (``os.urandom(32)``). The first encrypts, all decrypt.

    Raises:
        ConfigurationError: a key is missing, of another size or not bytes.
        MissingExtraError: ``cryptography`` is not installed.
    """

    def __init__(self, keys: bytes | Iterable[bytes]) -> None:
        checked = secret_keys("encryption_keys", keys, "exactly 32 bytes", range(32, 33))
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise MissingExtraError("encryption", "encryption") from None
        self.__ciphers: dict[bytes, Any] = {}
        for key in checked:
            # The id tells which key to try, and tells nothing about the key itself.
            key_id = hashlib.sha256(_PURPOSE + key).digest()[:_ID_BYTES]
            self.__ciphers.setdefault(key_id, AESGCM(key))
        self.__first = next(iter(self.__ciphers))

    def __repr__(self) -> str:
        return f"Encryption({len(self.__ciphers)} keys)"

    def __reduce__(self) -> Any:
        raise TypeError("an Encryption holds secrets and cannot be pickled")

    def seal(self, data: bytes, context: bytes, codec_id: int, flags: int) -> bytes:
        """Return ``data`` encrypted and bound to its context and header."""
        nonce = os.urandom(_NONCE_BYTES)
        head = bytes((_VERSION,)) + self.__first + nonce
        sealed: bytes = self.__ciphers[self.__first].encrypt(
            nonce, data, bound(_PURPOSE, context, codec_id, flags) + head
        )
        return head + sealed

    def open(self, data: Buffer, context: bytes, codec_id: int, flags: int) -> bytes:
        """Return the plain bytes.

        Raises:
            DecodeError: not written with one of these keys for this context and header, or changed since.
        """
        head, sealed = bytes(data[:_HEAD]), bytes(data[_HEAD:])
        cipher = self.__ciphers.get(head[1 : 1 + _ID_BYTES]) if len(head) == _HEAD else None
        if cipher is None or head[0] != _VERSION:
            raise DecodeError(
                "an encrypted payload is damaged or was written with a key that is not known here"
            )
        try:
            plain: bytes = cipher.decrypt(
                head[1 + _ID_BYTES :], sealed, bound(_PURPOSE, context, codec_id, flags) + head
            )
        except Exception:
            # InvalidTag, or ValueError for what is too short: the reader must not learn which.
            raise DecodeError(
                "an encrypted payload does not authenticate for this key and namespace"
            ) from None
        return plain
