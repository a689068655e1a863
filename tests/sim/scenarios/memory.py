"""Process memory alone: leases and flights without any server."""

from __future__ import annotations

from random import Random

from cachewright.testing.sim import checks, checks_loads
from cachewright.testing.sim.network import CALM, Faults
from cachewright.testing.sim.ops import Change, ChangeTag, Clear, Get, Put, ReadTagged, RepositoryRead
from cachewright.testing.sim.ops_loads import ReadBatch, ReadLate, RefreshTagged
from cachewright.testing.sim.plan import Op, Plan
from cachewright.testing.sim.scenario import Scenario
from cachewright.testing.sim.setting import Writes
from tests.sim.scenarios.drawing import clients_of

NOW: tuple[Writes, ...] = ("through", "around")


class MemoryAlone(Scenario):
    """Several clients of one process, whose tasks take turns at every await point and are cancelled at some."""

    name = "memory_alone"
    checks = (
        checks.nothing_older,
        checks_loads.one_load_between_changes,
        checks.every_call_ends,
        checks.nobody_inherits_a_fate,
        checks.agreement_in_the_end,
    )

    def plan(self, random: Random) -> Plan:
        past: list[Op] = [
            ReadTagged(),
            ReadTagged(),
            ReadLate(),
            ReadBatch(("k", "l"), tags=("t",)),
            RefreshTagged(),
            Get(),
            Change(),
            ChangeTag(("k", "l")),
            Clear(),
        ]
        through: list[Op] = [RepositoryRead(), RepositoryRead(), Put()]
        return Plan(
            chain=("memory",),
            keys=("k", "l"),
            clients=clients_of(random, 1, random.choice((past, through)), random.choice((0.0, 0.3))),
            writes=random.choice(NOW),
            database=random.choice((CALM, CALM, Faults(before=0.05, after=0.05, late=0.03))),
            options={"ttl": 1000},
        )
