"""Values that grow old: stale ones, refreshes ahead of time, loads that fail or take too long."""

from __future__ import annotations

from random import Random
from typing import Any

from cachewright.testing.sim import checks, checks_time
from cachewright.testing.sim.network import CALM, Faults
from cachewright.testing.sim.ops import Change, Get, Read, Refresh
from cachewright.testing.sim.ops_loads import ReadBatch, ReadSlowly, Remove
from cachewright.testing.sim.plan import Client, Disaster, Op, Plan
from cachewright.testing.sim.scenario import Scenario
from tests.sim.scenarios.drawing import CHAINS, ops_of


class Freshness(Scenario):
    """Short lives against pauses as long as they. However old a value may be used, a change ends it."""

    name = "freshness"
    checks = (
        checks.nothing_older,
        checks.one_load_at_a_time,
        checks.every_call_ends,
        checks.nobody_inherits_a_fate,
        checks.agreement_in_the_end,
        checks_time.no_value_outlives_its_life,
        checks_time.no_error_where_a_stale_value_may_answer,
        checks_time.timeouts_hold,
    )

    def plan(self, random: Random) -> Plan:
        processes, options = random.choice((1, 2, 3)), _options(random)
        slow = random.choice((0.1, 1.0))
        changes: list[Op] = [Change(), Remove()]
        choices: list[Op] = [
            *[Read()] * 3,
            ReadSlowly(seconds=slow),
            ReadBatch(random.choice((("k",), ("k", "l")))),
            Read("l"),
            Refresh(),
            Get(),
            *random.choice(([], changes)),
        ]
        chain = random.choice(CHAINS)
        # What the authority loses comes back from below, with what is left of its life.
        evictions = [random.random() * 2.0 for _ in range(random.choice((0, 3)))] if "redis2" in chain else []
        return Plan(
            chain=chain,
            disasters=tuple(Disaster(at, "evict", "redis") for at in evictions),
            keys=("k", "l"),
            clients=tuple(
                Client(
                    random.randrange(processes),
                    ops_of(random, random.randint(1, 6), choices, longest=random.choice((0.1, 1.0, 3.0))),
                )
                for _ in range(random.randint(2, 5))
            ),
            processes=processes,
            database=random.choice((CALM, Faults(before=0.2, after=0.1, lost=0.05))),
            options=options,
        )


def _options(random: Random) -> dict[str, Any]:
    """A short ttl, and any of the others."""
    options: dict[str, Any] = {
        "ttl": random.choice((0.05, 0.3, 1.0)),
        "jitter": random.choice((0.0, 0.1, 0.5)),
    }
    options["local_ttl"] = random.choice((0.01, 0.5, 5.0))
    others: dict[str, tuple[Any, ...]] = {
        "stale_while_revalidate": (0.3, 5.0),
        "stale_if_error": (0.3, 5.0),
        "refresh_ahead": (True, 0.3, 0.8),
        "soft_timeout": (0.05, 0.5),
        "load_timeout": (0.1, 0.8),
        "error_ttl": (0.05, 3.0),
        "negative_ttl": (0.02, 0.5),
    }
    for name, values in others.items():
        if random.random() < 0.4:
            options[name] = random.choice(values)
    return options
