"""A cache without a database: plain and atomic operations on one authority."""

from __future__ import annotations

from random import Random

from cachewright.testing.sim import checks, checks_atomic
from cachewright.testing.sim.cues import Cue
from cachewright.testing.sim.network import CALM, Faults
from cachewright.testing.sim.ops import Cancelled
from cachewright.testing.sim.ops_atomic import Add, Fetch, Incr, Load, Remove, Set, Touch
from cachewright.testing.sim.plan import Client, Disaster, Op, Plan
from cachewright.testing.sim.scenario import Scenario
from tests.sim.scenarios.drawing import disasters_of

CHAINS = (("redis",), ("redis",), ("memcached",), ("memory",), ("memory", "redis"), ("redis", "redis2"))
MOST = 8  # operations on the key
# A load whose value the authority takes while a `set` is on its way leases the tier below after that has dropped it: what
# it puts there is older than what was set, and shows once the authority has lost that.
LATE_BELOW = Plan(
    chain=("redis", "redis2"),
    processes=2,
    clients=(
        Client(1, ((0.0, Load()),)),
        Client(0, ((0.1, Set()),)),
        Client(0, ((6.0, Fetch()),)),
    ),
    disasters=(Disaster(5.0, "evict", "redis"),),
    cues=(Cue(1, "swap k", "stall", 1.0, number=2), Cue(0, "store k", "stall", 3.0)),
    network=Faults(slow=0.0),
    options={"ttl": 1000, "on_outage": "serve"},
    quiet=8.0,
)


class AtomicOperations(Scenario):
    """add, touch, incr, set, get, delete of several processes; the network fails, processes crash, callers give up."""

    name = "atomic"
    checks = (checks_atomic.linearizable, checks.every_call_ends, checks.nobody_inherits_a_fate)

    def plan(self, random: Random) -> Plan:
        if random.random() < 0.02:
            return LATE_BELOW
        chain = random.choice(CHAINS)
        # Others' memory is behind by ``local_ttl``: above a shared tier it is one copy for its own process only.
        processes = 1 if chain[0] == "memory" else random.choice((1, 2, 3))
        trouble = "none" if chain == ("memory",) else random.choice(("none", "network", "crashes", "both"))
        below = chain[-1] == "redis2"
        if below:
            # An authority that evicts what others cannot be told of in time: two misfortunes are one too many.
            trouble = random.choice(("none", "crashes"))
        failing = trouble in ("network", "both")
        faults = Faults(before=0.05, after=0.08, lost=0.05, late=0.08) if failing else CALM
        disasters: tuple[Disaster, ...] = ()
        if trouble in ("crashes", "both"):
            disasters = disasters_of(random, 2, ("crash", "pause"), range(processes), within=0.1)
        if below:
            moments = sorted(random.random() * 0.1 for _ in range(random.randint(1, 2)))
            disasters += tuple(Disaster(at, "evict", chain[0]) for at in moments)
        # Also where processes are paused past the deadline of a request: caches that serve on would answer "absent",
        # and keep nothing of a `set`.
        options = {"ttl": 1000, "on_outage": "serve" if trouble == "none" else "raise"}
        return Plan(
            chain=chain,
            processes=processes,
            clients=self._clients(random, processes, random.choice((0.0, 0.0, 0.15)), below),
            disasters=disasters,
            network=faults,
            options=options,
            quiet=8.0,
        )

    def _clients(self, random: Random, processes: int, cancels: float, below: bool) -> tuple[Client, ...]:
        choices: list[Op] = [Set(), Add(), Incr(), Incr(), Remove(), Fetch(), Fetch(), Touch()]
        if below:
            choices += [Load()] * 4  # only loads fill the lower tier
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
