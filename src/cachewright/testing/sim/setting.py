"""What a run is set in: the chain, the promises of its caches, and what may go wrong on the way. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cachewright.testing.sim.network import CALM, Faults

__all__ = ["Setting", "Writes"]

Writes = Literal["through", "around", "behind"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where a run takes place.

    Attributes:
        chain: the tiers, nearest first: ``"memory"``, ``"redis"``, ``"redis2"``, ``"memcached"`` …: each name is one
            server, of the kind that the name begins with.
        keys: the keys, each with a value in the database from the start.
        processes: how many.
        skews: by how much their clocks differ from true time, in seconds.
        writes: how the repository of each process writes.
        network, database, disk: what may go wrong on the way to tiers, the database, the buffer.
        options: of the caches.
        behind: options of write-behind.
        ordered_saver: the database refuses older sequences, and says so.
        saves_many: many writes are saved in one trip, and each fails by itself with this chance; None: one by one.
        horizon: virtual seconds in which every call must have ended.
        quiet: virtual seconds without faults before the last look.
    """

    chain: tuple[str, ...]
    keys: tuple[str, ...] = ("k",)
    processes: int = 1
    skews: tuple[float, ...] = ()
    writes: Writes = "through"
    network: Faults = CALM
    database: Faults = CALM
    disk: Faults = CALM
    options: Mapping[str, Any] = field(default_factory=dict)
    behind: Mapping[str, Any] = field(default_factory=dict)
    ordered_saver: bool = False
    saves_many: float | None = None
    horizon: float = 120.0
    quiet: float = 40.0
