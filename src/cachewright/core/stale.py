"""Stale values: why one may answer now, and those that stand while somebody waits too long for their load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from cachewright.core.slot import Slot, StoredEntry
from cachewright.core.state import State, now_ms
from cachewright.errors import TierUnavailable
from cachewright.events import StaleServed
from cachewright.options import MISSING
from cachewright.runtime.base import Runtime

__all__ = ["answers_at_once", "failed_lately", "served_stale", "stale_now"]


def failed_lately(slot: Slot | None, now: int) -> bool:
    """Whether a load of the key failed within ``error_ttl``, so that the origin has rest."""
    return slot is not None and now < slot.retry_at


def answers_at_once(entry: StoredEntry, slot: Slot | None, now: int) -> Literal["error", "revalidate"] | None:
    """Why a stale entry may be served before anybody asks the origin; None: it may not.

    ``error``: a load of it failed lately. ``revalidate``: a refresh may run behind, unless one failed lately.
    """
    if failed_lately(slot, now) and now < entry.sie_until:
        return "error"
    return "revalidate" if now < entry.swr_until else None


async def stale_now(
    state: State,
    rt: Runtime,
    keys: Sequence[str],
    tags: tuple[str, ...],
    type_: Any,
    *,
    on_error: bool = False,
) -> dict[str, Any]:
    """The stale values that stand now, read anew: what a load read before this caller came may be older.

    Args:
        on_error: only those that may answer in place of an error; else all that are usable at all.
    """
    values: dict[str, Any] = {}
    try:
        standing, generations = await state.chain.authority.read(rt, keys, state.tags_of(tags))
        for key, slot in standing.items():
            entry = slot.entry
            if entry is None or now_ms(rt) >= (entry.sie_until if on_error else entry.ends):
                continue
            if await state.is_valid(rt, entry, generations):
                value = state.value_of(key, entry, type_, state.chain.authority.tier.name)
                if value is not MISSING:
                    values[key] = value
    except TierUnavailable:
        return {}
    return values


def served_stale(state: State, keys: Sequence[str], why: str) -> None:
    """Counts and tells it."""
    for key in keys:
        state.stats.stale_served += 1
        state.hub.emit(StaleServed(key, why))
