"""The bytes of a slot: frozen samples, the documented offsets, and what a hostile store may hold.

A sample that no longer matches means that running services could not read one another: raise the format version.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachewright.core.header import FORMAT_VERSION, HEADER_FIXED, MAX_INTENTS, MAX_TAGS
from cachewright.core.slot import NEVER, Intent, Lease, Slot, StoredEntry, parse

WIRE = Path(__file__).with_name("wire")
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "wire-format.md"

T = 1_700_000_000_000
ENTRY = StoredEntry(b"\x01payload", T, T + 60_000, T + 90_000, T + 120_000, 2500, 1, 0x11)
TAGGED = StoredEntry(b"", T, NEVER, NEVER, NEVER, 0, 2, 0, (("users", b"GENERATN"), ("é", b"\0" * 8)))
NOTED = StoredEntry(
    b"\x01payload", T, T + 60_000, T, T, 0, 1, 0, (("users", b"GENERATN"),), b"\x01\x00\xa4etag"
)
LEASE = Lease(b"leasetok", T + 5000, 5000)
INTENTS = (Intent(b"intent-1", T + 30_000), Intent(b"intent-2", T + 31_000))
SAMPLES = {
    "entry": Slot(b"nonce--1", ENTRY),
    "lease": Slot(b"nonce--2", lease=LEASE),
    "stale-and-lease": Slot(b"nonce--3", ENTRY, LEASE),
    "failed": Slot(b"nonce--4", ENTRY, retry_at=T + 61_000),
    "intent": Slot(b"nonce--5", intents=INTENTS[:1]),
    "contended": Slot(b"nonce--6", intents=INTENTS, contended=True),
    "tagged-forever": Slot(b"nonce--7", TAGGED),
    "noted": Slot(b"nonce--8", NOTED),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_frozen_samples(name: str) -> None:
    slot, frozen = SAMPLES[name], bytes.fromhex((WIRE / f"{name}.hex").read_text())
    assert slot.header + slot.payload == frozen
    assert parse(frozen) == slot
    assert parse(frozen).header == slot.header


def test_every_file_is_a_sample() -> None:
    assert {path.stem for path in WIRE.glob("*.hex")} == set(SAMPLES)


def test_the_documented_offsets() -> None:
    """Each row ``| 12 | 8 | nonce | …`` of the page names a field where the bytes have it."""
    rows = re.findall(r"^\| (\d+) \| (\d+) \| `([\w ]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    fields = {name: (int(at), int(size)) for at, size, name in rows}
    raw = SAMPLES["stale-and-lease"].header
    values = {
        "length": len(raw),
        "version": FORMAT_VERSION,
        "flags": 3,
        "codec": 1,
        "codec flags": 0x11,
        "intents": 0,
        "tags": 0,
        "note length": 0,
        "nonce": b"nonce--3",
        "lease token": b"leasetok",
        "lease deadline": T + 5000,
        "lease life": 5000,
        "retry at": 0,
        "born": T,
        "fresh until": T + 60_000,
        "swr until": T + 90_000,
        "sie until": T + 120_000,
        "cost": 2500,
        "payload length": 8,
    }
    assert list(fields) == list(values)
    end = 0
    for name, (at, size) in fields.items():
        assert at == end, f"{name} does not follow what stands before it"
        end = at + size
        found = raw[at:end]
        assert (found if isinstance(values[name], bytes) else int.from_bytes(found, "big")) == values[name], (
            name
        )
    assert end == HEADER_FIXED == 88


def test_what_follows_the_fixed_part() -> None:
    raw = SAMPLES["contended"].header
    assert len(raw) == 88 + 2 * 16
    assert raw[88:104] == b"intent-1" + struct.pack(">q", T + 30_000)
    assert raw[104:120] == b"intent-2" + struct.pack(">q", T + 31_000)
    raw = SAMPLES["tagged-forever"].header
    assert raw[88:] == b"\0\5users" + b"GENERATN" + b"\0\2" + "é".encode() + b"\0" * 8
    raw = SAMPLES["noted"].header
    assert struct.unpack(">H", raw[10:12]) == (7,)
    assert raw[88:] == b"\0\5users" + b"GENERATN" + b"\1\0\xa4etag"
    assert parse(raw[:10] + b"\0\x08" + raw[12:] + b"\x01payload").foreign, (
        "a note that is longer than it says"
    )


def test_the_bounds_of_both_tables() -> None:
    intents = tuple(Intent(n.to_bytes(8, "big"), T) for n in range(MAX_INTENTS))
    slot = Slot(b"12345678", intents=intents, contended=True)
    assert parse(slot.header) == slot
    tags = tuple((f"t{n}" * 100, b"12345678") for n in range(MAX_TAGS))
    slot = Slot(b"12345678", StoredEntry(b"p", T, T, T, T, tags=tags))
    assert parse(slot.header + b"p") == slot


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_cut_short_is_foreign(name: str) -> None:
    whole = SAMPLES[name].header + SAMPLES[name].payload
    for cut in range(len(whole)):
        slot = parse(whole[:cut])
        assert slot.foreign == whole[:cut]
        assert not slot.newer
    assert parse(whole + b"!").foreign is not None or SAMPLES[name].entry is None


def test_a_newer_version_is_left_alone_by_its_header() -> None:
    raw = bytearray(SAMPLES["entry"].header + b"whatever")
    raw[4] = FORMAT_VERSION + 1
    slot = parse(bytes(raw))
    assert slot.newer
    assert slot.header == bytes(raw[: len(SAMPLES["entry"].header)])
    raw[4] = 0
    assert not parse(bytes(raw)).newer
    assert parse(bytes(raw)).foreign == bytes(raw)


@given(st.binary(max_size=400))
def test_any_bytes_can_be_read(raw: bytes) -> None:
    slot = parse(raw)
    assert slot.foreign is not None or raw.startswith(slot.header)


@given(st.sampled_from(sorted(SAMPLES)), st.integers(0, 127), st.integers(1, 255))
def test_one_damaged_byte_never_raises(name: str, at: int, change: int) -> None:
    raw = bytearray(SAMPLES[name].header + SAMPLES[name].payload)
    raw[at % len(raw)] ^= change
    slot = parse(bytes(raw))
    if slot.foreign is None:
        assert len(slot.intents) == raw[8]
        assert slot.entry is None or len(slot.entry.payload) == int.from_bytes(raw[84:88], "big")
