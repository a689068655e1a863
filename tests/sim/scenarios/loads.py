"""Loads, refreshes and changes past the cache."""

from __future__ import annotations

from random import Random

from cachewright.testing.sim import checks, checks_loads
from cachewright.testing.sim.network import Faults
from cachewright.testing.sim.ops import Change, Get, Read, Refresh
from cachewright.testing.sim.plan import Op, Plan
from cachewright.testing.sim.scenario import Scenario
from tests.sim.scenarios.drawing import CHAINS, LOCAL_TTLS, clients_of


class LoadsAndChanges(Scenario):
    """Readers, refreshers and changes past the cache; nothing fails."""

    name = "loads_and_changes"
    checks = (
        checks.nothing_older,
        checks.one_load_at_a_time,
        checks.every_call_ends,
        checks.nobody_inherits_a_fate,
        checks.agreement_in_the_end,
        checks_loads.what_is_loaded_is_kept,
    )

    def plan(self, random: Random) -> Plan:
        processes = random.choice((1, 2, 3))
        choices: list[Op] = [Read(), Read(), Read(), Change(), Refresh(), Get()]
        return Plan(
            chain=random.choice(CHAINS),
            clients=clients_of(random, processes, choices, random.choice((0.0, 0.0, 0.2))),
            processes=processes,
            network=Faults(slow=random.choice((0.05, 0.3))),
            options={"ttl": 1000, "local_ttl": random.choice(LOCAL_TTLS)},
        )
