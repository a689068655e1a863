"""Caches that are closed while calls are under way on them, and used again."""

from __future__ import annotations

from random import Random

from cachewright.testing.sim import checks
from cachewright.testing.sim.network import CALM, Faults
from cachewright.testing.sim.ops import (
    Change,
    ChangeTag,
    CloseCache,
    Get,
    Put,
    ReadTagged,
    RepositoryRead,
)
from cachewright.testing.sim.ops_loads import ReadBatch, ReadSlowly
from cachewright.testing.sim.plan import Op, Plan
from cachewright.testing.sim.scenario import Scenario
from cachewright.testing.sim.setting import Writes
from tests.sim.scenarios.drawing import CHAINS, clients_of

NOW: tuple[Writes, ...] = ("through", "around")


class Closes(Scenario):
    """Loads, batches, refreshes behind readers and writes, cut by a close of their own process's cache.

    What was under way stores nothing any more, its leases end by themselves, every call gets its answer, and nothing
    older comes back.
    """

    name = "closes"
    checks = (
        checks.nothing_older,
        checks.every_call_ends,
        checks.nobody_inherits_a_fate,
        checks.agreement_in_the_end,
    )

    def plan(self, random: Random) -> Plan:
        past: list[Op] = [
            ReadTagged(),
            ReadTagged(),
            ReadSlowly(seconds=0.3, tags=("t",)),
            ReadBatch(("k", "l"), tags=("t",)),
            Get(),
            Change(),
            ChangeTag(("k", "l")),
        ]
        through: list[Op] = [RepositoryRead(), RepositoryRead(), Get(), Put(), Put()]
        choices = [*random.choice((past, through)), CloseCache(), CloseCache()]
        processes = random.choice((1, 2, 2))
        stale = {"ttl": 0.05, "stale_while_revalidate": 5.0, "stale_if_error": 5.0}
        return Plan(
            chain=random.choice((*CHAINS, ("memory",))) if processes == 1 else random.choice(CHAINS),
            keys=("k", "l"),
            clients=clients_of(random, processes, choices, random.choice((0.0, 0.2))),
            processes=processes,
            writes=random.choice(NOW),
            database=random.choice((CALM, CALM, Faults(before=0.1, after=0.1))),
            options=random.choice(({"ttl": 1000}, {"ttl": 1000, "local_ttl": 0.01}, stale)),
        )
