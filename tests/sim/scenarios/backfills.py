"""Two shared tiers: the authority loses entries that the tier below still has."""

from __future__ import annotations

from random import Random

from cachewright.testing.sim import checks
from cachewright.testing.sim.network import Faults
from cachewright.testing.sim.ops import Change, ChangeUnder, Get, Put, Read, RepositoryGet, RepositoryRead
from cachewright.testing.sim.plan import Disaster, Op, Plan
from cachewright.testing.sim.scenario import Scenario
from tests.sim.scenarios.drawing import LOCAL_TTLS, clients_of, disasters_of

BOTH = (("redis", "redis2"), ("memory", "redis", "redis2"), ("redis", "memcached"))


class Backfills(Scenario):
    """The authority is evicted again and again, so that reads go down and fill up, among changes and writes.

    Writers do not crash here: a crash and an eviction of its intent together cannot be promised anything.
    """

    name = "backfills"
    checks = (
        checks.nothing_older,
        checks.every_call_ends,
        checks.nobody_inherits_a_fate,
        checks.agreement_in_the_end,
    )

    def plan(self, random: Random) -> Plan:
        processes = random.choice((1, 2, 3))
        past: list[Op] = [Read(), Read(), Get(), Change()]
        through: list[Op] = [RepositoryRead(), RepositoryRead(), RepositoryGet(), Put(), ChangeUnder()]
        choices = random.choice((past, through))
        chain = random.choice(BOTH)
        disasters = disasters_of(random, 1, ("pause",), range(processes))
        evicts = choices is past or random.random() < 0.5
        if evicts:
            authority = next(name for name in chain if name != "memory")
            moments = sorted(random.random() * 0.4 for _ in range(random.randint(1, 4)))
            disasters += tuple(Disaster(at, "evict", authority) for at in moments)
        else:
            disasters += disasters_of(random, 1, ("crash",), range(processes))
        # A write whose end nobody knows, and the eviction of its intent: that is two misfortunes as well.
        cancels = 0.0 if evicts and choices is through else random.choice((0.0, 0.2))
        return Plan(
            chain=chain,
            clients=clients_of(random, processes, choices, cancels),
            processes=processes,
            network=Faults(slow=random.choice((0.05, 0.3))),
            disasters=disasters,
            options={"ttl": 1000, "local_ttl": random.choice(LOCAL_TTLS)},
        )
