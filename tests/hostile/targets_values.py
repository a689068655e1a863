"""What the fuzzer drives, first part: headers, codecs, compressors, signatures, encryption, keys, URLs, environment."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from cachewright.codecs.base import make_context
from cachewright.codecs.compress import COMPRESSORS, decompress
from cachewright.codecs.pipeline import make_pipeline
from cachewright.core import slot as transitions
from cachewright.core.slot import NEVER, Intent, Lease, Slot, StoredEntry, life_of, parse
from cachewright.environment import read_environment
from cachewright.errors import ConfigurationError, DecodeError, InvalidKeyError
from cachewright.key_template import build_key_maker
from cachewright.keys import check_key, check_tag, memcached_key, physical_key
from cachewright.runtime.threads import SYSTEM_CLOCK
from cachewright.urls import make_tier

__all__ = ["SECRET", "TARGETS", "Target", "header_samples"]


def _mutate() -> ModuleType:
    name = "cachewright_hostile_mutate"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("mutate.py"))
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


mutated: Callable[[list[bytes], Random], bytes] = _mutate().mutated
mutated_text: Callable[[list[str], Random], str] = _mutate().mutated_text


class Target(NamedTuple):
    """One reader of hostile bytes."""

    make: Callable[[Random], bytes]
    run: Callable[[bytes], str]
    documented: tuple[type[Exception], ...] = ()
    weight: int = 1


def _refuse(condition: object, why: str) -> None:
    if not condition:
        raise AssertionError(why)


# ----------------------------------------------------------------------------------------------------- headers

NOW = 1_700_000_000_000
_ENTRY = StoredEntry(b"\x01payload", NOW, NOW + 60_000, NOW + 90_000, NOW + 120_000, 2500, 1, 0)
_TAGGED = StoredEntry(b"\xc0", NOW, NEVER, NEVER, NEVER, 0, 1, 0, (("users", b"GENERATN"), ("é", bytes(8))))
_LEASE = Lease(b"leasetok", NOW + 5000, 5000)
_INTENTS = (Intent(b"intent-1", NOW + 30_000), Intent(b"intent-2", NOW - 31_000))


def header_samples() -> list[bytes]:
    """Slots as we write them."""
    found = (
        Slot(b"nonce--1", _ENTRY),
        Slot(b"nonce--2", lease=_LEASE),
        Slot(b"nonce--3", _ENTRY, _LEASE, retry_at=NOW + 9),
        Slot(b"nonce--4", intents=_INTENTS, contended=True),
        Slot(b"nonce--5", _TAGGED),
    )
    return [slot.header + slot.payload for slot in found]


_HEADERS = header_samples()


def _header(data: bytes) -> str:
    slot = parse(data)
    if slot.foreign is not None:
        _refuse(data.startswith(slot.foreign), "a foreign slot is not what stood there")
    else:
        _refuse(data.startswith(slot.header), "the header is not what stood there")
        _refuse(parse(slot.header + slot.payload) == slot, "a slot is not itself")
    nonce, token = b"newnonce", b"newtoken"
    made: list[Slot | None] = [
        transitions.drop(slot, nonce=nonce),
        transitions.store(slot, _ENTRY, nonce=nonce)[1],
    ]
    for forced in (False, True):
        verdict = transitions.begin_load(
            slot, now=NOW, lease_life=5000, nonce=nonce, token=token, forced=forced, takeover=forced
        )
        if isinstance(verdict, transitions.Take):
            made.append(verdict.slot)
            made.append(transitions.commit_load(verdict.slot, token, _ENTRY, nonce=nonce))
    mine = transitions.begin_write(slot, Intent(token, NOW + 1000), now=NOW, nonce=nonce)
    made += [mine, transitions.commit_write(mine, token, _ENTRY, now=NOW, nonce=nonce)[1]]
    made.append(transitions.fail_write(mine, token, now=NOW, nonce=nonce)[1])
    made.append(transitions.renew_intent(slot, Intent(token, NOW), now=NOW, nonce=nonce))
    if slot.lease is not None:
        made.append(transitions.renew_lease(slot, slot.lease.token, now=NOW, nonce=nonce))
        made.append(transitions.abandon(slot, slot.lease.token, nonce=nonce)[1])
    for one in made:
        if one is not None and one.foreign is None:
            again = parse(one.header + one.payload)
            _refuse(again == one, "what we would write cannot be read")
            life = life_of(one, NOW)
            _refuse(life is None or 0 < life < 2**63, "a life that no store takes")
    return "miss" if slot.entry is None else "value"


# ------------------------------------------------------------------------------------------- codecs and values


@dataclass
class Point:
    x: int
    label: str


class Node(msgspec.Struct):
    name: str
    children: list[Node] = []


_VALUES: list[Any] = [
    None, True, 7, -1, 2**64, 1.5, "text", "é\u202e", b"bytes", [1, [2, [3]]], {"a": {"b": [1, 2.5, None]}}, (1, 2),
    {1, 2}, {(1, 2): {"x"}}, Decimal("1.10"), UUID(int=5), datetime(2024, 2, 29, 12, 30, tzinfo=UTC), timedelta(days=3),
    {"$tuple": [1]}, ["x" * 300], {"k" * 40: list(range(50))}, [[[[[[[[]]]]]]]], frozenset({"f"}),
]  # fmt: skip
_TYPES: tuple[Any, ...] = (
    None, Point, Node, list[int], dict[str, float], tuple[int, str], set[int], UUID, Decimal, datetime, bytes, str,
)  # fmt: skip
CTX = make_context("shop", "user:1")
_PIPES = {name: make_pipeline(name) for name in ("msgpack", "json")}
_SAMPLES = {
    name: [pipe.codec.encode(value, CTX) for value in _VALUES]
    + [pipe.codec.encode(value, CTX, type_) for value, type_ in ((Point(1, "a"), Point), (Node("a", [Node("b")]), Node))]
    for name, pipe in _PIPES.items()
}  # fmt: skip
_SAMPLES["msgpack"] += [
    b"\x91" * 200 + b"\xc0",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
]
_SAMPLES["json"] += [
    b"[" * 300 + b"]" * 300,
    b" " + b'{"$tuple":[' * 90 + b"]}" * 90,
    b"1" * 5000,
    b"1e999999999",
]


def _codec(name: str) -> Target:
    codec = _PIPES[name].codec

    def make(rng: Random) -> bytes:
        return bytes((rng.randrange(len(_TYPES)),)) + mutated(_SAMPLES[name], rng)

    def run(data: bytes) -> str:
        type_ = _TYPES[data[0] % len(_TYPES)] if data else None
        value = codec.decode(data[1:], CTX, type_)
        if isinstance(type_, type) and not hasattr(type_, "__origin__"):
            _refuse(isinstance(value, type_), f"a {type(value)} passed for a {type_}")
        return "value"

    return Target(make, run, (DecodeError,), 16)


_LIMIT = 1 << 20
_PLAIN = [b"", b"customer 7 " * 30, bytes(5000), bytes(range(256)) * 8]


def _compressor(name: str) -> Target:
    one = COMPRESSORS[name]
    samples = [one.compress(plain) for plain in (*_PLAIN, bytes(3 << 20))]

    def run(data: bytes) -> str:
        _refuse(len(decompress(one.number, data, _LIMIT)) <= _LIMIT, "more than the limit")
        return "value"

    return Target(lambda rng: mutated(samples, rng), run, (DecodeError,), 6)


def _pipeline() -> Target:
    pipe = make_pipeline(compression="zlib", compression_threshold=10, max_value_bytes=_LIMIT)
    samples = []
    for value in _VALUES:
        codec_id, flags, payload = pipe.encode(value, CTX)
        samples.append(bytes((codec_id, flags)) + payload)
    samples.append(b"\x03\x00" + pickle.dumps(print))

    def run(data: bytes) -> str:
        codec_id, flags = (data[0], data[1]) if len(data) > 1 else (0, 0)
        pipe.decode(codec_id, flags, data[2:], CTX)
        _refuse(codec_id in (1, 2), f"codec {codec_id} was read")
        return "value"

    return Target(lambda rng: mutated(samples, rng), run, (DecodeError,), 8)


EXPLODED: list[str] = []


def explode() -> None:
    """What a planted pickle would call."""
    EXPLODED.append("an unsigned pickle was loaded")


class Boom:
    def __reduce__(self) -> Any:
        return explode, ()


_CONTEXTS = [CTX, make_context("shop", "user:2"), make_context("blog", "user:1"), b""]


def _sealed(**options: Any) -> Target:
    """Signed or encrypted: only the very bytes that were written, for the key that they were written for."""
    pipe = make_pipeline(**options)
    value: Any = Boom() if options.get("codec") == "pickle" else {"balance": 100, "x": "y" * 50}
    honest: set[tuple[int, bytes]] = set()
    for which, context in enumerate(_CONTEXTS[:3]):
        codec_id, flags, payload = pipe.encode(value, context)
        honest.add((which, bytes((codec_id, flags)) + payload))
    samples = [written for _, written in sorted(honest)]
    samples.append(b"\x03\x00" + bytes(32) + pickle.dumps(Boom()))
    samples.append(b"\x03\x00" + pickle.dumps(Boom()))

    def make(rng: Random) -> bytes:
        return bytes((rng.randrange(len(_CONTEXTS)),)) + mutated(samples, rng)

    def run(data: bytes) -> str:
        which = data[0] % len(_CONTEXTS) if data else 0
        written = data[1:]
        codec_id, flags = (written[0], written[1]) if len(written) > 1 else (0, 0)
        EXPLODED.clear()
        try:
            pipe.decode(codec_id, flags, written[2:], _CONTEXTS[which])
        except DecodeError:
            _refuse((which, written) not in honest, "an honest payload was refused")
            raise
        finally:
            _refuse(not EXPLODED or (which, written) in honest, "a forged pickle was loaded")
        # Plain MessagePack and JSON need no signature; where all is encrypted, nothing else may pass.
        sealed = "encryption" in options or codec_id not in (1, 2)
        _refuse(not sealed or (which, written) in honest, "a forged payload was accepted")
        return "value"

    return Target(make, run, (DecodeError,), 8)


# --------------------------------------------------------------------------------- keys, URLs, environment

_KEYS = [
    "user:1",
    "a" * 249,
    "b" * 250,
    "c" * 251,
    "shop:k:x",
    "shop:h:k" + "0" * 64,
    "%s{}",
    "{0.__class__}",
    "a b\r\nc",
    "é\u202e",
]
_TEMPLATES = ["user:{user_id}", "{kind}:{user_id}", "{kind}/{user_id}/x", "{{{kind}}}", "a{user_id}b"]


def _text(samples: list[str]) -> Callable[[Random], bytes]:
    return lambda rng: mutated_text(samples, rng).encode("utf-8", "surrogatepass")


def _key(data: bytes) -> str:
    key = data.decode("utf-8", "surrogatepass")
    check_tag(key) if len(key) < 500 else None
    _refuse(check_key(key) == key, "a key was changed")
    physical = physical_key("shop", "k", key)
    wire = memcached_key(physical)
    _refuse(
        len(wire) <= 250 and not set(wire) & set(range(0x21)) and 0x7F not in wire, "an illegal Memcached key"
    )
    plain = wire == physical.encode()
    _refuse(
        plain or (wire.startswith(b"shop:h:k") and len(wire) == 72), "a key that is neither plain nor hashed"
    )
    return "value"


def _load(user_id: int, kind: str = "x") -> None: ...


def _template(data: bytes) -> str:
    maker = build_key_maker(_load, data.decode("utf-8", "surrogatepass"))
    keys = {
        maker((number, kind), {})
        for number in (1, 11)
        for kind in ("a", "a:1", "1", "{user_id}", "{0.__class__}")
    }
    _refuse(len(keys) == (10 if len(maker.keyed) == 2 else len(keys)), "two calls make one key")
    _refuse(not any("<class" in key for key in keys), "an attribute was looked up")
    return "value"


SECRET = "hUnTeR2-9x"
_URLS = [
    "memory://?max_entries=100", "sqlite:///cache.db?timeout=1", f"redis://user:{SECRET}@host:6379/0",
    f"rediss://:{SECRET}@[::1]:6379/1?timeout=0.5", f"redis+cluster://u:{SECRET}@h1:7000,h2:7001", "redis+unix:///x?db=3",
    "memcached://h1:11211,h2:11211", f"valkey://u:{SECRET}@host", f"redis//u:{SECRET}@host", f"//:{SECRET}@host:1",
]  # fmt: skip


def _hides(said: str, url: str) -> None:
    """Where the secret stands before an ``@`` it is a password, and no message shows it; unless it is a file's name."""
    before, _, after = url.rpartition("@")
    # As urlsplit sees it: without blanks and line ends.
    scheme = (
        "".join(char for char in url if char not in "\t\r\n")
        .lstrip("".join(map(chr, range(33))))
        .partition(":")[0]
    )
    names_a_file = scheme.lower() in ("sqlite", "redis+unix", "embedded")
    if SECRET in before and SECRET not in after and not names_a_file:
        _refuse(SECRET not in said, "a password is shown")


def _url(data: bytes) -> str:
    url = data.decode("utf-8", "surrogatepass")
    try:
        tier = make_tier(url, "shop", SYSTEM_CLOCK)
    except ConfigurationError as error:
        _hides(f"{error!r} {error}", url)
        raise
    _hides(f"{tier!r} {tier.name}", url)
    tier.close()
    return "value"


_ENVIRONMENT = [
    f"TIERS=memory:// redis://u:{SECRET}@h\nTTL=30", "JITTER=0.1\nRETRIES=2\nCOPY=true", f"PICKLE_KEYS={'ab' * 16}",
    "TTL=none\nNAMESPACE=shop\nCODEC=json", f"ENCRYPTION_KEYS={'cd' * 32} {'ef' * 32}", "LEASE=5\nON_OUTAGE=raise",
]  # fmt: skip


def _environment(data: bytes) -> str:
    lines = data.decode("utf-8", "surrogatepass").splitlines()
    environ = {f"CACHEWRIGHT_{name}": text for name, _, text in (line.partition("=") for line in lines)}
    try:
        tiers, options = read_environment(environ)
    except ConfigurationError as error:
        _refuse(SECRET not in str(error) or any(SECRET in name for name in environ), "a password is shown")
        raise
    _refuse(all(isinstance(tier, str) for tier in tiers) and isinstance(options, dict), "no options")
    return "value"


TARGETS: dict[str, Target] = {
    "header": Target(lambda rng: mutated(_HEADERS, rng), _header, (), 24),
    "msgpack": _codec("msgpack"),
    "json": _codec("json"),
    "zstd": _compressor("zstd"),
    "lz4": _compressor("lz4"),
    "zlib": _compressor("zlib"),
    "pipeline": _pipeline(),
    "pickle": _sealed(codec="pickle", pickle_keys=b"k" * 32),
    "aes": _sealed(encryption=b"a" * 32, compression="zlib", compression_threshold=40),
    "keys": Target(_text(_KEYS), _key, (InvalidKeyError,), 8),
    "templates": Target(_text(_TEMPLATES), _template, (ConfigurationError, InvalidKeyError), 4),
    "urls": Target(_text(_URLS), _url, (ConfigurationError,), 8),
    "environment": Target(_text(_ENVIRONMENT), _environment, (ConfigurationError,), 6),
}
