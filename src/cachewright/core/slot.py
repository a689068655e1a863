r"""The slot: all that a tier holds for one key, and every way in which it may change. Pure; no I/O, no clock.

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

import msgspec

from cachewright.core.header import (
    FORMAT_VERSION,
    HEADER_FIXED,
    MAX_INTENTS,
    NEVER,
    Intent,
    Lease,
    Slot,
    StoredEntry,
    parse,
)

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
    "begin_lease",
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
    lease = Lease(token, now + lease_life, lease_life)
    # A look that loads nothing, and a leader who is cancelled, must not make the origin be asked again before its time.
    retry_at = slot.retry_at if stale is not None else 0
    return Take(Slot(nonce, entry=stale, lease=lease, retry_at=retry_at), token, stale)


def begin_lease(slot: Slot, *, now: int) -> Slot:
    """The slot of a `Take` with its lease's life counted from ``now``.

    Between the verdict and the swap lies a round trip where tags have to be created: a lease that is shorter than a
    slow answer would be over before its first renewal.
    """
    assert slot.lease is not None
    lease = slot.lease
    return msgspec.structs.replace(slot, lease=Lease(lease.token, now + lease.life, lease.life))


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


def abandon(
    slot: Slot | None, token: bytes, *, nonce: bytes, retry_at: int | None = None
) -> tuple[bool, Slot | None]:
    """Gives an own lease back: ``(mine, what is to stand instead)``.

    ``retry_at`` is remembered beside a stale entry so that a failing origin is not asked again at once; None leaves
    what was remembered before.
    """
    if not holds(slot, token):
        return False, None
    assert slot is not None
    if slot.entry is None:
        return True, None
    return True, Slot(nonce, entry=slot.entry, retry_at=slot.retry_at if retry_at is None else retry_at)


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
