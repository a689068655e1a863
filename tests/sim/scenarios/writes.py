"""Writes through the cache."""

from __future__ import annotations

from random import Random

from tests.sim.scenarios.drawing import CHAINS, clients_of, disasters_of

from cachewright.testing.sim import checks
from cachewright.testing.sim.network import Faults
from cachewright.testing.sim.ops import Put, RepositoryRead
from cachewright.testing.sim.plan import Op, Plan
from cachewright.testing.sim.scenario import Scenario
from cachewright.testing.sim.setting import Writes

NOW: tuple[Writes, ...] = ("through", "around")


class WritesNow(Scenario):
    """Writers through the cache and readers; processes crash and pause, the database fails."""

    name = "writes"
    checks = (
        checks.nothing_older,
        checks.every_call_ends,
        checks.nobody_inherits_a_fate,
        checks.agreement_in_the_end,
    )

    def plan(self, random: Random) -> Plan:
        processes = random.choice((2, 3))
        choices: list[Op] = [RepositoryRead(), RepositoryRead(), Put()]
        return Plan(
            chain=random.choice(CHAINS),
            clients=clients_of(random, processes, choices, 0.1),
            processes=processes,
            writes=random.choice(NOW),
            disasters=disasters_of(random, 2, ("crash", "pause"), range(processes)),
            database=Faults(before=0.05, after=0.05, late=0.03),
            options={"ttl": 1000},
        )
