"""Writes through the cache."""

from __future__ import annotations

from random import Random

from cachewright.testing.sim import checks, checks_loads
from cachewright.testing.sim.network import Faults
from cachewright.testing.sim.ops import ChangeUnder, Put, RepositoryGet, RepositoryRead
from cachewright.testing.sim.plan import Client, Disaster, Op, Plan
from cachewright.testing.sim.scenario import Scenario
from cachewright.testing.sim.setting import Writes
from tests.sim.scenarios.drawing import CHAINS, LOCAL_TTLS, clients_of, disasters_of, ops_of

NOW: tuple[Writes, ...] = ("through", "around")


class WritesNow(Scenario):
    """Writers through the cache and past it, and readers; processes crash and pause, the database fails."""

    name = "writes"
    checks = (
        checks.nothing_older,
        checks.every_call_ends,
        checks.nobody_inherits_a_fate,
        checks.agreement_in_the_end,
        checks_loads.what_is_loaded_is_kept,
    )

    def plan(self, random: Random) -> Plan:
        processes = random.choice((2, 3))
        choices: list[Op] = [RepositoryRead(), RepositoryRead(), RepositoryGet(), Put(), Put()]
        if random.random() < 0.5:
            choices.append(ChangeUnder())
        return Plan(
            chain=random.choice(CHAINS),
            clients=clients_of(random, processes, choices, 0.1),
            processes=processes,
            writes=random.choice(NOW),
            disasters=disasters_of(random, 2, ("crash", "pause"), range(processes)),
            database=Faults(before=0.05, after=0.05, late=0.03),
            options={"ttl": 1000, "local_ttl": random.choice(LOCAL_TTLS)},
        )


class WritersThatCrash(Scenario):
    """One writer whose process crashes somewhere in its write, over two shared tiers, among slow readers."""

    name = "writers_that_crash"
    checks = WritesNow.checks

    def plan(self, random: Random) -> Plan:
        slow = Faults(slow=0.4)
        readers = tuple(
            Client(random.choice((1, 2)), ops_of(random, random.randint(1, 3), [RepositoryRead()]))
            for _ in range(random.randint(2, 4))
        )
        return Plan(
            chain=random.choice((("redis", "redis2"), ("redis", "memcached"), ("memory", "redis", "redis2"))),
            clients=(Client(0, ((random.random() * 0.2, Put()),)), *readers),
            processes=3,
            writes=random.choice(NOW),
            network=slow,
            database=slow,
            disasters=(Disaster(0.05 + random.random() * 0.8, "crash", 0, 0.2),),
            options={"ttl": 1000, "local_ttl": random.choice(LOCAL_TTLS)},
        )
