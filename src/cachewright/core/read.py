"""Reading without a loader: fresh entries only, never waiting for a lease, many keys in one round trip a tier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cachewright.core.lease import Held, abandon_all, commit_all
from cachewright.core.levels import look_below, place_leases
from cachewright.core.slot import Slot, StoredEntry
from cachewright.core.state import State, now_ms
from cachewright.errors import TierUnavailable
from cachewright.options import MISSING, Options
from cachewright.runtime.base import Runtime
from cachewright.tiers.base import Generation
from cachewright.tiers.memory import Ticket

__all__ = ["fresh_entries", "read_many"]

READ_LEASE = 1.0  # two deadlines of a tier


async def read_many(state: State, rt: Runtime, keys: Sequence[str], options: Options) -> dict[str, Any]:
    """The values of those keys that have a fresh entry in some tier."""
    tickets = {key: state.ticket(key) for key in keys}
    values: dict[str, Any] = {}
    try:
        standing, generations = await state.chain.authority.read(rt, keys, state.tags_of(()))
        entries = await fresh_entries(state, rt, standing, generations)
    except TierUnavailable:
        if state.strict:
            raise
        values = await _below_alone(state, rt, keys, options)
        return _counted(state, keys, values)
    for key, entry in entries.items():
        value = state.value_of(key, entry, options.type, state.chain.authority.tier.name)
        if value is not MISSING:
            values[key] = value
            state.fill(rt, tickets[key], value, entry, options)
    missing = [key for key in keys if key not in values]
    if missing and state.chain.lowers:
        values.update(await _from_below(state, rt, missing, standing, generations, options, tickets))
    return _counted(state, keys, values)


def _counted(state: State, keys: Sequence[str], values: dict[str, Any]) -> dict[str, Any]:
    state.stats.hits += len(values)
    state.stats.misses += len(keys) - len(values)
    return values


async def fresh_entries(
    state: State, rt: Runtime, standing: Mapping[str, Slot], generations: Mapping[str, Generation]
) -> dict[str, StoredEntry]:
    """The fresh, valid entries among slots of the authority; unknown tags of all of them cost one more trip."""
    now = now_ms(rt)
    entries = {
        key: slot.entry
        for key, slot in standing.items()
        if slot.entry is not None and now < slot.entry.fresh_until
    }
    unknown = {tag for entry in entries.values() for tag, _ in entry.tags if tag not in generations}
    if unknown:
        generations = {**generations, **(await state.chain.authority.read(rt, (), sorted(unknown)))[1]}
    state.saw(generations)
    return {key: entry for key, entry in entries.items() if state.born_under(entry, generations)}


async def _from_below(
    state: State,
    rt: Runtime,
    keys: list[str],
    standing: Mapping[str, Slot],
    generations: Mapping[str, Generation],
    options: Options,
    tickets: Mapping[str, Ticket | None],
) -> dict[str, Any]:
    """Looks below under leases of the authority; what has no lease (another load, a write) is served, not stored."""
    try:
        held = await _lease_missing(state, rt, keys, standing, options)
    except TierUnavailable:
        if state.strict:
            raise
        held = {}
    values: dict[str, Any] = {}
    try:
        found = await look_below(state, rt, keys, options, generations, lease=False)
        values = {key: below.value for key, below in found.items() if below.entry is not None}
        leased = [
            (held.pop(key), entry) for key, below in found.items() if (entry := below.entry) and key in held
        ]
        taken = await commit_all(rt, leased)
        for (lease, entry), took in zip(leased, taken, strict=True):
            if took:
                seen = lease.known_since(entry)
                state.fill(rt, tickets[lease.key], values[lease.key], entry, options, seen)
    finally:
        await abandon_all(rt, list(held.values()))
    return values


async def _lease_missing(
    state: State, rt: Runtime, keys: list[str], standing: Mapping[str, Slot], options: Options
) -> dict[str, Held]:
    wanted = {key: standing.get(key) for key in keys}
    free = {key: slot for key, slot in wanted.items() if slot is None or slot.lease is None}
    # Short: nobody loads under it, and a reader that is cancelled in this very moment cannot give it back.
    short = replace(options, lease=min(options.lease, READ_LEASE))
    return await place_leases(state, rt, state.chain.authority, free, short)


async def _below_alone(state: State, rt: Runtime, keys: Sequence[str], options: Options) -> dict[str, Any]:
    """Without the authority's generations only entries without users' tags can be trusted."""
    found = await look_below(state, rt, list(keys), options, None, lease=False)
    return {key: below.value for key, below in found.items() if below.entry is not None}
