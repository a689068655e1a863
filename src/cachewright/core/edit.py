"""Small changes of an entry that stands: ``add``, ``touch``, ``incr``; and looking at a key without touching it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from cachewright.codecs.base import make_context
from cachewright.core import slot as slots
from cachewright.core.lease import MAX_REFUSED, Held
from cachewright.core.read import fresh_entries
from cachewright.core.run_record import RefreshView, record_key, view_of
from cachewright.core.slot import NEVER, Slot, StoredEntry, Take
from cachewright.core.state import State, now_ms
from cachewright.core.write import drop_lowers
from cachewright.errors import (
    ConfigurationError,
    EncodeError,
    MissingKeyError,
    TierProtocolError,
    TierUnavailable,
)
from cachewright.options import Options
from cachewright.runtime.base import Runtime

__all__ = ["Inspection", "TierView", "add", "incr", "inspect", "touch"]

Change = Callable[[Slot | None, StoredEntry | None], Slot | None]


async def _change(state: State, rt: Runtime, key: str, change: Change) -> bool:
    """Swaps ``change(slot, its fresh entry)`` in, again where another was quicker; False where it gave None."""
    for _ in range(MAX_REFUSED):
        standing, generations = await state.chain.authority.read(rt, (key,), state.tags_of(()))
        slot = standing.get(key)
        entry = (await fresh_entries(state, rt, standing, generations)).get(key)
        new = change(slot, entry)
        if new is None:
            return False
        failed = await drop_lowers(state, rt, (key,))
        if failed is not None and state.strict:
            raise failed
        try:
            if slot is None and new.entry is not None and not state.chain.in_memory:
                done = await _put(state, rt, key, new.entry)
            else:
                done = (await state.chain.authority.swap_one(rt, key, slot, new)).done
        except TierUnavailable:
            state.chain.authority.missed(rt, (key,))  # it may have landed, and what stood may still stand
            state.kill_local((key,))
            raise
        if done:
            state.kill_local((key,))
            return True
    name = state.chain.authority.tier.name
    raise TierProtocolError(name, f"refused {MAX_REFUSED:,} swaps of {key!r} in a row")


async def _put(state: State, rt: Runtime, key: str, entry: StoredEntry) -> bool:
    """An entry where nothing stands, under a lease placed before it.

    Nothing comes back: a swap of nothing for the entry that lands late, after the key was set and deleted again, would
    find what it expects. Only a lease may, which harms nobody.
    """
    now, life = now_ms(rt), int(state.options.lease * 1000)
    taken = slots.begin_load(None, now=now, lease_life=life, nonce=rt.new_id(), token=rt.new_id())
    assert isinstance(taken, Take)
    authority = state.chain.authority
    held = Held(state, authority, key, taken.token, taken.slot)
    try:
        if not (await authority.swap_one(rt, key, None, taken.slot)).done:
            return False
        return (await authority.swap_one(rt, key, taken.slot, Slot(rt.new_id(), entry=entry))).done
    except BaseException as error:
        await held.unplaced(rt, error)
        raise


async def add(state: State, rt: Runtime, key: str, value: Any, options: Options, tags: Sequence[str]) -> bool:
    """Stores only where no fresh entry stands; False too where a write is under way on the key."""
    tags = state.tags_of(tags)
    marks = await state.capture(rt, tags, (await state.chain.authority.read(rt, (), tags))[1] if tags else {})
    new = state.make_entry(rt, key, value, options, marks)

    def change(slot: Slot | None, entry: StoredEntry | None) -> Slot | None:
        if entry is not None or (slot is not None and (slot.intents or slot.newer)):
            return None
        return Slot(rt.new_id(), entry=new)

    added = await _change(state, rt, key, change)
    state.stats.stores += added
    return added


async def touch(state: State, rt: Runtime, key: str, ttl: float | None) -> bool:
    """Gives a fresh entry a new life, its stale windows as long as before."""

    def change(slot: Slot | None, entry: StoredEntry | None) -> Slot | None:
        if entry is None:
            return None
        fresh = NEVER if ttl is None else now_ms(rt) + int(ttl * 1000)
        swr, sie = (_window(entry.fresh_until, end, fresh) for end in (entry.swr_until, entry.sie_until))
        moved = msgspec.structs.replace(
            entry, fresh_until=fresh, swr_until=swr, sie_until=sie, serve_until=_ahead(entry, fresh)
        )
        return Slot(rt.new_id(), entry=moved)

    return await _change(state, rt, key, change)


def _ahead(entry: StoredEntry, fresh: int) -> int:
    """From when on the core wants to see reads in the new life.

    The entry does not say whether that was a share of its life or a time before its end: the earlier one, where a read
    too many costs nothing but time.
    """
    before_end = entry.fresh_until - entry.serve_until
    if before_end <= 0 or fresh >= NEVER:
        return NEVER
    share = (entry.serve_until - entry.born) / max(1, entry.fresh_until - entry.born)
    return min(fresh - before_end, entry.born + int((fresh - entry.born) * share))


def _window(old_fresh: int, old_end: int, fresh: int) -> int:
    # Bounded: what another program wrote may hold any times, and the sum has to fit into the header.
    if (
        old_fresh >= NEVER
    ):  # what never expired had no windows: none is as long as before, and endless ones are not
        return fresh
    return min(NEVER, fresh + max(0, old_end - old_fresh))


async def incr(state: State, rt: Runtime, key: str, delta: float) -> float:
    """Adds to a fresh number, atomically, its life unchanged.

    Raises:
        MissingKeyError: there is no fresh entry (or a write is under way on the key).
        EncodeError: the entry is no number.
    """
    if type(delta) not in (int, float) or not math.isfinite(delta):
        raise ConfigurationError(f"incr({key!r}, {delta!r}): expected a finite number")
    result: list[float] = []

    def change(slot: Slot | None, entry: StoredEntry | None) -> Slot | None:
        if entry is None:
            return None
        value = state.value_of(key, entry, None, state.chain.authority.tier.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise EncodeError(f"incr({key!r}): the entry holds a {type(value).__name__}, not a number")
        result[:] = [value + delta]
        payload: Any = result[0]
        codec, flags = entry.codec, entry.codec_flags
        if not state.chain.in_memory:
            codec, flags, payload = state.pipeline.encode(result[0], make_context(state.namespace, key), None)
        # Without its note: that spoke of the value that the origin gave.
        moved = msgspec.structs.replace(entry, payload=payload, codec=codec, codec_flags=flags, note=b"")
        return Slot(rt.new_id(), entry=moved)

    if not await _change(state, rt, key, change):
        raise MissingKeyError(f"incr({key!r}): there is no entry; store one first: cache.add({key!r}, 0)")
    return result[0]


class TierView(msgspec.Struct, frozen=True):
    """What one tier holds for a key.

    Attributes:
        tier: the tier's name.
        state: ``"fresh"``, ``"stale"``, ``"invalid"`` (a tag changed), ``"absent"`` or ``"unavailable"``.
        fresh_for: seconds of freshness left (negative: stale for so long); None for ever or absent.
        usable_for: seconds until nothing may use the entry any more; None for ever or absent.
        age: seconds since the entry was made.
        load_seconds: what its load took.
        size: bytes of the payload; None in memory.
        tags: the entry's tags.
        leased: a load of the key is under way.
        intents: writes of the key under way.
        retry_in: seconds until a failed load is tried again; 0 otherwise.
    """

    tier: str
    state: str
    fresh_for: float | None = None
    usable_for: float | None = None
    age: float | None = None
    load_seconds: float | None = None
    size: int | None = None
    tags: tuple[str, ...] = ()
    leased: bool = False
    intents: int = 0
    retry_in: float = 0.0


class Inspection(msgspec.Struct, frozen=True):
    """What every tier holds for a key, nearest first; nothing was touched by looking.

    Attributes:
        key: the key.
        tiers: nearest first.
        refresh: how its scheduled refresh fares; None where nobody schedules the key.
    """

    key: str
    tiers: tuple[TierView, ...] = ()
    refresh: RefreshView | None = None

    @property
    def state(self) -> str:
        """The state in the nearest tier that has the key."""
        return next(
            (view.state for view in self.tiers if view.state not in ("absent", "unavailable")), "absent"
        )


async def inspect(state: State, rt: Runtime, key: str) -> Inspection:
    """Looks at a key in every tier."""
    views = []
    refresh: RefreshView | None = None
    record = record_key(key)
    if state.chain.local is not None:
        standing, _ = await state.chain.local.read(rt, (key,))
        views.append(_view(state, rt, state.chain.local.name, standing.get(key), True))
    for level in state.chain.levels:
        try:
            authority = level is state.chain.authority
            standing, _ = await level.read(rt, (key, record) if authority else (key,))
            slot = standing.get(key)
            refresh = view_of(standing.get(record), now_ms(rt)) if authority else refresh
            valid = slot is None or slot.entry is None or await state.is_valid(rt, slot.entry, {})
        except TierUnavailable:
            views.append(TierView(level.tier.name, "unavailable"))
            continue
        views.append(_view(state, rt, level.tier.name, slot, valid))
    return Inspection(key, tuple(views), refresh)


def _view(state: State, rt: Runtime, tier: str, slot: Slot | None, valid: bool) -> TierView:
    now = now_ms(rt)
    if slot is None or slot.entry is None:
        return TierView(
            tier,
            "absent",
            leased=slot is not None and slot.lease is not None,
            intents=len(slot.intents) if slot else 0,
        )
    entry = slot.entry
    word = (
        "invalid"
        if not valid
        else "fresh"
        if now < entry.fresh_until
        else "stale"
        if now < entry.ends
        else "absent"
    )
    return TierView(
        tier,
        word,
        None if entry.fresh_until >= NEVER else (entry.fresh_until - now) / 1000,
        None if entry.ends >= NEVER else (entry.ends - now) / 1000,
        (now - entry.born) / 1000,
        entry.cost_us / 1e6,
        len(entry.payload) if isinstance(entry.payload, bytes) and not state.chain.in_memory else None,
        tuple(tag for tag, _ in entry.tags if not tag.startswith("\0")),
        slot.lease is not None,
        len(slot.intents),
        max(0.0, (slot.retry_at - now) / 1000),
    )
