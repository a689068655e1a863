"""Counters. Plain additions without a lock: under races a count may fall short by a few, and a hit stays cheap."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["Stats"]


@dataclass(slots=True)
class Stats:
    """What one cache has done since it was made.

    Attributes:
        hits: reads answered by a fresh entry of any tier, those of ``local_hits`` aside.
        local_hits: reads that process memory answered without the core.
        misses: reads that found nothing fresh.
        loads: loaders that returned.
        load_failures: loaders that raised.
        load_seconds: time spent in loaders.
        stale_served: reads answered by a stale entry.
        waits: times that this process waited for another one's load.
        lost_leases: loads whose value was not stored because the key changed meanwhile.
        stores: entries stored by ``set``, ``add`` and writes.
        drops: keys dropped.
        saves: values written through to the origin.
    """

    hits: int = 0
    local_hits: int = 0
    misses: int = 0
    loads: int = 0
    load_failures: int = 0
    load_seconds: float = 0.0
    stale_served: int = 0
    waits: int = 0
    lost_leases: int = 0
    stores: int = 0
    drops: int = 0
    saves: int = 0

    def as_dict(self) -> dict[str, float]:
        """All counters by name."""
        return asdict(self)
