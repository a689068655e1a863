"""What a slot is, in memory and byte by byte. Pure data: how it may change stands in `slot`.

The layout is documented in ``docs/reference/wire-format.md``; samples of it are frozen in the tests.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

__all__ = [
    "FORMAT_VERSION",
    "HEADER_FIXED",
    "MAX_INTENTS",
    "NEVER",
    "Intent",
    "Lease",
    "Slot",
    "StoredEntry",
    "parse",
]

FORMAT_VERSION = 1
NEVER = 2**63 - 1  # a time that does not come: the entry has no ttl
FLAG_ENTRY, FLAG_LEASE, FLAG_CONTENDED = 1, 2, 4
_NO_ID = bytes(8)
# length, version, flags, codec, codec flags, intents, tags, length of the note | nonce, lease token, lease deadline,
# lease life, retry_at | born, fresh_until, swr_until, sie_until, cost µs, payload length
_FIXED = struct.Struct(">IBBBBBBH8s8sqIqqqqqII")
_INTENT = struct.Struct(">8sq")
HEADER_FIXED = _FIXED.size  # 88
INTENT_SIZE = _INTENT.size  # 16; intents follow the fixed part directly so that a script can carry them over
MAX_INTENTS = 255
MAX_TAGS = 255
MAX_NOTE = 4096  # bytes: the whole header is compared in every swap
MAX_LEASE_MS = 86_400_000  # a day, the most that the option allows: no writer of ours makes a longer one


class StoredEntry(msgspec.Struct, frozen=True):
    """A value with its times and tags, as a tier holds it. Times are wall-clock milliseconds.

    ``payload`` is bytes, or in a memory tier the object itself. ``tags`` pairs each tag with the generation
    that stood before the load of this value began. ``note`` is what the loader left for the next load of the key, as
    `State.note_of` reads it. The last two fields belong to process memory and are not sent: ``serve_until``, to which
    memory answers without asking the core (so that a refresh ahead of expiry gets its chance), and ``as_type``, what a
    payload was decoded to.
    """

    payload: Any
    born: int
    fresh_until: int
    swr_until: int
    sie_until: int
    cost_us: int = 0
    codec: int = 0
    codec_flags: int = 0
    tags: tuple[tuple[str, bytes], ...] = ()
    note: bytes = b""
    serve_until: int = NEVER
    as_type: Any = None

    @property
    def ends(self) -> int:
        """When nothing may use this entry any more: the end of its physical life."""
        return max(self.fresh_until, self.swr_until, self.sie_until)


class Lease(msgspec.Struct, frozen=True):
    """The one right, across processes, to load a key."""

    token: bytes
    deadline: int  # wall-clock ms; an own clock that watches the same lease for `life` is the better judge
    life: int  # ms


class Intent(msgspec.Struct, frozen=True):
    """The mark that a key's origin value is being changed."""

    id: bytes
    deadline: int  # wall-clock ms


class Slot(msgspec.Struct, frozen=True, dict=True):
    """One key's entry and control state. ``handle`` is private to the tier that read it (a CAS unique, say)."""

    nonce: bytes
    entry: StoredEntry | None = None
    lease: Lease | None = None
    intents: tuple[Intent, ...] = ()
    contended: bool = False
    retry_at: int = 0  # after a failed load over a stale entry: not before this wall-clock ms
    foreign: bytes | None = None  # header (or all) of bytes that this version cannot read
    newer: bool = False  # … because a newer version wrote them: leave them alone
    handle: Any = None

    @property
    def header(self) -> bytes:
        """The exact header bytes; what a swap compares."""
        if self.foreign is not None:
            return self.foreign
        cached: bytes | None = self.__dict__.get("header_bytes")
        if cached is None:
            cached = self.__dict__["header_bytes"] = _pack(self)
        return cached

    @property
    def payload(self) -> Any:
        """The entry's payload; empty bytes without an entry."""
        return self.entry.payload if self.entry is not None else b""


def _pack(slot: Slot) -> bytes:
    entry, lease = slot.entry, slot.lease
    flags = (
        (FLAG_ENTRY if entry else 0)
        | (FLAG_LEASE if lease else 0)
        | (FLAG_CONTENDED if slot.contended else 0)
    )
    tail = b"".join(_INTENT.pack(i.id, i.deadline) for i in slot.intents)
    tags = entry.tags if entry else ()
    if tags:
        parts = [tail]
        for tag, generation in tags:
            raw = tag.encode()
            parts.append(len(raw).to_bytes(2, "big") + raw + generation)
        tail = b"".join(parts)
    note = entry.note if entry else b""
    tail += note
    return (
        _FIXED.pack(
            HEADER_FIXED + len(tail),
            FORMAT_VERSION,
            flags,
            entry.codec if entry else 0,
            entry.codec_flags if entry else 0,
            len(slot.intents),
            len(tags),
            len(note),
            slot.nonce,
            lease.token if lease else _NO_ID,
            lease.deadline if lease else 0,
            lease.life if lease else 0,
            slot.retry_at,
            entry.born if entry else 0,
            entry.fresh_until if entry else 0,
            entry.swr_until if entry else 0,
            entry.sie_until if entry else 0,
            min(entry.cost_us, 0xFFFFFFFF) if entry else 0,
            len(entry.payload) if entry and isinstance(entry.payload, bytes) else 0,
        )
        + tail
    )


def parse(raw: bytes, handle: Any = None) -> Slot:
    """Reads a slot's bytes. Never raises: what cannot be read comes back as a *foreign* slot, which is a miss.

    A slot that a newer format version wrote is marked ``newer`` and is left alone (loads store nothing), so that
    two versions of the library can share a server during a deployment. Any other damage may be overwritten.
    """
    if len(raw) < HEADER_FIXED:
        return Slot(_NO_ID, foreign=raw, handle=handle)
    (
        length, version, flags, codec, codec_flags, n_intents, n_tags, n_note,
        nonce, token, deadline, life, retry_at,
        born, fresh_until, swr_until, sie_until, cost_us, payload_length,
    ) = _FIXED.unpack_from(raw)  # fmt: skip
    if version > FORMAT_VERSION and length <= len(raw):
        return Slot(_NO_ID, foreign=raw[:length], newer=True, handle=handle)
    if version != FORMAT_VERSION or not HEADER_FIXED <= length <= len(raw):
        return Slot(_NO_ID, foreign=raw, handle=handle)
    intents: tuple[Intent, ...] = ()
    tags: tuple[tuple[str, bytes], ...] = ()
    note = b""
    if n_intents or n_tags or n_note or length != HEADER_FIXED:
        tail = _parse_tail(raw, length - n_note, n_intents, n_tags)
        if tail is None:
            return Slot(_NO_ID, foreign=raw, handle=handle)
        intents, tags = tail
        note = raw[length - n_note : length]
    entry = None
    if flags & FLAG_ENTRY:
        if len(raw) - length != payload_length:
            return Slot(_NO_ID, foreign=raw, handle=handle)
        entry = StoredEntry(
            raw[length:], born, fresh_until, swr_until, sie_until, cost_us, codec, codec_flags, tags, note
        )
    if flags & FLAG_LEASE and life > MAX_LEASE_MS:
        return Slot(_NO_ID, foreign=raw, handle=handle)  # readers would wait for it
    slot = Slot(
        nonce,
        entry,
        Lease(token, deadline, life) if flags & FLAG_LEASE else None,
        intents,
        bool(flags & FLAG_CONTENDED),
        retry_at,
        handle=handle,
    )
    slot.__dict__["header_bytes"] = raw[:length]
    return slot


def _parse_tail(
    raw: bytes, length: int, n_intents: int, n_tags: int
) -> tuple[tuple[Intent, ...], tuple[tuple[str, bytes], ...]] | None:
    at = HEADER_FIXED + n_intents * INTENT_SIZE
    if at > length:
        return None
    intents = tuple(
        Intent(*_INTENT.unpack_from(raw, HEADER_FIXED + n * INTENT_SIZE)) for n in range(n_intents)
    )
    tags = []
    for _ in range(n_tags):
        if at + 2 > length:
            return None
        size = int.from_bytes(raw[at : at + 2], "big")
        end = at + 2 + size + 8
        if end > length or not size:  # there is no empty tag
            return None
        try:
            tags.append((raw[at + 2 : at + 2 + size].decode(), raw[end - 8 : end]))
        except UnicodeDecodeError:
            return None
        at = end
    return (intents, tuple(tags)) if at == length else None
