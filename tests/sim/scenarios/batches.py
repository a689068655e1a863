"""Loads of many keys, which overlap with each other and with everything else."""

from __future__ import annotations

from random import Random

from cachewright.testing.sim import checks
from cachewright.testing.sim.network import CALM, Faults
from cachewright.testing.sim.ops import Change, Get, Read, Refresh
from cachewright.testing.sim.ops_loads import ReadBatch
from cachewright.testing.sim.plan import Op, Plan
from cachewright.testing.sim.scenario import Scenario
from tests.sim.scenarios.drawing import CHAINS, clients_of

KEYS = ("a", "b", "c", "d")


class Batches(Scenario):
    """One to four keys at once; some left out by their loader, some failing, single reads and changes among them."""

    name = "batches"
    checks = (
        checks.nothing_older,
        checks.one_load_at_a_time,
        checks.every_call_ends,
        checks.nobody_inherits_a_fate,
        checks.agreement_in_the_end,
    )

    def plan(self, random: Random) -> Plan:
        processes = random.choice((1, 2, 3))
        choices: list[Op] = [_batch(random) for _ in range(5)]
        for key in random.sample(KEYS, 2):
            choices += [Read(key), Change(key), Refresh(key), Get(key)]
        return Plan(
            chain=random.choice(CHAINS),
            keys=KEYS,
            clients=clients_of(random, processes, choices, random.choice((0.0, 0.0, 0.2))),
            processes=processes,
            database=random.choice((CALM, CALM, Faults(before=0.05, after=0.05, lost=0.02))),
            options={"ttl": 1000, "local_ttl": random.choice((0.01, 5.0))},
        )


def _batch(random: Random) -> Op:
    keys = tuple(random.sample(KEYS, random.randint(1, 4)))
    if random.random() < 0.6:
        return ReadBatch(keys)
    return ReadBatch(
        keys,
        leaves_out=tuple(key for key in keys if random.random() < 0.2),
        failing=tuple(key for key in keys if random.random() < 0.2),
    )
