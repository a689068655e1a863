"""Write-behind: the real SQLite buffer and the real flusher, under everything that may befall them."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from cachewright.testing.sim import checks, checks_behind
from cachewright.testing.sim.cues import Cue
from cachewright.testing.sim.network import CALM, Faults
from cachewright.testing.sim.ops import Cancelled, CloseCache, Delete, Put, RepositoryRead
from cachewright.testing.sim.ops_behind import Close, Discard, Evict, Flush, PutAll, Replay
from cachewright.testing.sim.plan import Client, DisasterKind, Op, Plan
from cachewright.testing.sim.play import Run
from cachewright.testing.sim.scenario import Scenario
from tests.sim.scenarios.drawing import CHAINS, disasters_of

DATABASE = Faults(before=0.1, after=0.1, lost=0.05, late=0.15)
DISK = Faults(before=0.05)
TIERS = Faults(before=0.03, after=0.03, lost=0.02, late=0.02)


def nothing_older(run: Run) -> list[str]:
    """While tiers fail and the caches serve on, only one's own changes are sure to be seen."""
    return checks.own_changes_are_seen(run) if checks_behind.is_outage(run) else checks.nothing_older(run)


def _clients_of(random: Random, processes: int, choices: list[Op], cancels: float) -> tuple[Client, ...]:
    """Pauses are short, or long enough for a claim to expire or a record to settle."""
    clients = []
    for _ in range(random.randint(2, 5)):
        ops = []
        for _ in range(random.randint(1, 5)):
            longest = random.choice((0.0, 0.0, 0.0, 0.01, 0.1, 1.0, 8.0))
            op = random.choice(choices)
            if random.random() < cancels:
                op = Cancelled(op, random.random() * random.choice((0.01, 0.1, 1.0)))
            ops.append((random.random() * longest, op))
        clients.append(Client(random.randrange(processes), tuple(ops)))
    return tuple(clients)


def _choices(random: Random, keys: tuple[str, ...]) -> list[Op]:
    choices: list[Op] = [Flush(random.choice((0.5, 5.0))), Close(random.choice((0.5, 10.0)))]
    for key in keys:
        choices += [Put(key), Put(key), Delete(key), Evict(key)] + [RepositoryRead(key)] * 5
    if len(keys) > 1:
        choices += [PutAll(keys)] * 3
    return choices


# A reader between the removal of a dead letter and the drop of its slot, or the other way about: chance seldom has it so.
DISCARDED = Plan(
    chain=("redis",),
    processes=2,
    writes="behind",
    clients=(
        Client(0, ((0.1, Put()), (0.4, Discard()))),
        Client(1, ((1.0, RepositoryRead()), (2.0, RepositoryRead()))),
    ),
    cues=(Cue(0, "save k", "refused"), Cue(0, "discard r:k", "stall", 1.0)),
    behind={"max_attempts": 1},
    options={"ttl": 1000},
    quiet=60.0,
)


class _Behind(Scenario):
    """What both have in common."""

    def plan(self, random: Random) -> Plan:
        processes = random.choice((1, 2, 2, 3))
        keys = random.choice((("k",), ("k",), ("k", "m"), ("k", "m", "n")))
        chain = random.choice(CHAINS)
        plan = Plan(
            chain=chain,
            keys=keys,
            processes=processes,
            writes="behind",
            clients=_clients_of(random, processes, _choices(random, keys), random.choice((0.0, 0.1))),
            behind=self._behind(random),
            ordered_saver=random.random() < 0.25,
            saves_many=random.choice((None, 0.0, 0.2)),
            options={"ttl": 1000},
            quiet=150.0,
        )
        plan = self._trouble(random, plan)
        if plan.network != CALM or random.random() < 0.7:
            # What a process has still to tell a tier is told by its next use, and a closed cache may have none.
            return plan
        close = CloseCache(random.choice((0.5, 10.0)))
        closes = Client(random.randrange(processes), ((random.random() * random.choice((0.1, 4.0)), close),))
        return replace(plan, clients=(*plan.clients, closes))

    def _behind(self, random: Random) -> dict[str, Any]:
        return {
            "delay": random.choice((0.0, 0.0, 0.3)),
            "batch_size": random.choice((1, 2, 3)),
            "max_dirty": random.choice((1, 2, 100)),
            "on_full": random.choice(("block", "raise", "through")),
        }

    def _trouble(self, random: Random, plan: Plan) -> Plan:
        servers = [name for name in plan.chain if name != "memory"]
        evictions = disasters_of(random, 2, ("evict",), servers, within=1.0)
        trouble = random.choice(("none", "evictions", "tiers", "database", "crashes", "pauses", "all"))
        if trouble == "none":
            # Rows that are refused are failures too; a claim is then only lost by a flusher that has one.
            return replace(plan, saves_many=plan.saves_many and 0.0, behind={**plan.behind, "claim": 3.0})
        behind = {**plan.behind, "claim": random.choice((0.3, 1.0)), "settle": 4.0}
        plan = replace(plan, disasters=evictions, behind=behind)
        if trouble == "tiers":
            # Without crashes: what a process has still to tell a tier dies with it, which is not promised.
            return replace(plan, network=TIERS)
        if trouble == "evictions":
            return plan
        plan = replace(plan, database=random.choice((CALM, DATABASE)), disk=random.choice((CALM, DISK)))
        if trouble == "database":
            return replace(plan, database=DATABASE)
        kinds: tuple[DisasterKind, ...] = ("crash", "pause")
        if trouble != "all":
            kinds = ("crash",) if trouble == "crashes" else ("pause",)
        if "pause" in kinds:
            # A flusher that is paused before it sends saves whenever it wakes: what settles must outlast that.
            plan = replace(plan, behind={**plan.behind, "settle": 14.0})
        blows = disasters_of(random, 3, kinds, range(plan.processes), within=random.choice((0.2, 3.0)))
        if random.random() < 0.5:
            # Long enough for a claim to be taken over, short enough to meet the others at work.
            blows = tuple(replace(blow, seconds=1.5) for blow in blows)
        return replace(plan, disasters=(*evictions, *blows))


class WritesBehind(_Behind):
    """Writers, readers, flushes; processes crash and pause, the database, the disk or the tiers fail."""

    name = "behind"
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


class DeadLetters(_Behind):
    """Records are given up after a try or two: the newest state still is what everybody reads."""

    name = "dead_letters"
    checks = (
        nothing_older,
        checks.every_call_ends,
        checks.nobody_inherits_a_fate,
        checks_behind.dead_letters_stand,
        checks_behind.saves_in_order,
        checks_behind.last_save_is_newest,
        checks_behind.reads_agree_in_the_end,
    )

    def plan(self, random: Random) -> Plan:
        return DISCARDED if random.random() < 0.02 else super().plan(random)

    def _behind(self, random: Random) -> dict[str, Any]:
        return {**super()._behind(random), "max_dirty": 100, "max_attempts": random.choice((1, 2, 3))}

    def _trouble(self, random: Random, plan: Plan) -> Plan:
        if random.random() < 0.2:
            # A record is discarded for good only where its save cannot land any more: all failures are refusals.
            discards = tuple(
                Client(random.randrange(plan.processes), ((random.random() * 4.0, Discard(key)),) * 2)
                for key in plan.keys
            )
            return replace(plan, database=Faults(before=0.5), clients=plan.clients + discards)
        plan = super()._trouble(random, plan)
        if plan.database != CALM:
            plan = replace(plan, database=Faults(before=0.3, after=0.1, lost=0.05, late=0.1))
        replays = tuple(
            Client(random.randrange(plan.processes), ((random.random() * 6.0, Replay(key)),))
            for key in plan.keys
        )
        return replace(plan, clients=plan.clients + replays)
