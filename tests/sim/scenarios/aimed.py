"""Rare interleavings of loads, writes and replays, each brought about by cues: one for every line that chance does not reach."""

from __future__ import annotations

from random import Random
from typing import Any

from cachewright.testing.sim import checks, checks_loads
from cachewright.testing.sim.cues import Cue
from cachewright.testing.sim.network import Faults
from cachewright.testing.sim.ops import (
    Cancelled,
    Change,
    ChangeTag,
    Get,
    Put,
    Read,
    ReadTagged,
    RepositoryRead,
    Wait,
)
from cachewright.testing.sim.ops_loads import ReadBatch, ReadSlowly
from cachewright.testing.sim.plan import Client, Disaster, Op, Plan
from cachewright.testing.sim.scenario import Scenario

STEADY, ALL_OVER = Faults(slow=0.0), 9.0
READ, PUT = RepositoryRead(), Put()


def _plan(*ops: tuple[int, float, Op], cues: tuple[Cue, ...] = (), **given: Any) -> Plan:
    """Two processes; which one does what, and when; only what a cue says goes wrong."""
    clients = tuple(Client(process, ((time, op),)) for process, time, op in (*ops, (1, ALL_OVER, Wait(0.0))))
    settled = {"chain": ("redis",), "processes": 2, "options": {"ttl": 1000}, **given}
    return Plan(clients=clients, cues=cues, network=STEADY, database=STEADY, **settled)


PLANS: dict[str, Plan] = {
    # The intent's fate is unknown, the save landed unheard, and the caller is cancelled while he places another intent.
    "a_write_without_an_intent_that_is_cancelled_after_its_save": _plan(
        (1, 0.0, READ),
        (0, 0.2, Cancelled(PUT, 1.5)),
        cues=(
            Cue(0, "swap r:k", "refused"),
            Cue(0, "save k", "broken"),
            Cue(0, "swap r:k", "stall", 3.0, number=2),
        ),
    ),
    # The intent is evicted, a reader stores what was there before the save, and the end of the write gets lost.
    "a_write_whose_intent_is_evicted_and_whose_end_gets_lost": _plan(
        (0, 0.1, PUT),
        (1, 0.3, READ),
        cues=(
            Cue(0, "save k", "evict"),
            Cue(0, "save k", "stall", 1.0),
            Cue(0, "swap r:k", "refused", number=2),
        ),
    ),
    # The replay came before the save, a reader stored the old value in between, and the caller is cancelled at the end.
    "a_write_without_an_intent_that_is_cancelled_at_its_end": _plan(
        (0, 0.1, Cancelled(PUT, 3.0)),
        (1, 1.5, READ),
        cues=(
            Cue(0, "swap r:k", "refused"),
            Cue(0, "save k", "stall", 2.0),
            Cue(0, "drop r:k", "stall", 3.0, number=2),
            Cue(0, "swap r:k", "stall", 3.0, number=2),
        ),
    ),
    # As above, and nobody is cancelled: what the put has returned is what others read at once, not at the next replay.
    "a_write_without_an_intent_is_seen_when_it_returns": _plan(
        (0, 0.1, PUT),
        (1, 1.0, READ),
        (1, 2.2, READ),
        cues=(Cue(0, "swap r:k", "refused"), Cue(0, "save k", "stall", 2.0)),
    ),
    "a_save_of_unknown_outcome_whose_intent_is_evicted_and_not_placed_again": _plan(
        (0, 0.1, PUT),
        (1, 0.3, READ),
        cues=(
            Cue(0, "save k", "evict"),
            Cue(0, "save k", "stall", 1.0),
            Cue(0, "save k", "broken"),
            Cue(0, "swap r:k", "refused", number=2),
        ),
    ),
    "a_change_that_is_missed_while_an_earlier_one_is_replayed": _plan(
        (0, 0.1, Change()),
        (1, 1.0, Read()),
        (0, 1.5, Change()),
        cues=(Cue(0, "drop k", "refused"), Cue(0, "drop k", "stall", 2.0, "answered")),
    ),
    "a_stale_value_whose_tag_changed_while_its_key_is_loaded": _plan(
        (0, 0.0, ReadTagged()),
        (0, 0.5, ReadSlowly(seconds=3.0, tags=("t",))),
        (1, 1.0, ChangeTag()),
        (0, 1.5, ReadTagged()),
        options={"ttl": 0.05, "stale_if_error": 50.0, "soft_timeout": 0.1},
    ),
    # All but the first and the last are tries again, soon after one another.
    "a_living_lease_whose_renewals_fail_for_half_its_life": _plan(
        (0, 0.0, Read()),
        (1, 0.5, Read()),
        cues=(
            Cue(0, "load k", "stall", 8.0),
            *(Cue(0, "swap k", "refused", number=number) for number in range(2, 8)),
        ),
    ),
    "a_caller_who_joins_a_batch_whose_lease_was_lost": _plan(
        (0, 0.0, ReadBatch(("k", "l"))),
        (1, 0.5, Change()),
        (0, 1.0, Read()),
        cues=(Cue(0, "load k", "stall", 2.0, "answered"),),
        keys=("k", "l"),
    ),
    "a_look_below_whose_lease_was_lost": _plan(
        (1, 0.0, Read()),
        (0, 0.5, Get()),
        (1, 1.0, Change()),
        (0, 6.8, Get()),
        cues=(Cue(0, "read k", "stall", 2.0, "answered", number=2),),
        chain=("memory", "redis", "redis2"),
        disasters=(Disaster(0.3, "evict", "redis"),),
    ),
}


class Aimed(Scenario):
    """One of these at a time, with other luck each time."""

    name = "aimed"
    checks = (
        checks.nothing_older,
        checks_loads.one_load_where_clocks_agree,
        checks.every_call_ends,
        checks.nobody_inherits_a_fate,
        checks.agreement_in_the_end,
    )

    def plan(self, random: Random) -> Plan:
        return PLANS[random.choice(list(PLANS))]
