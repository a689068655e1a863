"""Refreshing before an entry is stale: which read starts it, and from when on the core must see the reads.

XFetch: Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015. Each read
refreshes early with a probability that grows towards expiry, at the scale of what the load takes: at t before the end,
``exp(-t / load time)``. At 1,000 reads a second and a load of one second the first one does so about seven seconds early.
"""

from __future__ import annotations

import math

from cachewright.core.slot import NEVER, StoredEntry
from cachewright.options import Options
from cachewright.runtime.base import Runtime

__all__ = ["is_for_core", "refresh_is_due", "serve_until"]


def refresh_is_due(rt: Runtime, entry: StoredEntry, options: Options) -> bool:
    """Whether this read should start a refresh although the entry is fresh."""
    ahead = options.refresh_ahead
    if ahead is False or entry.fresh_until >= NEVER:
        return False
    now = int(rt.now() * 1000)
    if ahead is True:
        return now - entry.cost_us / 1000 * math.log(max(rt.random(), 1e-12)) >= entry.fresh_until
    return now >= entry.born + (entry.fresh_until - entry.born) * ahead


def serve_until(born: int, fresh_until: int, cost: float, options: Options) -> int:
    """Until when memory may answer for an entry without asking the core.

    Normally that is ``fresh_until``. With ``refresh_ahead`` the core must see some reads before: from the given
    fraction of the life on, or, for XFetch, from where a refresh becomes likelier than one read in 20,000.
    """
    ahead = options.refresh_ahead
    if ahead is False or fresh_until >= NEVER:
        return fresh_until
    if ahead is True:
        return fresh_until - int(cost * 1000 * math.log(20_000))
    return born + int((fresh_until - born) * ahead)


def is_for_core(rt: Runtime, entry: StoredEntry | None, options: Options) -> bool:
    """Whether the core must see this read of what process memory holds.

    An entry's deadline there goes by the options that it was stored with; those of this call may refresh earlier.
    """
    if entry is None or options.refresh_ahead is False:
        return False
    return rt.now() * 1000 >= serve_until(entry.born, entry.fresh_until, entry.cost_us / 1e6, options)
