"""A cache without a database: plain and atomic operations on one authority."""

from __future__ import annotations

from random import Random

from cachewright.testing.sim import checks, checks_atomic
from cachewright.testing.sim.network import CALM, Faults
from cachewright.testing.sim.ops import Cancelled
from cachewright.testing.sim.ops_atomic import Add, Fetch, Incr, Remove, Set, Touch
from cachewright.testing.sim.plan import Client, Disaster, Op, Plan
from cachewright.testing.sim.scenario import Scenario
from tests.sim.scenarios.drawing import disasters_of

MOST = 8  # operations on the key


class AtomicOperations(Scenario):
    """add, touch, incr, set, get, delete of several processes; the network fails, processes crash, callers give up."""

    name = "atomic"
    checks = (checks_atomic.linearizable, checks.every_call_ends, checks.nobody_inherits_a_fate)

    def plan(self, random: Random) -> Plan:
        chain = random.choice((("redis",), ("redis",), ("memcached",), ("memory",)))
        processes = 1 if chain == ("memory",) else random.choice((1, 2, 3))
        trouble = "none" if chain == ("memory",) else random.choice(("none", "network", "crashes", "both"))
        failing = trouble in ("network", "both")
        faults = Faults(before=0.05, after=0.08, lost=0.05, late=0.08) if failing else CALM
        disasters: tuple[Disaster, ...] = ()
        if trouble in ("crashes", "both"):
            disasters = disasters_of(random, 2, ("crash", "pause"), range(processes), within=0.1)
        # Also where processes are paused past the deadline of a request: caches that serve on would answer "absent",
        # and keep nothing of a `set`.
        options = {"ttl": 1000, "on_outage": "serve" if trouble == "none" else "raise"}
        return Plan(
            chain=chain,
            processes=processes,
            clients=self._clients(random, processes, random.choice((0.0, 0.0, 0.15))),
            disasters=disasters,
            network=faults,
            options=options,
            quiet=8.0,
        )

    def _clients(self, random: Random, processes: int, cancels: float) -> tuple[Client, ...]:
        choices: list[Op] = [Set(), Add(), Incr(), Incr(), Remove(), Fetch(), Fetch(), Touch()]
        clients: list[Client] = []
        left = MOST
        while left > 0:
            ops = []
            for _ in range(min(left, random.randint(1, 4))):
                op = random.choice(choices)
                if random.random() < cancels:
                    op = Cancelled(op, random.random() * 0.005)
                # At times long enough for a request that was given up to land first.
                longest = random.choice((0.0, 0.0, 0.0, 0.005, 0.1, 2.0))
                ops.append((random.random() * longest, op))
            left -= len(ops)
            clients.append(Client(random.randrange(processes), tuple(ops)))
        return tuple(clients)
