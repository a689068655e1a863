"""Plans that once broke a promise, as small as they could be made, with the seed that gave them their luck."""

from __future__ import annotations

from dataclasses import dataclass

from tests.sim.scenarios import SCENARIOS

from cachewright.testing.sim import Client, Disaster, Faults, Plan, Scenario
from cachewright.testing.sim.ops import Cancelled, Put, RepositoryRead


@dataclass(frozen=True)
class Regression:
    """One finding; its scenario says what must hold."""

    name: str
    seed: int
    scenario: Scenario
    plan: Plan


REGRESSIONS: tuple[Regression, ...] = (
    Regression(
        # A caller who came while a failed load gave its lease back was handed an error that was not its own.
        "a_failed_load_and_one_who_comes_late",
        514,
        SCENARIOS["writes"],
        Plan(
            chain=("redis",),
            processes=2,
            database=Faults(before=0.05, after=0.05, late=0.03),
            options={"ttl": 1000},
            clients=(
                Client(0, ()),
                Client(1, ((0.0, RepositoryRead()),)),
                Client(0, ()),
                Client(1, ((0.00835588, Cancelled(RepositoryRead(), 0.01496414989259492)),)),
            ),
        ),
    ),
    Regression(
        # Memory counted local_ttl from its filling, however long ago the value had been read.
        "a_process_paused_between_its_commit_and_its_filling",
        4055,
        SCENARIOS["writes"],
        Plan(
            chain=("memory", "redis"),
            processes=2,
            disasters=(Disaster(0.010899784220003528, "pause", 0, 7.0),),
            database=Faults(before=0.05, after=0.05, late=0.03),
            options={"ttl": 1000},
            clients=(
                Client(0, ()),
                Client(0, ((0.049147, RepositoryRead()),)),
                Client(0, ((0.0, RepositoryRead()),)),
                Client(1, ((0.0946904, Put()),)),
            ),
        ),
    ),
)
