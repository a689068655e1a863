"""Servers that are down or hung, requests and answers that are lost or late."""

from __future__ import annotations

from random import Random

from cachewright.testing.sim import checks, checks_time
from cachewright.testing.sim.network import Faults
from cachewright.testing.sim.ops import Change, ChangeTag, Clear, Get, Put, ReadTagged, RepositoryRead
from cachewright.testing.sim.ops_loads import ReadBatch
from cachewright.testing.sim.plan import Client, Disaster, DisasterKind, Op, Plan
from cachewright.testing.sim.scenario import Scenario
from cachewright.testing.sim.setting import Writes
from tests.sim.scenarios.drawing import CHAINS, ops_of

KINDS: tuple[DisasterKind, ...] = ("down", "hang")
NOW: tuple[Writes, ...] = ("through", "around")
PAST: list[Op] = [
    ReadTagged(),
    ReadTagged(),
    ReadBatch(("k", "l"), tags=("t",)),
    Get(),
    Change(),
    ChangeTag(),
    Clear(),
]
THROUGH: list[Op] = [RepositoryRead(), RepositoryRead(), Put()]


def _clients(random: Random, processes: int, choices: list[Op], cancels: float) -> tuple[Client, ...]:
    """Some in quick succession, some over seconds, so that an outage begins and ends among their calls."""
    return tuple(
        Client(
            random.randrange(processes),
            ops_of(random, random.randint(1, 5), choices, cancels, random.choice((0.1, 1.0, 4.0))),
        )
        for _ in range(random.randint(2, 5))
    )


def _choices(random: Random) -> list[Op]:
    """All at once, or one kind of change among readers: it is seldom that a few calls show what it did not do."""
    few: list[Op] = [ReadTagged(), ReadTagged(), random.choice((Change(), ChangeTag(), Clear()))]
    return random.choice((PAST, THROUGH, few))


def _outages(random: Random, chain: tuple[str, ...]) -> tuple[Disaster, ...]:
    servers = [name for name in chain if name != "memory"]
    longest = random.choice((0.2, 2.0))
    return tuple(
        Disaster(
            random.random() * longest,
            random.choice(KINDS),
            random.choice(servers),
            random.choice((0.2, 0.7, 2.0, 7.0)),
        )
        for _ in range(random.randint(0, 3))
    )


def _network(random: Random) -> Faults:
    # No slow answers: the bounds on calls count what fails, and an answer that takes 0.4 s is none of that.
    before, after, lost, late = (random.choice((0.0, 0.0, 0.05, 0.2)) for _ in range(4))
    return Faults(before=before, after=after, lost=lost, late=late, slow=0.0)


class Outages(Scenario):
    """``on_outage="serve"``: calls go on without the tier; what it missed it hears of first.

    Others may be served what they find there until the replay, so only a process's own changes are looked for; and
    nobody crashes, for what is to be replayed lives in a process.
    """

    name = "outages"
    checks = (
        checks.own_changes_are_seen,
        checks_time.calls_end_in_time,
        checks.every_call_ends,
        checks.nobody_inherits_a_fate,
        checks.agreement_in_the_end,
    )

    def plan(self, random: Random) -> Plan:
        processes, chain = random.choice((1, 2, 3)), random.choice(CHAINS)
        return Plan(
            chain=chain,
            keys=("k", "l"),
            clients=_clients(random, processes, _choices(random), random.choice((0.0, 0.1))),
            processes=processes,
            writes=random.choice(NOW),
            disasters=_outages(random, chain),
            network=_network(random),
            options={"ttl": 1000},
        )


class OutagesRaised(Scenario):
    """``on_outage="raise"``: what cannot be done everywhere raises, and what was acknowledged holds for everybody."""

    name = "outages_raised"
    checks = (
        checks.nothing_older,
        checks_time.calls_end_in_time,
        checks.every_call_ends,
        checks.nobody_inherits_a_fate,
        checks.agreement_in_the_end,
    )

    def plan(self, random: Random) -> Plan:
        processes, chain = random.choice((1, 2, 3)), random.choice(CHAINS)
        return Plan(
            chain=chain,
            keys=("k", "l"),
            clients=_clients(random, processes, _choices(random), random.choice((0.0, 0.1))),
            processes=processes,
            writes=random.choice(NOW),
            disasters=_outages(random, chain),
            network=_network(random),
            options={"ttl": 1000, "on_outage": "raise", "local_ttl": random.choice((0.01, 5.0))},
        )
