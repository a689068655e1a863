"""Processes that crash, are paused, or have wrong clocks; stores that lose what they held."""

from __future__ import annotations

from random import Random

from cachewright.testing.sim import checks, checks_loads
from cachewright.testing.sim.network import CALM, Faults
from cachewright.testing.sim.ops import Change, Get, Read, Refresh
from cachewright.testing.sim.ops_loads import ReadBatch, ReadSlowly
from cachewright.testing.sim.plan import Client, Disaster, DisasterKind, Op, Plan
from cachewright.testing.sim.scenario import Scenario
from tests.sim.scenarios.drawing import CHAINS, ops_of

KINDS: tuple[DisasterKind, ...] = ("crash", "pause", "clock", "evict", "empty")
LEASES = (0.5, 1.0, 5.0)


def _clients(random: Random, processes: int, lease: float) -> tuple[Client, ...]:
    choices: list[Op] = [
        Read(),
        ReadSlowly(seconds=lease * 0.8),
        ReadSlowly(seconds=lease * 3),
        ReadBatch(("k", "l")),
        ReadBatch(("k", "l"), seconds=lease * 2),
        Read("l"),
        Refresh(),
        Get(),
        Change(),
        Change("l"),
    ]
    return tuple(
        Client(
            random.randrange(processes),
            ops_of(random, random.randint(1, 4), choices, longest=random.choice((0.1, lease, 4.0))),
        )
        for _ in range(random.randint(2, 5))
    )


def _disasters(
    random: Random, kinds: tuple[DisasterKind, ...], processes: int, chain: tuple[str, ...], within: float
) -> tuple[Disaster, ...]:
    servers = [name for name in chain if name != "memory"]
    found = []
    for _ in range(random.randint(1, 4)):
        kind = random.choice(kinds)
        target = (
            random.randrange(processes) if kind in ("crash", "pause", "clock") else random.choice(servers)
        )
        seconds = random.choice((-2.0, 2.0)) if kind == "clock" else random.choice((0.2, 2.0, 7.0))
        found.append(Disaster(random.random() * within, kind, target, seconds))
    return tuple(found)


class Lives(Scenario):
    """All that ends a lease before its load. Changes go past the cache: they need no intent that could be lost too."""

    name = "lives"
    checks = (
        checks.nothing_older,
        checks_loads.one_load_where_clocks_agree,
        checks.every_call_ends,
        checks.nobody_inherits_a_fate,
        checks.agreement_in_the_end,
    )

    def plan(self, random: Random) -> Plan:
        processes, chain, lease = random.choice((1, 2, 3)), random.choice(CHAINS), random.choice(LEASES)
        most = random.choice((0.0, 0.2, 0.4))
        # Two slow answers in a row outlast a lease of half a second, and no heartbeat can keep it.
        network = CALM if lease > 0.5 else Faults(slow=0.0)
        kinds = KINDS if random.random() < 0.3 else tuple(kind for kind in KINDS if kind != "clock")
        return Plan(
            chain=chain,
            keys=("k", "l"),
            clients=_clients(random, processes, lease),
            processes=processes,
            skews=tuple(random.uniform(-most, most) for _ in range(processes)),
            disasters=_disasters(random, kinds, processes, chain, random.choice((0.2, 3 * lease))),
            network=network,
            options={"ttl": 1000, "lease": lease, "local_ttl": random.choice((0.01, 5.0))},
        )


class OldData(Scenario):
    """A server restarts with what it held a while ago: what was dropped since is back, until its ttl."""

    name = "old_data"
    checks = (
        checks.every_call_ends,
        checks.nobody_inherits_a_fate,
        checks.agreement_in_the_end,
    )

    def plan(self, random: Random) -> Plan:
        processes, chain, lease = random.choice((1, 2, 3)), random.choice(CHAINS), random.choice(LEASES)
        kinds: tuple[DisasterKind, ...] = ("old", "old", "crash", "pause", "evict")
        return Plan(
            chain=chain,
            keys=("k", "l"),
            clients=_clients(random, processes, lease),
            processes=processes,
            disasters=_disasters(random, kinds, processes, chain, 3 * lease),
            options={"ttl": 5, "lease": lease},
        )
