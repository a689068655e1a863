"""Entries with tags, told of changes by their tags and by ``clear``."""

from __future__ import annotations

from random import Random

from cachewright.testing.sim import checks
from cachewright.testing.sim.ops import Change, ChangeTag, Clear, Get, ReadTagged
from cachewright.testing.sim.ops_loads import ReadBatch, ReadLate, RefreshTagged
from cachewright.testing.sim.plan import Op, Plan
from cachewright.testing.sim.scenario import Scenario
from tests.sim.scenarios.drawing import CHAINS, clients_of

MIXED = (("memory", "memcached"), ("redis", "memcached"), ("memcached", "redis"))


class Tags(Scenario):
    """Every entry of a key carries the same tags, whoever loads it: a change may name any one of them."""

    name = "tags"
    checks = (
        checks.nothing_older,
        checks.one_load_at_a_time,
        checks.every_call_ends,
        checks.nobody_inherits_a_fate,
        checks.agreement_in_the_end,
    )

    def plan(self, random: Random) -> Plan:
        processes = random.choice((1, 2, 3))
        one: list[Op] = [
            ReadTagged("a", ("t", "own")),
            ReadLate("a", ("t",), ("own",)),
            ReadLate("a", ("t", "own")),
            RefreshTagged("a", ("t", "own")),
            Get("a"),
            ChangeTag(("a",), "own"),
            Change("a"),
            Clear("a"),
        ]
        both: list[Op] = [
            ReadTagged("b", ("t",)),
            ReadLate("b", ("t",)),
            ReadBatch(("a", "b"), tags=("t", "own")),
            Get("b"),
            ChangeTag(("a", "b"), "t"),
            ChangeTag(("b",), "t"),
        ]
        choices = random.choice((one[:3] + one[5:7], one, one + both))
        return Plan(
            chain=random.choice(CHAINS + MIXED),
            keys=("a", "b"),
            clients=clients_of(random, processes, choices, random.choice((0.0, 0.0, 0.2))),
            processes=processes,
            # A short one lets others' changes be looked for behind memory too.
            options={"ttl": 1000, "local_ttl": random.choice((0.01, 5.0))},
        )
