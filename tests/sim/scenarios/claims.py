"""Write-behind with misfortune at chosen moments: between a claim and its save, a save and its acknowledgement, and so on.

Faults drawn for every request seldom meet in the few steps that matter; here each plan aims one, two or three of them.
The interleavings that have names are in `tests.sim.interleavings`.
"""

from __future__ import annotations

from random import Random

from cachewright.testing.sim import checks, checks_behind
from cachewright.testing.sim.cues import FATES, Cue, CueKind, Moment
from cachewright.testing.sim.network import Faults
from cachewright.testing.sim.ops import Delete, Put, RepositoryRead
from cachewright.testing.sim.ops_behind import Evict, Flush
from cachewright.testing.sim.plan import Client, Op, Plan
from cachewright.testing.sim.scenario import Scenario
from tests.sim.scenarios.behind import nothing_older

CHAINS = (("redis",), ("redis",), ("redis", "redis2"), ("memcached",))
STEADY = Faults(slow=0.0)
REQUESTS = ("save k", "save k", "acknowledge", "append r:k", "claim", "look at r:k", "load k", "drop r:k")
SPAN = 4.0  # seconds over which things happen
LONGEST = 2.0  # of one cue; `settle` outlasts three of them on one save, its deadline and its being late


# What it takes for a key to be in two hands: one who stops at his save, and one who takes over and is slow.
TAKEOVER = (Cue(0, "save k", "pause", LONGEST, "answered"), Cue(1, "save k", "stall", 2 * LONGEST))
# A buffer that stays full, and a save past it that is slow.
FULL = (
    Cue(0, "save m", "stall", SPAN),
    Cue(0, "save k", "stall", LONGEST),
    Cue(0, "acknowledge r:k", "crash", 0.3, "answered"),
)


def _cues(random: Random, processes: int, kinds: tuple[CueKind, ...]) -> tuple[Cue, ...]:
    found = []
    for _ in range(random.randint(1, 3)):
        text, kind = random.choice(REQUESTS), random.choice(kinds)
        moments: tuple[Moment, ...] = ("before", "answered")
        if kind in FATES:
            # A disk of one's own loses no answers, and what tiers do then is other scenarios' affair.
            text, moments = "save k", ("before",)
        elif kind != "stall":
            moments = ("before", "landed", "answered")
        elif text == "claim":
            # Nobody renews a claim before he hears of it: one that is told late may be another's by then.
            moments = ("before",)
        process, number = random.randrange(processes), random.choice((1, 1, 2))
        found.append(
            Cue(process, text, kind, random.choice((0.3, 1.0, LONGEST)), random.choice(moments), number)
        )
    return tuple(found)


def _clients(random: Random, processes: int, ops: list[Op]) -> tuple[Client, ...]:
    return tuple(
        Client(random.randrange(processes), ((random.random() * SPAN, random.choice(ops)),))
        for _ in range(random.randint(3, 8))
    )


class _Aimed(Scenario):
    """What the scenarios of this module have in common."""

    def plan(self, random: Random) -> Plan:
        processes = random.choice((2, 2, 3))
        kinds: tuple[CueKind, ...] = random.choice(
            (
                ("stall",),
                ("stall", "pause"),
                ("stall", "crash"),
                ("stall", "pause", "crash", "broken", "late"),
            )
        )
        full = random.random() < 0.3
        cues = _cues(random, processes, kinds)
        if random.random() < 0.3:
            cues = FULL if full else TAKEOVER
        ops: list[Op] = [Put(), Put(), Delete(), RepositoryRead(), RepositoryRead(), RepositoryRead()]
        ops += [Put("m")] * 2 if full else [Evict(), Evict(), Flush(30.0)]
        return Plan(
            chain=random.choice(CHAINS),
            keys=("k", "m") if full else ("k",),
            processes=processes,
            writes="behind",
            clients=(
                Client(0, ((random.random() * 0.2, Put("m" if full else "k")),)),
                *_clients(random, processes, ops),
            ),
            cues=cues,
            behind={
                "claim": random.choice((0.3, 0.3, 1.0, 3000.0)),
                "settle": 9.0,
                "delay": random.choice((0.0, 0.0, 0.3, 3.0)),
                **(
                    {"max_dirty": 1, "on_full": random.choice(("through", "through", "block"))}
                    if full
                    else {}
                ),
            },
            ordered_saver=random.random() < 0.1,
            network=STEADY,
            database=STEADY,
            disk=STEADY,
            options={"ttl": 1000},
            quiet=120.0,
        )


class Claims(_Aimed):
    """Claims, takeovers, acknowledgements, settling, saves through a full buffer; keys evicted while they are dirty."""

    name = "claims"
    checks = (
        nothing_older,
        checks.every_call_ends,
        checks.nobody_inherits_a_fate,
        checks.agreement_in_the_end,
        checks.every_write_is_saved,
        checks_behind.saves_in_order,
        checks_behind.last_save_is_newest,
        checks_behind.flushed_means_saved,
        checks_behind.reads_agree_in_the_end,
    )
