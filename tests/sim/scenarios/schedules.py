"""Scheduled refreshes: an election over the shared tier for each run."""

from __future__ import annotations

from random import Random

from cachewright.testing.sim import checks, checks_schedule
from cachewright.testing.sim.network import CALM, Faults
from cachewright.testing.sim.ops import Change, Get, Read
from cachewright.testing.sim.ops_schedule import Schedule
from cachewright.testing.sim.plan import Client, Disaster, Op, Plan
from cachewright.testing.sim.scenario import Scenario
from tests.sim.scenarios.drawing import CHAINS, disasters_of


class ScheduledRefreshes(Scenario):
    """Two or three processes schedule one key; they crash, pause, have wrong clocks; the database fails and changes."""

    name = "schedules"
    checks = (
        checks.nothing_older,
        checks.every_call_ends,
        checks.nobody_inherits_a_fate,
        checks.agreement_in_the_end,
        checks_schedule.one_run_an_interval,
        checks_schedule.found_done_is_done,
        checks_schedule.done_means_loaded,
        checks_schedule.no_run_is_lost,
        checks_schedule.good_values_stay,
    )

    def plan(self, random: Random) -> Plan:
        processes = random.choice((2, 3))
        chain = random.choice(CHAINS)
        every = random.choice((0.7, 1.5))
        return Plan(
            chain=chain,
            processes=processes,
            skews=self._skews(random, processes),
            clients=(*self._schedulers(random, processes, every), *self._others(random, processes)),
            disasters=self._disasters(random, processes, chain),
            database=random.choice((CALM, Faults(before=0.2, after=0.05, late=0.02))),
            options={"ttl": 1000, "lease": 1.0},  # a reader that dies in a load holds a run up for as long
            quiet=10.0,
        )

    def _skews(self, random: Random, processes: int) -> tuple[float, ...]:
        widest = random.choice((0.0, 0.4, 20.0))
        return tuple(random.random() * widest for _ in range(processes))

    def _schedulers(self, random: Random, processes: int, every: float) -> tuple[Client, ...]:
        slow = random.choice((0.0, 0.5, 2.5))  # also longer than the lease
        first, second = (
            Schedule(every=every, seconds=8.0, slow=slow),
            Schedule(every=every, seconds=2.0, slow=slow),
        )
        # One that crashes takes its schedule up again with the second.
        return tuple(Client(n, ((random.random(), first), (0.0, second))) for n in range(processes))

    def _others(self, random: Random, processes: int) -> tuple[Client, ...]:
        choices: list[Op] = [Get(), Get(), Read()] + [Change()] * random.choice((0, 2))
        return tuple(
            Client(
                random.randrange(processes),
                tuple((random.random() * 2.0, random.choice(choices)) for _ in range(random.randint(1, 5))),
            )
            for _ in range(random.randint(1, 4))
        )

    def _disasters(self, random: Random, processes: int, chain: tuple[str, ...]) -> tuple[Disaster, ...]:
        trouble = random.choice(("none", "crash", "pause", "both", "evict"))
        if trouble == "none":
            return ()
        if trouble == "evict":
            servers = [name for name in chain if name != "memory"]
            return disasters_of(random, 2, ("evict",), servers, within=6.0)
        return disasters_of(
            random,
            2,
            ("crash", "pause") if trouble == "both" else ("crash",) if trouble == "crash" else ("pause",),
            range(processes),
            within=6.0,
        )
