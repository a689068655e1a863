"""Changing keys: drops, plain sets, and writes around a save at the origin.

A write through the cache: an intent goes into the slot *before* the save, and with it entry and lease go out; while it
stands, loads are served and not stored. After the save the new value is stored only if the intent was alone from start
to end; else the slot is left empty and the others' writes are spoiled too: of two overlapping writers nobody knows
whose save the origin saw last. An intent that only dropped at the end would leave the old value when the writer crashes
after its save.

Drops go lower tiers first, then the authority, then memory: in the other order a reader leases the authority, reads the
lower tier, and fills the authority with what was just invalidated.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from cachewright.core import slot as slots
from cachewright.core.breaker import NAMESPACE_TAG
from cachewright.core.intents import SETTLE_SECONDS, Write, Writing, forbid_storing, place, refuses, take_out
from cachewright.core.lease import MAX_REFUSED
from cachewright.core.slot import NEVER, Slot, StoredEntry
from cachewright.core.state import State, now_ms
from cachewright.errors import NotSaved, TierError, TierUnavailable
from cachewright.options import MISSING, Options
from cachewright.runtime.base import Runtime
from cachewright.tiers.base import Swap

__all__ = ["clear", "drop", "drop_lowers", "invalidate_tags", "store", "write"]

T = TypeVar("T")


async def drop(state: State, rt: Runtime, keys: Sequence[str]) -> list[bool]:
    """Drops keys everywhere; True for those that had an entry in the authority.

    A tier that cannot be reached hears of it before it is asked anything else; with ``on_outage="raise"`` the error
    is raised, after everything else was done.
    """
    failed = await drop_lowers(state, rt, keys)
    gone = [False] * len(keys)
    try:
        gone = await state.chain.authority.drop(rt, keys)
    except TierUnavailable as error:
        failed = failed or error
    state.kill_local(keys)
    state.stats.drops += len(keys)
    if failed is not None and state.strict:
        raise failed
    return gone


async def drop_lowers(state: State, rt: Runtime, keys: Sequence[str]) -> TierUnavailable | None:
    """Drops keys in the lower tiers, farthest first; the first failure is returned, not raised."""
    failed: TierUnavailable | None = None
    for level in reversed(state.chain.lowers):
        try:
            await level.drop(rt, keys)
        except TierUnavailable as error:
            failed = failed or error
    return failed


async def store(
    state: State, rt: Runtime, values: Mapping[str, Any], options: Options, tags: Sequence[str]
) -> None:
    """``set``: stores plain values. Where a write is under way on a key it acts as a drop."""
    tags = state.tags_of(tags)
    try:
        known = (await state.chain.authority.read(rt, (), tags))[1] if tags else {}
        marks = await state.capture(rt, tags, known)
    except TierUnavailable:
        if state.strict:
            raise
        await drop(state, rt, list(values))
        return
    entries = {key: state.make_entry(rt, key, value, options, marks) for key, value in values.items()}
    failed = await drop_lowers(state, rt, list(values))
    try:
        stored = await state.chain.authority.store(
            rt, {key: Slot(rt.new_id(), entry=entry) for key, entry in entries.items()}
        )
        state.stats.stores += sum(stored)
    except TierUnavailable as error:
        failed = failed or error
    # Once more: a load whose value the authority took just before may have put its lease below after the first drop,
    # and would fill the tier with what outlives the entry stored here.
    failed = await drop_lowers(state, rt, list(values)) or failed
    state.kill_local(list(values))
    if failed is not None and state.strict:
        raise failed


async def invalidate_tags(state: State, rt: Runtime, tags: Iterable[str]) -> None:
    """Sets new generations: whatever was born under the old ones is invalid, however many entries there are."""
    names = list(tags)
    state.forget_generations(names)
    failed: TierUnavailable | None = None
    try:
        marks = {tag: rt.new_id() for tag in names}
        await state.chain.authority.set_generations(rt, marks, only_missing=False)
    except TierUnavailable as error:
        failed = error
    state.forget_generations(names)  # again: a read meanwhile may have seen the old ones
    state.flights.tags_changed()
    if state.chain.local is not None:
        state.chain.local.kill_tags(names)
    if failed is not None and state.strict:
        raise failed


async def clear(state: State, rt: Runtime) -> None:
    """Drops every entry of the namespace in every tier."""
    failed: TierUnavailable | None = None
    for level in reversed(state.chain.levels):
        try:
            if level.tier.scannable:
                await level.clear(rt)
        except TierUnavailable as error:
            failed = failed or error
    if state.chain.stamped:
        await invalidate_tags(state, rt, (NAMESPACE_TAG,))
    state.flights.tags_changed()
    if state.chain.local is not None:
        state.chain.local.kill_all()
    if failed is not None and state.strict:
        raise failed


# --------------------------------------------------------------------------------- writes around a save


async def write(
    state: State,
    rt: Runtime,
    values: Mapping[str, Any],
    save: Callable[[], Awaitable[T]],
    options: Options,
    tags: Sequence[str],
    *,
    not_saved: tuple[type[Exception], ...] = (),
    settle: float = SETTLE_SECONDS,
    keep: bool = True,
) -> T:
    """Saves at the origin, then stores (write-through) or leaves empty (write-around, deletes).

    Args:
        values: the new value of each key; `MISSING` for a delete.
        save: the save at the origin, once for all keys.
        not_saved: its exceptions that prove that nothing was changed, besides `NotSaved`.
        settle: how long a save whose outcome is unknown may still land, in seconds.
        keep: store the new values (write-through).

    Raises:
        Exception: whatever ``save`` raised; no value that was not saved is left behind.
    """
    # Encoded before anything is changed: a value that cannot be stored must not be found out after its save.
    entries = _entries(state, rt, values, options) if keep else {}
    certain: tuple[type[BaseException], ...] = (NotSaved, *not_saved)
    keys = list(values)
    marks, writing = await _begin(state, rt, keys, state.tags_of(tags))
    beat = writing.start_heartbeat(state, rt)
    try:
        result = await save()
    except certain:
        beat.cancel()
        await _finish(state, rt, writing, {}, failed=True)
        raise
    except BaseException:
        # Unknown: the save may have landed, or may yet. The intents stay that long and end by themselves.
        beat.cancel()
        writing.over = True
        await forbid_storing(state, rt, writing.keys, settle)
        state.kill_local(keys)
        raise
    beat.cancel()
    state.stats.saves += len(keys)
    if marks is None:
        entries = {}
    now, born = now_ms(rt), tuple((marks or {}).items())
    entries = {key: aged(msgspec.structs.replace(e, tags=born), now) for key, e in entries.items()}
    await _finish(state, rt, writing, entries, failed=False)
    return result


def _entries(
    state: State, rt: Runtime, values: Mapping[str, Any], options: Options
) -> dict[str, StoredEntry]:
    entries = {}
    for key, value in values.items():
        if value is not MISSING and (options.store_if is None or options.store_if(value)):
            entries[key] = state.make_entry(rt, key, value, options, {})
    return entries


def aged(entry: StoredEntry, now: int) -> StoredEntry:
    """The entry as if made at ``now``: its life begins when its value was saved."""
    late = now - entry.born
    if late <= 0 or entry.fresh_until >= NEVER:
        return entry
    return msgspec.structs.replace(
        entry,
        born=now,
        fresh_until=entry.fresh_until + late,
        swr_until=entry.swr_until + late,
        sie_until=entry.sie_until + late,
        serve_until=entry.serve_until + late,
    )


async def _begin(
    state: State, rt: Runtime, keys: list[str], tags: Sequence[str]
) -> tuple[dict[str, bytes] | None, Writing]:
    """Intents in the authority, entries gone everywhere. Unconfirmed: strict refuses the write before the save;
    otherwise it goes on, and the tier is told to drop these keys before it is asked anything else."""
    writes = [Write(state, rt, key) for key in keys]
    marks: dict[str, bytes] | None = None
    failed: TierUnavailable | None = None
    try:
        standing, known = await state.chain.authority.read(rt, keys, tags)
        marks = await state.capture(rt, tags, known)
        for one in writes:
            one.slot = standing.get(one.key)
        await place(state, rt, writes)
    except GeneratorExit:
        raise
    except BaseException as error:
        if state.strict or not isinstance(error, TierUnavailable):
            for one in writes:
                one.may_stand()
            take_out(state, rt, writes)
            raise
        failed = error
    if failed is not None:
        state.chain.authority.missed(rt, keys)
    writing = Writing(writes)
    try:
        below = await drop_lowers(state, rt, keys)
        state.kill_local(keys)
        if below is not None and state.strict:
            raise below
    except GeneratorExit:
        raise
    except BaseException:
        # Cancelled, or refused: nothing was saved, and an intent that is left would forbid storing for its whole life.
        try:
            await _finish(state, rt, Writing([one for one in writes if one.confirmed]), {}, failed=True)
        finally:
            take_out(state, rt, writes)
        raise
    return marks, writing


async def _finish(
    state: State, rt: Runtime, writing: Writing, entries: Mapping[str, StoredEntry], *, failed: bool
) -> None:
    """Commits, or after a save that changed nothing takes the intents out; memory dies either way."""
    writing.over = True
    keys = [one.key for one in writing.keys]
    # Where no intent was confirmed a replay may have come before the save, and a load of the old value after it: the
    # tier has to hear of the key once more, also if this caller is cancelled here.
    unguarded = [one.key for one in writing.keys if not (one.confirmed or failed)]
    if unguarded:
        state.chain.authority.missed(rt, unguarded)
    error: TierError | None = None
    todo = writing.keys
    try:
        error = None if failed else await drop_lowers(state, rt, keys)
        for _ in range(MAX_REFUSED):
            todo = await _finish_round(state, rt, todo, entries, failed)
            if not todo:
                break
        else:
            raise refuses(state)
        if unguarded:
            await state.chain.authority.drop(rt, unguarded)
    except GeneratorExit:  # collected with its loop: nothing can be started any more
        raise
    except BaseException as caught:
        for one in todo:
            one.may_stand()  # until they are taken out, nothing is stored under them
        if not isinstance(caught, TierError):
            take_out(state, rt, writing.keys)
            raise
        state.chain.authority.missed(rt, [one.key for one in todo])
        error = error or caught
    take_out(state, rt, writing.keys)
    state.kill_local(keys)
    if error is not None and state.strict:
        raise error


async def _finish_round(
    state: State, rt: Runtime, todo: list[Write], entries: Mapping[str, StoredEntry], failed: bool
) -> list[Write]:
    swaps, pending = [], []
    for one in todo:
        now, nonce = now_ms(rt), rt.new_id()
        # Placed after others' writes, for all we know, an unconfirmed one allows nothing to be stored.
        if failed or not one.confirmed:
            change, new = slots.fail_write(one.slot, one.id, now=now, nonce=nonce)
        else:
            change, new = slots.commit_write(one.slot, one.id, entries.get(one.key), now=now, nonce=nonce)
        if change:
            swaps.append(Swap(one.key, one.slot, new))
            pending.append(one)
    results = await state.chain.authority.swap(rt, swaps) if swaps else []
    refused = []
    for one, swap, swapped in zip(pending, swaps, results, strict=True):
        if not swapped.done:
            one.slot = swapped.current
            refused.append(one)
        elif swap.new is not None and swap.new.entry is not None:
            state.stats.stores += 1
    return refused
