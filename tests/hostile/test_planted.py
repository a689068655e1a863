"""Bytes planted in every store: pickles, forgeries, damage and other versions' slots are a miss, and code never runs."""

from __future__ import annotations

import hmac
import pickle
import re
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest

from cachewright import events
from cachewright.codecs.base import ID_JSON, ID_MSGPACK, ID_PICKLE, make_context
from cachewright.codecs.pipeline import MAX_VALUE_BYTES, make_pipeline
from cachewright.core.header import MAX_LEASE_MS
from cachewright.core.slot import FORMAT_VERSION, NEVER, Lease, Slot, StoredEntry, parse
from cachewright.errors import DecodeError

FROZEN = Path(__file__).with_name("slots")
KEY, OTHER_KEY, AES = b"k" * 32, b"o" * 32, b"a" * 32
NONCE = b"planted!"

exploded: list[str] = []


def explode(*_: Any) -> str:
    exploded.append("a planted pickle was loaded")
    return "exploded"


class Boom:
    """To unpickle it is the attack."""

    def __reduce__(self) -> Any:
        return explode, ()


def slot_of(store: Any, payload: bytes, codec: int = ID_MSGPACK, flags: int = 0) -> bytes:
    """A fresh entry with this payload, as any client may write it."""
    slot = Slot(NONCE, StoredEntry(payload, 0, NEVER, NEVER, NEVER, 0, codec, flags, store.stamp()))
    return slot.header + slot.payload


def written(value: Any, context: bytes, **options: Any) -> tuple[bytes, int, int]:
    codec, flags, payload = make_pipeline(**options).encode(value, context)
    return payload, codec, flags


def a_miss(cache: Any, store: Any, key: str, raw: bytes, says: str) -> None:
    """Reads miss, with an event that says why; the next load takes the place of what was planted."""
    told: list[events.Event] = []
    stop = cache.cache.events.subscribe(told.append)
    exploded.clear()
    store.plant(key, raw)
    assert cache.get(key) is None
    assert cache.get_many([key]) == {}
    if says:
        assert [type(event) for event in told] == [events.DecodeFailed] * 2
        assert re.search(says, str(told[0])), str(told[0])
        assert key in str(told[0])
    else:
        assert told == []
    cache.inspect(key)
    assert cache.get_or_set(key, lambda: "from the origin") == "from the origin"
    assert cache.get(key) == "from the origin"
    assert exploded == []
    stop()


def test_a_planted_pickle_never_runs(bytes_store: Any) -> None:
    body = pickle.dumps(Boom())
    for codec in ("msgpack", "json"):
        cache = bytes_store.cache(codec=codec)
        a_miss(cache, bytes_store, "a", slot_of(bytes_store, body, ID_PICKLE), "codec 3 is not read here")
        a_miss(
            cache, bytes_store, "a", slot_of(bytes_store, body, ID_MSGPACK), "msgpack bytes cannot be read"
        )
        a_miss(cache, bytes_store, "a", slot_of(bytes_store, body, ID_JSON), "json bytes cannot be read")
        a_miss(cache, bytes_store, "a", slot_of(bytes_store, body, 200), "codec 200 is not read here")
        a_miss(cache, bytes_store, "a", body, "")
    signing = bytes_store.cache(codec="pickle", pickle_keys=KEY)
    a_miss(
        signing, bytes_store, "a", slot_of(bytes_store, body, ID_PICKLE), "no valid signature.*not unpickled"
    )


def test_a_signature_holds_for_its_key_its_namespace_and_its_algorithm_only(bytes_store: Any) -> None:
    cache = bytes_store.cache(codec="pickle", pickle_keys=KEY)
    here = make_context(bytes_store.namespace, "a")
    body = pickle.dumps(Boom())
    honest, codec, flags = written(Boom(), here, codec="pickle", pickle_keys=KEY)
    elsewhere = {
        "another key": make_context(bytes_store.namespace, "b"),
        "another namespace": make_context("another", "a"),
    }
    forged = {
        "missing": body,
        "cut": honest[1:],
        "cut at its end": honest[:31] + honest[32:],
        "only a signature": honest[:32],
        "nothing": b"",
        "sha1": hmac.new(KEY, here + body, "sha1").digest() + body,
        "sha256 of the body alone": hmac.new(KEY, body, "sha256").digest() + body,
        "no key": hmac.new(b"", here + body, "sha256").digest() + body,
        "zeros": bytes(32) + body,
        "another signer": written(Boom(), here, codec="pickle", pickle_keys=OTHER_KEY)[0],
        "one bit of the body": honest[:-3] + bytes((honest[-3] ^ 1,)) + honest[-2:],
        **{
            name: written(Boom(), there, codec="pickle", pickle_keys=KEY)[0]
            for name, there in elsewhere.items()
        },
    }
    for payload in forged.values():
        a_miss(
            cache,
            bytes_store,
            "a",
            slot_of(bytes_store, payload, codec, flags),
            "no valid signature for this key and namespace",
        )
    bytes_store.plant("a", slot_of(bytes_store, honest, codec, flags))
    assert cache.get("a") == "exploded"  # the test's own bomb works where the signature is right


def test_an_encrypted_value_is_bound_to_its_key_and_its_header(bytes_store: Any) -> None:
    cache = bytes_store.cache(encryption_keys=AES)
    here, there = make_context(bytes_store.namespace, "a"), make_context(bytes_store.namespace, "b")
    honest, codec, flags = written("secret", here, encryption=AES)
    refused = "does not authenticate for this key and namespace"
    cases = [
        (written("x", there, encryption=AES)[0], codec, flags, refused),
        (honest, ID_JSON, flags, refused),
        (honest[:-1], codec, flags, refused),
        (honest[:-1] + bytes((honest[-1] ^ 1,)), codec, flags, refused),
        (honest[:9], codec, flags, "damaged or was written with a key that is not known here"),
        (written("x", here, encryption=OTHER_KEY)[0], codec, flags, "with a key that is not known here"),
        (honest, codec, flags | 3, refused),
        (honest, codec, flags & ~0x10, "not encrypted is refused where encryption is configured"),
        (written("plain", here)[0], ID_MSGPACK, 0, "not encrypted is refused where encryption is configured"),
    ]
    for payload, codec_id, flag_bits, says in cases:
        a_miss(cache, bytes_store, "a", slot_of(bytes_store, payload, codec_id, flag_bits), says)
    bytes_store.plant("a", slot_of(bytes_store, honest, codec, flags))
    assert cache.get("a") == "secret"


def test_damaged_headers_and_payloads_are_a_miss(bytes_store: Any) -> None:
    cache = bytes_store.cache()
    whole = slot_of(bytes_store, written({"a": 1}, b"")[0])
    damaged = [
        whole[:1], whole[:87], whole[:88], whole[:-1], whole + b"!",
        b"\xff\xff\xff\xff" + whole[4:],  # a length beyond the bytes
        b"\0\0\0\x57" + whole[4:],  # … and below the least
        whole[:84] + b"\xff\xff\xff\xff" + whole[88:],  # a payload of 4 GiB
        whole[:8] + b"\xff" + whole[9:],  # 255 intents that are not there
        whole[:9] + b"\xff" + whole[10:],  # … tags
        whole[:4] + b"\0" + whole[5:],  # no version
        b"\0" * 200, b"hello", b"\r\n",
    ]  # fmt: skip
    for raw in damaged:
        a_miss(cache, bytes_store, "a", raw, "")
    for payload, says in (
        (b"", "msgpack"),
        (b"\xc1", "msgpack"),
        (b"\x92\x01", "msgpack"),
        (b"\x01\x01", "msgpack"),
    ):
        a_miss(cache, bytes_store, "a", slot_of(bytes_store, payload), f"stored {says} bytes cannot be read")
    a_miss(
        cache, bytes_store, "a", slot_of(bytes_store, b"\x01", flags=0x20), "flags that are not known here"
    )


def test_a_planted_lease_of_weeks_keeps_nobody_waiting(bytes_store: Any) -> None:
    cache = bytes_store.cache()
    raw = Slot(NONCE, lease=Lease(b"nobody's", NEVER - 1, MAX_LEASE_MS + 1)).header
    assert parse(raw).foreign == raw
    bytes_store.plant("a", raw)
    assert cache.get_or_set("a", lambda: 1) == 1
    assert cache.get("a") == 1


def test_wrong_types_for_the_annotation_are_a_miss(bytes_store: Any) -> None:
    cache = bytes_store.cache()
    for value, type_, says in (
        ("text", int, "as int: Expected `int`, got `str`"),
        ({"a": "secret value"}, dict[str, int], r"as dict\[str, int\]"),
        ([1, None], list[int], r"as list\[int\]"),
        (2**70, str, "as str"),
    ):
        told: list[events.Event] = []
        stop = cache.cache.events.subscribe(told.append)
        cache.set("a", value)
        assert cache.get("a", type=type_) is None
        assert re.search(says, str(told[0])), str(told[0])
        assert "secret value" not in str(told[0])
        stop()


# ------------------------------------------------------------------------------------------- bombs and gigantic sizes


@pytest.mark.parametrize(
    ("payload", "codec", "flags"),
    [
        pytest.param(zlib.compress(bytes(400 << 20), 9), ID_MSGPACK, 3, id="zlib of 400 MiB"),
        pytest.param(b"\xdd\xff\xff\xff\xff", ID_MSGPACK, 0, id="a list of 4 billion"),
        pytest.param(b"\xdf\xff\xff\xff\xff", ID_MSGPACK, 0, id="a dict of 4 billion"),
        pytest.param(b"\xc6\xff\xff\xff\xff", ID_MSGPACK, 0, id="4 GiB of bytes"),
        pytest.param(b"\xc9\xff\xff\xff\xff\x01", ID_MSGPACK, 0, id="4 GiB in a mark"),
        pytest.param(b"\x91" * 500_000 + b"\xc0", ID_MSGPACK, 0, id="500,000 lists in each other"),
        pytest.param(b"[" * 500_000 + b"]" * 500_000, ID_JSON, 0, id="500,000 JSON lists in each other"),
        pytest.param(b' {"$tuple":' * 100_000, ID_JSON, 0, id="100,000 marks in each other"),
    ],
)
def test_what_claims_to_be_gigantic_costs_little(payload: bytes, codec: int, flags: int) -> None:
    pipe = make_pipeline()
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match=r"cannot be read|unpacks to more than is allowed"):
            pipe.decode(codec, flags, payload, b"")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A bomb may fill what a value may; what only says that it is large costs next to nothing.
    assert peak < (MAX_VALUE_BYTES + (2 << 20) if flags else 8 << 20)


# --------------------------------------------------------------------------------------------------- other versions


def test_a_newer_versions_slot_is_a_miss_and_loads_leave_it_alone(bytes_store: Any) -> None:
    cache = bytes_store.cache()
    raw = bytearray(slot_of(bytes_store, written("new", b"")[0]))
    for version in (FORMAT_VERSION + 1, 255):
        raw[4] = version
        bytes_store.plant("a", bytes(raw))
        told: list[events.Event] = []
        stop = cache.cache.events.subscribe(told.append)
        assert cache.get("a") is None
        assert cache.get_many(["a"]) == {}
        assert cache.add("a", "mine") is False
        assert cache.touch("a", 5) is False
        assert cache.get_or_set("a", lambda: "from the origin") == "from the origin"
        assert bytes_store.standing("a") == parse(bytes(raw)).header
        assert not [event for event in told if isinstance(event, events.DecodeFailed)]
        stop()
        # A change is the user's word, and must not leave an older value for anybody.
        cache.set("a", "set")
        assert cache.get("a") == "set"
        bytes_store.plant("a", bytes(raw))
        cache.delete("a")
        assert bytes_store.standing("a") is None


def test_every_released_version_has_a_frozen_slot() -> None:
    """Whoever raises the version keeps the older samples and reads them."""
    assert {path.name for path in FROZEN.glob("*.hex")} == {f"v{n}.hex" for n in range(1, FORMAT_VERSION + 1)}


@pytest.mark.parametrize("path", sorted(FROZEN.glob("*.hex")), ids=lambda path: path.stem)
def test_a_slot_of_every_released_version_is_read(bytes_store: Any, path: Path) -> None:
    cache = bytes_store.cache()
    raw = bytes.fromhex(path.read_text())
    assert f"v{raw[4]}" == path.stem
    bytes_store.plant("a", raw)
    if (
        bytes_store.kind == "memcached"
    ):  # entries there carry their namespace's tag, so this one is a miss by design
        assert bytes_store.standing("a") == raw
        return
    assert cache.get("a") == {"version": raw[4], "kept": [1, 2.5, "é", None]}
    assert cache.get_or_set("a", lambda: "not called") == {"version": raw[4], "kept": [1, 2.5, "é", None]}


def test_an_entry_with_an_empty_tag_is_damaged(bytes_store: Any) -> None:
    """No tag of ours is empty; where its record was planted as well, every reader raised IndexError."""
    cache = bytes_store.cache()
    bytes_store.plant_tag("", b"GENERATN")
    tags = (("", b"GENERATN"), *bytes_store.stamp())
    slot = Slot(NONCE, StoredEntry(b"\x01", 0, NEVER, NEVER, NEVER, 0, ID_MSGPACK, 0, tags))
    a_miss(cache, bytes_store, "a", slot.header + slot.payload, "")
