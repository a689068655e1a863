"""The way of a value into a slot's payload and back: codec, then compression, then encryption.

The flags byte beside the codec's id: bits 0 to 3 the compression (0 none, 1 zstd, 2 lz4, 3 zlib), bit 4 encrypted,
the others zero. They come from the store like the payload, so they choose only among what this cache allows:
MessagePack and JSON are safe to read for all, any other codec only where it is the configured one, and a cache that
encrypts reads nothing that is not encrypted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from cachewright.codecs.base import FIRST_USER_ID, Buffer, Codec, type_name
from cachewright.codecs.compress import Compressor, compressor, decompress, output_limit
from cachewright.codecs.json import JsonCodec
from cachewright.codecs.msgpack import MsgpackCodec
from cachewright.errors import CodecError, ConfigurationError, DecodeError, EncodeError
from cachewright.spelling import did_you_mean

if TYPE_CHECKING:
    from cachewright.codecs.encrypt import Encryption

__all__ = ["MAX_VALUE_BYTES", "Pipeline", "make_pipeline"]

MAX_VALUE_BYTES: Final = 64 << 20
COMPRESSION_THRESHOLD: Final = 4096
_COMPRESSION: Final = 0x0F
_ENCRYPTED: Final = 0x10

_SAFE: Final[tuple[Codec, ...]] = (MsgpackCodec(), JsonCodec())
_NAMES: Final = ("msgpack", "json", "pickle")


class Pipeline:
    """Encodes with one codec; decodes what that codec, MessagePack or JSON wrote. Thread-safe.

    Args:
        codec: writes the values.
        compression: compresses payloads of at least ``threshold`` bytes where that makes them smaller.
        encryption: encrypts every payload; unencrypted ones are refused.
        max_value_bytes: the greatest payload, before and after compression.
        threshold: bytes from which compression is tried.
    """

    def __init__(
        self,
        codec: Codec,
        compression: Compressor | None = None,
        encryption: Encryption | None = None,
        max_value_bytes: int = MAX_VALUE_BYTES,
        threshold: int = COMPRESSION_THRESHOLD,
    ) -> None:
        self.codec = codec
        self.max_value_bytes = max_value_bytes
        self._compression = compression
        self._encryption = encryption
        self._threshold = threshold
        self._readers: dict[int, Codec] = {one.id: one for one in (*_SAFE, codec)}

    def __repr__(self) -> str:
        parts = [self.codec.name]
        if self._compression is not None:
            parts.append(self._compression.name)
        if self._encryption is not None:
            parts.append(repr(self._encryption))
        return f"Pipeline({' > '.join(parts)})"

    def encode(self, value: object, context: bytes, type_: Any | None = None) -> tuple[int, int, bytes]:
        """Return codec id, flags and payload for a value.

        Raises:
            EncodeError: the value cannot come back as it is (or as ``type_``), or is too large.
        """
        codec = self.codec
        try:
            payload = codec.encode(value, context, type_)
        except CodecError:
            raise
        except Exception as error:
            # A user's own codec, or a value whose methods raise; the value must not end up in the message.
            raise EncodeError(
                f"{type_name(type(value))} cannot be encoded by {codec.name} ({type(error).__name__})"
            ) from None
        if len(payload) > self.max_value_bytes:
            raise EncodeError(
                f"a {type_name(type(value))} of {len(payload)} bytes encoded is over max_value_bytes="
                f"{self.max_value_bytes}; store less, or raise the limit"
            )
        flags = 0
        if self._compression is not None and len(payload) >= self._threshold:
            smaller = self._compression.compress(payload)
            if len(smaller) < len(payload) <= output_limit(len(smaller), self.max_value_bytes):
                payload, flags = smaller, self._compression.number
        if self._encryption is not None:
            flags |= _ENCRYPTED
            payload = self._encryption.seal(payload, context, codec.id, flags)
        return codec.id, flags, payload

    def decode(
        self, codec_id: int, flags: int, payload: Buffer, context: bytes, type_: Any | None = None
    ) -> object:
        """Return the value that a slot's payload holds.

        Raises:
            DecodeError: damaged, forged, too large, not of ``type_``, or of a codec that this cache does not read.
        """
        codec = self._readers.get(codec_id)
        if codec is None:
            raise DecodeError(f"a payload of codec {codec_id} is not read here (codec={self.codec.name!r})")
        if flags or self._encryption is not None or len(payload) > self.max_value_bytes:
            payload = self._unwrap(codec_id, flags, payload, context)
        try:
            return codec.decode(payload, context, type_)
        except DecodeError:
            raise
        except Exception as error:
            # A user's own codec need not know our errors.
            raise DecodeError(f"{codec.name} could not decode a payload ({type(error).__name__})") from None

    def _unwrap(self, codec_id: int, flags: int, payload: Buffer, context: bytes) -> Buffer:
        # Tag, nonce and head come on top of a value of just the greatest size.
        if len(payload) > self.max_value_bytes + (64 if flags & _ENCRYPTED else 0):
            raise DecodeError(
                f"a payload of {len(payload)} bytes is over max_value_bytes={self.max_value_bytes}"
            )
        if flags & ~(_COMPRESSION | _ENCRYPTED):
            raise DecodeError(f"a payload has flags that are not known here ({flags:#04x})")
        if bool(flags & _ENCRYPTED) != (self._encryption is not None):
            raise DecodeError(
                "an encrypted payload, and no encryption keys are configured"
                if self._encryption is None
                else "a payload that is not encrypted is refused where encryption is configured"
            )
        if self._encryption is not None:
            payload = self._encryption.open(payload, context, codec_id, flags)
        if flags & _COMPRESSION:
            payload = decompress(flags & _COMPRESSION, payload, self.max_value_bytes)
        return payload


# pickle, hmac and hashlib cost milliseconds at start: signing and encryption are imported where they are asked for.


def _codec(codec: str | Codec, pickle_keys: bytes | Iterable[bytes] | None) -> Codec:
    if codec == "pickle":
        if pickle_keys is None:
            raise ConfigurationError("codec='pickle' needs pickle_keys=: pickle is only ever stored signed")
        from cachewright.codecs.signed import SignedPickleCodec

        return SignedPickleCodec(pickle_keys)
    if pickle_keys is not None:
        raise ConfigurationError("pickle_keys= is given, but codec= is not 'pickle'")
    if isinstance(codec, str):
        for one in _SAFE:
            if one.name == codec:
                return one
        known = ", ".join(map(repr, _NAMES))
        raise ConfigurationError(f"codec={codec!r} is none of {known}{did_you_mean(codec, _NAMES)}")
    if isinstance(codec, (MsgpackCodec, JsonCodec)):
        return codec
    from cachewright.codecs.signed import SignedPickleCodec

    if isinstance(codec, SignedPickleCodec):
        return codec
    if not isinstance(codec, Codec):
        raise ConfigurationError(
            f"codec= is a {type_name(type(codec))}: neither a name nor a Codec (id, name, encode, decode)"
        )
    if codec.id not in range(FIRST_USER_ID, 256):
        raise ConfigurationError(
            f"a codec of your own has an id from {FIRST_USER_ID} to 255, not {codec.id!r}"
        )
    return codec


def _encryption(given: Encryption | bytes | Iterable[bytes] | None) -> Encryption | None:
    if given is None:
        return None
    from cachewright.codecs.encrypt import Encryption

    return given if isinstance(given, Encryption) else Encryption(given)


def make_pipeline(
    codec: str | Codec = "msgpack",
    compression: str | None = None,
    encryption: Encryption | bytes | Iterable[bytes] | None = None,
    pickle_keys: bytes | Iterable[bytes] | None = None,
    *,
    max_value_bytes: int = MAX_VALUE_BYTES,
    compression_threshold: int = COMPRESSION_THRESHOLD,
) -> Pipeline:
    """Build a pipeline from options as users write them.

    Args:
        codec: ``"msgpack"``, ``"json"``, ``"pickle"`` (with ``pickle_keys``) or a codec of the user's.
        compression: ``"zstd"``, ``"lz4"`` or ``"zlib"``.
        encryption: one or several AES keys of 32 bytes; the first encrypts, all decrypt.
        pickle_keys: one or several keys of at least 16 bytes; the first signs, all verify.
        max_value_bytes: the greatest payload in bytes.
        compression_threshold: bytes from which payloads are compressed.

    Raises:
        ConfigurationError: an option that cannot work; MissingExtraError where its package is missing.
    """
    sizes: tuple[tuple[str, object], ...] = (
        ("max_value_bytes", max_value_bytes),
        ("compression_threshold", compression_threshold),
    )
    for name, number in sizes:
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ConfigurationError(f"{name}={number!r} is not a positive number of bytes")
    return Pipeline(
        _codec(codec, pickle_keys),
        compressor(compression) if compression is not None else None,
        _encryption(encryption),
        max_value_bytes,
        compression_threshold,
    )
