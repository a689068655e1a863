"""Compression, signatures, encryption and the pipeline, under hostile input."""

from __future__ import annotations

import hashlib
import hmac
import os
import pickle
import sys
import tracemalloc
import zlib
from typing import Any

import lz4.frame
import pytest
import zstandard

from cachewright import Cache
from cachewright.codecs.base import ID_JSON, ID_MSGPACK, ID_PICKLE, make_context
from cachewright.codecs.compress import COMPRESSORS, decompress, output_limit
from cachewright.codecs.encrypt import Encryption
from cachewright.codecs.pipeline import Pipeline, make_pipeline
from cachewright.codecs.signed import SignedPickleCodec
from cachewright.errors import ConfigurationError, DecodeError, EncodeError, MissingExtraError

CTX = make_context("shop", "user:1")
OTHERS = [
    make_context("shop", "user:2"),
    make_context("blog", "user:1"),
    make_context("", "shop"),
    b"",
    CTX + b"\0",
]
LIMIT = 4 << 20
names = pytest.mark.parametrize("name", list(COMPRESSORS))


def flips(data: bytes) -> Any:
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


# --- compression --------------------------------------------------------------------------------------------


@names
@pytest.mark.parametrize("size", [0, 1, 4096, 300_000, LIMIT])
def test_compressed_bytes_come_back(name: str, size: int) -> None:
    one = COMPRESSORS[name]
    for data in (os.urandom(size), b"".join(b"customer %d " % i for i in range(size // 9))[:size]):
        packed = one.compress(data)
        assert decompress(one.number, packed, LIMIT) == data
        assert decompress(one.number, memoryview(packed), LIMIT) == data


@names
def test_only_what_gets_smaller_and_is_large_enough_is_compressed(name: str) -> None:
    pipe = make_pipeline(compression=name, compression_threshold=1000)
    number = COMPRESSORS[name].number
    for value, flags in (("x" * 900, 0), ("ab" * 1000, number), (os.urandom(5000), 0), (bytes(20 << 20), 0)):
        codec_id, found, payload = pipe.encode(value, CTX)
        # Twenty megabytes of zeros shrink beyond the ratio that readers accept from zstd: stored as they are.
        if not (len(value) > LIMIT and name != "zstd"):
            assert found == flags
        assert pipe.decode(codec_id, found, payload, CTX) == value
        assert Pipeline(pipe.codec).decode(codec_id, found, payload, CTX) == value


def bomb(name: str, size: int) -> bytes:
    if name == "zlib":
        return zlib.compress(bytes(size), 9)
    if name == "lz4":
        return bytes(lz4.frame.compress(bytes(size)))
    return zstandard.ZstdCompressor(level=19).compress(bytes(size))


def unsized_bomb(size: int) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(bytes(size))


def lying_bomb(size: int) -> bytes:
    """A zstd frame whose header claims 1 MiB."""
    honest = zstandard.ZstdCompressor(write_content_size=True, write_checksum=False).compress(bytes(size))
    return honest.replace(size.to_bytes(4, "little"), (1 << 20).to_bytes(4, "little"), 1)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        *((name, bomb(name, 100 << 20)) for name in COMPRESSORS),
        ("zstd", unsized_bomb(100 << 20)),
        ("zstd", lying_bomb(100 << 20)),
    ],
    ids=["zstd", "lz4", "zlib", "zstd-unsized", "zstd-lying"],
)
def test_a_bomb_never_allocates_beyond_the_limit(name: str, data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            decompress(COMPRESSORS[name].number, data, LIMIT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < LIMIT + (2 << 20)


@pytest.mark.parametrize("name", ["zstd", "zlib"])  # lz4 ends at 1:255
def test_a_ratio_beyond_the_bound_is_refused_below_the_size_limit(name: str) -> None:
    data = bomb(name, 50 << 20)
    assert output_limit(len(data), 1 << 30) < 50 << 20
    with pytest.raises(DecodeError, match="more than is allowed"):
        decompress(COMPRESSORS[name].number, data, 1 << 30)


@names
def test_cut_flipped_and_extended_compressed_bytes(name: str) -> None:
    one = COMPRESSORS[name]
    plain = b"".join(b"user %d, " % i for i in range(40))
    data = one.compress(plain)
    for end in range(len(data)):
        with pytest.raises(DecodeError):
            decompress(one.number, data[:end], LIMIT)
    for changed in flips(data):
        try:
            assert len(decompress(one.number, changed, LIMIT)) <= LIMIT
        except DecodeError:
            pass
    for tail in (b"x", data):
        with pytest.raises(DecodeError):
            decompress(one.number, data + tail, LIMIT)


# --- signed pickle ------------------------------------------------------------------------------------------

KEY, NEW = b"k" * 16, b"n" * 32


class Boom:
    """Unpickling this is the attack."""

    def __reduce__(self) -> Any:
        return explode, ()


exploded: list[int] = []


def explode() -> None:
    exploded.append(1)


class Custom:
    def __init__(self, x: int) -> None:
        self.x = x


def test_signed_pickle_takes_any_value() -> None:
    codec = SignedPickleCodec(KEY)
    read = codec.decode(codec.encode(Custom(3), CTX), CTX, Custom)
    assert isinstance(read, Custom)
    assert read.x == 3
    with pytest.raises(DecodeError, match="Custom is not the wanted int"):
        codec.decode(codec.encode(Custom(3), CTX), CTX, int)
    with pytest.raises(EncodeError, match="function"):
        codec.encode(lambda: 1, CTX)


def test_keys_rotate() -> None:
    old, both, new = SignedPickleCodec(KEY), SignedPickleCodec([NEW, KEY]), SignedPickleCodec([NEW])
    assert both.decode(old.encode(1, CTX), CTX) == 1
    assert new.decode(both.encode(1, CTX), CTX) == 1
    for reader, writer in ((old, new), (new, old)):
        with pytest.raises(DecodeError, match="signature"):
            reader.decode(writer.encode(1, CTX), CTX)


def test_nothing_without_a_valid_signature_is_unpickled() -> None:
    codec = SignedPickleCodec(KEY)
    exploded.clear()
    body = pickle.dumps(Boom())
    signed = codec.encode(Boom(), CTX)
    forged = [
        body, bytes(32) + body, signed[:32], signed[32:], signed[1:], signed[:31] + signed[32:], b"",
        hmac.new(KEY, body, "sha256").digest() + body,  # signed, but bound to nothing
        hmac.new(b"", body, "sha256").digest() + body,
        hmac.new(KEY, body, "sha1").digest() + body,
        hashlib.sha256(body).digest() + body,
        SignedPickleCodec(b"another key 1234").encode(Boom(), CTX),
        *(signed[:end] for end in range(len(signed))),
        *flips(signed),
        signed + b"\0",
    ]  # fmt: skip
    for data in forged:
        with pytest.raises(DecodeError, match="not unpickled"):
            codec.decode(data, CTX)
    for context in OTHERS:
        with pytest.raises(DecodeError, match="not unpickled"):
            codec.decode(signed, context)
    # The boundary between context and body does not slide.
    with pytest.raises(DecodeError, match="not unpickled"):
        codec.decode(signed[:32] + CTX[-1:] + signed[32:], CTX[:-1])
    assert exploded == []
    codec.decode(signed, CTX)
    assert exploded == [1]


@pytest.mark.parametrize("keys", [b"", b"short", [], [KEY, b"short"], "k" * 16, [b"k" * 16, "text"], 7, None])
def test_bad_signing_keys(keys: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        SignedPickleCodec(keys)
    assert "short" not in str(caught.value)
    assert "kkk" not in str(caught.value)


def test_secrets_never_show() -> None:
    secret = b"very secret key of 32 bytes long"
    for thing in (
        SignedPickleCodec(secret),
        Encryption(secret),
        make_pipeline("pickle", None, secret, secret),
        make_pipeline("pickle", None, secret, secret).codec,
    ):
        assert "secret" not in repr(thing) + str(thing)
    for holder in (SignedPickleCodec(secret), Encryption(secret)):
        with pytest.raises(TypeError):
            pickle.dumps(holder)


# --- encryption ---------------------------------------------------------------------------------------------

AES, AES2 = b"a" * 32, b"b" * 32


@pytest.mark.parametrize("codec", ["msgpack", "json", "pickle"])
@pytest.mark.parametrize("compression", [None, "zstd", "lz4", "zlib"])
def test_encrypted_values_come_back_and_show_nothing(codec: str, compression: str | None) -> None:
    pipe = make_pipeline(
        codec, compression, AES, KEY if codec == "pickle" else None, compression_threshold=100
    )
    value = {"name": "Ada Lovelace" * 20, "n": (1, 2)}
    codec_id, flags, payload = pipe.encode(value, CTX)
    assert b"Ada" not in payload
    assert flags & 0x10
    assert bool(flags & 0x0F) == (compression is not None)
    assert pipe.decode(codec_id, flags, memoryview(payload), CTX) == value
    assert pipe.encode(value, CTX)[2] != payload  # a fresh nonce
    for context in OTHERS:
        with pytest.raises(DecodeError):
            pipe.decode(codec_id, flags, payload, context)


def test_changed_encrypted_payloads_and_headers_are_refused() -> None:
    pipe = make_pipeline(encryption=AES, compression="zlib", compression_threshold=1)
    codec_id, flags, payload = pipe.encode("x" * 50, CTX)
    for data in (*flips(payload), *(payload[:end] for end in range(len(payload))), payload + b"x"):
        with pytest.raises(DecodeError):
            pipe.decode(codec_id, flags, data, CTX)
    for other_id, other_flags in (
        (ID_JSON, flags),
        (codec_id, 0x10),
        (codec_id, 0x11),
        (codec_id, 3),
        (codec_id, 0),
    ):
        with pytest.raises(DecodeError):
            pipe.decode(other_id, other_flags, payload, CTX)


def test_encryption_keys_rotate_and_cannot_be_stripped() -> None:
    old, both, new, none = (make_pipeline(encryption=k) for k in (AES, [AES2, AES], AES2, None))
    assert both.decode(*old.encode(1, CTX), CTX) == 1
    assert new.decode(*both.encode(1, CTX), CTX) == 1
    for reader, writer in ((old, new), (new, old), (none, old), (old, none)):
        with pytest.raises(DecodeError):
            reader.decode(*writer.encode(1, CTX), CTX)


@pytest.mark.parametrize("key", [b"", b"a" * 16, b"a" * 31, b"a" * 33, "a" * 32, [], 5])
def test_bad_encryption_keys(key: Any) -> None:
    with pytest.raises(ConfigurationError, match="32 bytes"):
        make_pipeline(encryption=key)


def test_a_bad_key_is_named_by_the_option_that_it_was_given_to() -> None:
    with pytest.raises(ConfigurationError, match=r"^encryption_keys\[1\] is str"):
        Cache(encryption_keys=[b"a" * 32, "abc"])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match=r"^pickle_keys\[0\] is str"):
        Cache(codec="pickle", pickle_keys=["abc"])  # type: ignore[list-item]


# --- the pipeline -------------------------------------------------------------------------------------------


def test_a_payload_of_a_codec_that_is_not_configured_is_never_decoded() -> None:
    exploded.clear()
    planted = pickle.dumps(Boom())
    signed = SignedPickleCodec(KEY).encode(Boom(), CTX)
    pipe = make_pipeline()
    for codec_id in (*range(256), -1, 256):
        if codec_id in (ID_MSGPACK, ID_JSON):
            continue
        for data in (planted, signed, b"\x01", b""):
            with pytest.raises(DecodeError, match="not read here"):
                pipe.decode(codec_id, 0, data, CTX)
    for codec_id in (ID_MSGPACK, ID_JSON):
        with pytest.raises(DecodeError):
            pipe.decode(codec_id, 0, planted, CTX)
    with pytest.raises(DecodeError):
        make_pipeline("pickle", pickle_keys=KEY).decode(ID_PICKLE, 0, planted, CTX)
    assert exploded == []


def test_every_flags_byte_is_a_value_or_a_decode_error() -> None:
    pipe = make_pipeline(compression="zstd", compression_threshold=1)
    codec_id, flags, payload = pipe.encode("x" * 500, CTX)
    assert flags == 1
    for wrong in range(256):
        if wrong != flags:
            with pytest.raises(DecodeError):
                pipe.decode(codec_id, wrong, payload, CTX)


def test_caches_of_either_safe_codec_read_each_other() -> None:
    value = {"a": (1, 2), "b": {3}}
    one, two = make_pipeline("json"), make_pipeline("msgpack")
    assert one.decode(*two.encode(value, CTX), CTX) == value
    assert two.decode(*one.encode(value, CTX), CTX) == value


def test_sizes_are_bounded_both_ways() -> None:
    pipe = make_pipeline(max_value_bytes=1000, compression="zlib", compression_threshold=10)
    assert pipe.decode(*pipe.encode("x" * 990, CTX), CTX) == "x" * 990
    with pytest.raises(EncodeError, match="max_value_bytes=1000"):
        pipe.encode("x" * 1001, CTX)
    wide = make_pipeline(compression="zlib", compression_threshold=10)
    for written in (make_pipeline().encode("x" * 1001, CTX), wide.encode("x" * 5000, CTX)):
        with pytest.raises(DecodeError):
            pipe.decode(*written, CTX)
    sealed = make_pipeline(max_value_bytes=100, encryption=AES)
    assert sealed.decode(*sealed.encode(b"x" * 98, CTX), CTX) == b"x" * 98


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "msgpak"}, "did you mean 'msgpack'"),
        ({"codec": "JSON"}, "did you mean 'json'"),
        ({"codec": "pickle"}, "pickle_keys"),
        ({"codec": "json", "pickle_keys": KEY}, "not 'pickle'"),
        ({"codec": object()}, "neither a name nor a Codec"),
        ({"compression": "zst"}, "did you mean 'zstd'"),
        ({"compression": "gzip"}, "none of"),
        ({"max_value_bytes": 0}, "max_value_bytes=0"),
        ({"compression_threshold": "4k"}, "compression_threshold='4k'"),
    ],
)
def test_wrong_options_name_the_way_out(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_pipeline(**options)


class Reverse:
    id = 200
    name = "reverse"

    def encode(self, value: object, context: bytes, type_: Any | None = None) -> bytes:
        return str(value).encode()[::-1]

    def decode(self, data: bytes | memoryview, context: bytes, type_: Any | None = None) -> object:
        return bytes(data)[::-1].decode()


def test_a_codec_of_the_users() -> None:
    pipe = make_pipeline(Reverse())
    assert pipe.encode("abc", CTX) == (200, 0, b"cba")
    assert pipe.decode(200, 0, b"cba", CTX) == "abc"
    with pytest.raises(DecodeError, match="reverse could not decode"):
        pipe.decode(200, 0, b"\xff", CTX)
    with pytest.raises(EncodeError, match="UnicodeEncodeError"):
        pipe.encode("\ud800", CTX)
    for wrong in (ID_PICKLE, 0, 127, 256):
        own = Reverse()
        own.id = wrong
        with pytest.raises(ConfigurationError, match="128 to 255"):
            make_pipeline(own)


@pytest.mark.parametrize(
    ("module", "options", "extra"),
    [
        ("zstandard", {"compression": "zstd"}, "compression"),
        ("lz4.frame", {"compression": "lz4"}, "compression"),
        ("cryptography.hazmat.primitives.ciphers.aead", {"encryption": AES}, "encryption"),
    ],
)
def test_a_missing_extra_names_its_install_line(
    monkeypatch: pytest.MonkeyPatch, module: str, options: dict[str, Any], extra: str
) -> None:
    written = make_pipeline(**options, compression_threshold=1).encode("x" * 100, CTX)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf'pip install "cachewright\[{extra}\]"'):
        make_pipeline(**options)
    with pytest.raises(DecodeError):
        make_pipeline().decode(*written, CTX)
