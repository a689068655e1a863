"""The slot: all that a tier holds for one key, and every way in which it may change. Pure; no I/O, no clock.

Rule 1  A slot changes only by *swap*: the tier replaces it iff its header is byte for byte the expected one.
Rule 2  Every header written carries a new random nonce, so no two headers are ever alike. Without it two
        changes within one clock tick are one change; a counter in its place repeats after a delete.
Rule 3  Ids (nonce, lease token, intent id) are fresh in every send. A repeated send with the same id can land
        late, after a delete, and bring the old value back.
Rule 4  Times decide freshness and takeover of dead leases, never safety.

======================  =========================  ==================  =========================  ==================
from \\ by               begin_load                 begin_write         commit_write(i)            drop
======================  =========================  ==================  =========================  ==================
absent                  lease                      intents {i}         absent                     absent
entry, fresh            hit; forced: entry+lease   intents {i}         absent (i is gone)         absent
entry, stale            stale + lease              intents {i}         absent (i is gone)         absent
lease (with entry or    wait; take over if dead    intents {i}         absent (i is gone)         absent
without)
intents                 load, store nowhere        intents+{i},        alone, uncontended: entry  intents, contended
                                                   contended           else the rest, contended
======================  =========================  ==================  =========================  ==================

The byte layout is in ``docs/reference/wire-format.md``; samples of it are frozen in the tests.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

__all__ = [
    "FORMAT_VERSION",
    "HEADER_FIXED",
    "NEVER",
    "Blocked",
    "Hit",
    "Intent",
    "Lease",
    "Slot",
    "StoredEntry",
    "Take",
    "Wait",
    "abandon",
    "begin_load",
    "begin_write",
    "commit_load",
    "commit_write",
    "drop",
    "fail_write",
    "life_of",
    "parse",
    "renew_intent",
    "renew_lease",
    "store",
]

FORMAT_VERSION = 1
NEVER = 2**63 - 1  # a time that does not come: the entry has no ttl
FLAG_ENTRY, FLAG_LEASE, FLAG_CONTENDED = 1, 2, 4
_NO_ID = bytes(8)
# length, version, flags, codec, codec flags, intents, tags, reserved | nonce, lease token, lease deadline,
# lease life, retry_at | born, fresh_until, swr_until, sie_until, cost µs, payload length
_FIXED = struct.Struct(">IBBBBBBH8s8sqIqqqqqII")
_INTENT = struct.Struct(">8sq")
HEADER_FIXED = _FIXED.size  # 88
INTENT_SIZE = _INTENT.size  # 16; intents follow the fixed part directly so that a script can carry them over
MAX_INTENTS = 255
MAX_TAGS = 255


class StoredEntry(msgspec.Struct, frozen=True):
    """A value with its times and tags, as a tier holds it. Times are wall-clock milliseconds.

    ``payload`` is bytes, or in a memory tier the object itself. ``tags`` pairs each tag with the generation
    that stood before the load of this value began.
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
    flags = (FLAG_ENTRY if entry else 0) | (FLAG_LEASE if lease else 0) | (FLAG_CONTENDED if slot.contended else 0)
    tail = b"".join(_INTENT.pack(i.id, i.deadline) for i in slot.intents)
    tags = entry.tags if entry else ()
    if tags:
        parts = [tail]
        for tag, generation in tags:
            raw = tag.encode()
            parts.append(len(raw).to_bytes(2, "big") + raw + generation)
        tail = b"".join(parts)
    return (
        _FIXED.pack(
            HEADER_FIXED + len(tail),
            FORMAT_VERSION,
            flags,
            entry.codec if entry else 0,
            entry.codec_flags if entry else 0,
            len(slot.intents),
            len(tags),
            0,
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
        length, version, flags, codec, codec_flags, n_intents, n_tags, _reserved,
        nonce, token, deadline, life, retry_at,
        born, fresh_until, swr_until, sie_until, cost_us, payload_length,
    ) = _FIXED.unpack_from(raw)  # fmt: skip
    if version > FORMAT_VERSION and length <= len(raw):
        return Slot(_NO_ID, foreign=raw[:length], newer=True, handle=handle)
    if version != FORMAT_VERSION or not HEADER_FIXED <= length <= len(raw):
        return Slot(_NO_ID, foreign=raw, handle=handle)
    intents: tuple[Intent, ...] = ()
    tags: tuple[tuple[str, bytes], ...] = ()
    if n_intents or n_tags or length != HEADER_FIXED:
        tail = _parse_tail(raw, length, n_intents, n_tags)
        if tail is None:
            return Slot(_NO_ID, foreign=raw, handle=handle)
        intents, tags = tail
    entry = None
    if flags & FLAG_ENTRY:
        if len(raw) - length != payload_length:
            return Slot(_NO_ID, foreign=raw, handle=handle)
        entry = StoredEntry(
            raw[length:], born, fresh_until, swr_until, sie_until, cost_us, codec, codec_flags, tags
        )
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
        if end > length:
            return None
        try:
            tags.append((raw[at + 2 : at + 2 + size].decode(), raw[end - 8 : end]))
        except UnicodeDecodeError:
            return None
        at = end
    return (intents, tuple(tags)) if at == length else None


def life_of(slot: Slot, now: int) -> int | None:
    """How long a tier must hold the slot, in ms from ``now`` (at least 1); None for ever.

    A lease on an absent key gets the lease's own life, so a dead holder frees the key by itself.
    """
    ends = 0
    if slot.entry is not None:
        ends = slot.entry.ends
        if ends >= NEVER:
            return None
    if slot.lease is not None:
        ends = max(ends, slot.lease.deadline)
    for intent in slot.intents:
        ends = max(ends, intent.deadline)
    return max(1, ends - now)


# ---------------------------------------------------------------------------------------------- loads


class Hit(msgspec.Struct, frozen=True):
    """The entry is fresh (or, for a forced load, cannot be reached by this verdict)."""

    entry: StoredEntry


class Wait(msgspec.Struct, frozen=True):
    """Somebody alive holds the lease; ``stale`` is what stands beside it."""

    lease: Lease
    stale: StoredEntry | None


class Blocked(msgspec.Struct, frozen=True):
    """Intents stand (or a newer format): load, store nowhere."""


class Take(msgspec.Struct, frozen=True):
    """Swap ``slot`` in; where that succeeds the load is ours. ``stale`` is what we may serve meanwhile."""

    slot: Slot
    token: bytes
    stale: StoredEntry | None


def begin_load(
    slot: Slot | None,
    *,
    now: int,
    lease_life: int,
    nonce: bytes,
    token: bytes,
    valid: bool = True,
    forced: bool = False,
    takeover: bool = False,
) -> Hit | Wait | Blocked | Take:
    """What a load does on meeting ``slot``.

    Args:
        valid: False where a tag's generation has changed: the entry is as good as absent, even as a stale value.
        forced: a refresh; a fresh entry does not end it, and stays readable beside the lease.
        takeover: the lease that stands is known to be dead.
    """
    if slot is None or (slot.foreign is not None and not slot.newer):
        return Take(Slot(nonce, lease=Lease(token, now + lease_life, lease_life)), token, None)
    if slot.newer or slot.intents:
        return Blocked()
    entry = slot.entry if valid else None
    if entry is not None and now < entry.fresh_until and not forced:
        return Hit(entry)
    stale = entry if entry is not None and now < entry.ends else None
    if slot.lease is not None and not takeover:
        return Wait(slot.lease, stale)
    return Take(
        Slot(nonce, entry=stale, lease=Lease(token, now + lease_life, lease_life)),
        token,
        stale,
    )


def commit_load(slot: Slot | None, token: bytes, entry: StoredEntry, *, nonce: bytes) -> Slot | None:
    """The entry in the lease's place, iff the lease still stands; None: the lease is lost, store nothing.

    "Swap from what I saw" would not do: absent comes back, and with it a value that a delete overtook.
    """
    if not holds(slot, token):
        return None
    return Slot(nonce, entry=entry)


def renew_lease(slot: Slot | None, token: bytes, *, now: int, nonce: bytes) -> Slot | None:
    """The same slot with a longer lease; None where it is lost. Never creates a slot.

    A heartbeat that re-creates the lease after a write and an eviction would let the old value in.
    """
    if slot is None or slot.lease is None or slot.lease.token != token:
        return None
    lease = Lease(token, now + slot.lease.life, slot.lease.life)
    return msgspec.structs.replace(slot, nonce=nonce, lease=lease)


def abandon(slot: Slot | None, token: bytes, *, nonce: bytes, retry_at: int = 0) -> tuple[bool, Slot | None]:
    """Gives an own lease back: ``(mine, what is to stand instead)``.

    ``retry_at`` is remembered beside a stale entry so that a failing origin is not asked again at once.
    """
    if not holds(slot, token):
        return False, None
    assert slot is not None
    if slot.entry is None:
        return True, None
    return True, Slot(nonce, entry=slot.entry, retry_at=retry_at)


def holds(slot: Slot | None, token: bytes) -> bool:
    """Whether the slot carries the lease with this token."""
    return slot is not None and slot.lease is not None and slot.lease.token == token


# --------------------------------------------------------------------------------------------- writes


def begin_write(slot: Slot | None, intent: Intent, *, now: int, nonce: bytes) -> Slot:
    """The intent beside those that stand; entry and lease go. Intents long over their deadline are left out."""
    others = live_intents(slot, now) if slot is not None else ()
    return Slot(nonce, intents=(*others, intent), contended=bool(others))


def commit_write(
    slot: Slot | None, intent_id: bytes, entry: StoredEntry | None, *, now: int, nonce: bytes
) -> tuple[bool, Slot | None]:
    """``(change?, what is to stand instead)`` at the end of a write whose save succeeded.

    Only an intent that was alone from start to end may store: of two overlapping writers nobody knows whose
    save the origin saw last. An intent that is missing (evicted) must spoil the others' too, and take away
    what a load may have stored since.
    """
    if slot is None:
        return False, None
    if slot.newer:
        return True, None
    mine = any(i.id == intent_id for i in slot.intents)
    rest = tuple(i for i in slot.intents if i.id != intent_id)
    if mine and not rest and not slot.contended:
        return True, (Slot(nonce, entry=entry) if entry is not None else None)
    live = tuple(i for i in rest if not _over(i, now))
    if live:
        return True, Slot(nonce, intents=live, contended=True)
    return True, None


def fail_write(slot: Slot | None, intent_id: bytes, *, now: int, nonce: bytes) -> tuple[bool, Slot | None]:
    """``(change?, what is to stand instead)`` after a save that certainly changed nothing."""
    if slot is None or not any(i.id == intent_id for i in slot.intents):
        return False, slot
    rest = tuple(i for i in slot.intents if i.id != intent_id and not _over(i, now))
    return True, (Slot(nonce, intents=rest, contended=True) if rest else None)


def renew_intent(slot: Slot | None, intent: Intent, *, now: int, nonce: bytes) -> Slot:
    """The intent with its new deadline, asserted again where it is gone (then as contended).

    Unlike a lease, an intent may be re-created: it only ever forbids.
    """
    if slot is not None and any(i.id == intent.id for i in slot.intents):
        intents = tuple(intent if i.id == intent.id else i for i in slot.intents)
        return msgspec.structs.replace(slot, nonce=nonce, intents=intents)
    others = live_intents(slot, now) if slot is not None else ()
    return Slot(nonce, intents=(*others, intent), contended=True)


def drop(slot: Slot | None, *, nonce: bytes) -> Slot | None:
    """Entry and lease go; standing intents stay, contended."""
    if slot is None or not slot.intents:
        return None
    return Slot(nonce, intents=slot.intents, contended=True)


def store(slot: Slot | None, entry: StoredEntry, *, nonce: bytes) -> tuple[bool, Slot]:
    """``set``: ``(stored, what is to stand)``; where intents stand it acts as a drop."""
    if slot is not None and slot.intents:
        return False, Slot(nonce, intents=slot.intents, contended=True)
    return True, Slot(nonce, entry=entry)


# An intent is taken for over only well past its deadline: clocks of two hosts differ. A writer that lives renews
# it; and should a living one be taken for dead, its commit finds the intent missing and empties the slot.
INTENT_GRACE_MS = 1000


def _over(intent: Intent, now: int) -> bool:
    return now > intent.deadline + INTENT_GRACE_MS


def live_intents(slot: Slot, now: int) -> tuple[Intent, ...]:
    """The intents that still count at ``now`` (all, if there is room; the table is bounded at 255)."""
    return tuple(i for i in slot.intents if not _over(i, now))[-(MAX_INTENTS - 1) :]
