"""The interleavings for which write-behind's rules were made, by name: each is brought about on purpose, whatever the luck.

A plan whose cues stop, kill or cheat one request at one moment; what the database must then have seen, in order; and the
faults in the code (`tests.sim.mutations`) under which just this interleaving breaks a promise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cachewright.testing.sim import Client, Cue, Faults, Op, Plan, Run, Scenario, judge
from cachewright.testing.sim.ops import Delete, Put, RepositoryRead, Wait
from cachewright.testing.sim.ops_behind import Discard, Evict, PutAll, Replay
from tests.sim.scenarios import SCENARIOS

BEHIND, DEAD = SCENARIOS["behind"], SCENARIOS["dead_letters"]
STEADY, ALL_OVER = Faults(slow=0.0), 8.0
At = tuple[int, float, Op]  # which process does it, and when


@dataclass(frozen=True, kw_only=True)
class Interleaving:
    """One of them.

    Attributes:
        saves: the values that the database is given for ``k``, in the order in which they land (None: a delete).
        answers: what reads, replays and discards of ``k`` return, in the order in which they begin.
        faults: the mutants that it must catch.
    """

    name: str
    plan: Plan
    saves: tuple[str | None, ...]
    answers: tuple[str | None, ...] = ()
    faults: tuple[str, ...]
    scenario: Scenario = BEHIND

    def violations(self, run: Run) -> list[str]:
        """What the run shows: promises that broke, or another course than the name says."""
        found = list(judge(self.scenario, run))
        saves = tuple(save.value for save in run.scene.origin.saves if save.key == "k")
        if saves != self.saves:
            found.append(f"the database was given {saves}, and the interleaving is {self.saves}")
        calls = [call for call in run.history.calls if call.key == "k" and self._answers(call.text)]
        answers = tuple(call.value for call in calls)
        if answers != self.answers:
            found.append(f"the answers were {answers}, and are to be {self.answers}")
        return found

    @staticmethod
    def _answers(text: str) -> bool:
        return text.startswith(("repository.get(", "replay(", "discard("))


def _plan(*ops: At, cues: tuple[Cue, ...] = (), **given: Any) -> Plan:
    """Two processes; everything has its time, and only what a cue says goes wrong."""
    behind = {"claim": 0.3, "settle": 5.0, **given.pop("behind", {})}
    clients = given.pop("clients", tuple(Client(process, ((time, op),)) for process, time, op in ops))
    clients += (Client(1, ((ALL_OVER, Wait(0.0)),)),)  # cues come true while clients are at work
    return Plan(
        **{
            "chain": ("redis",),
            "processes": 2,
            "writes": "behind",
            "options": {"ttl": 1000},
            "quiet": 60.0,
            "behind": behind,
            "clients": clients,
            "network": STEADY,
            "database": STEADY,
            "disk": STEADY,
            "cues": cues,
            **given,
        }
    )


V0, V1, V2 = "k.1", "k.2", "k.3"
READ, PUT = RepositoryRead(), Put()

INTERLEAVINGS: tuple[Interleaving, ...] = (
    # ------------------------------------------------------------------------------------ claims and settling
    Interleaving(
        name="a_paused_flusher_saves_v1_over_v2_after_v2_was_acknowledged",
        plan=_plan((0, 0.1, PUT), (1, 1.0, PUT), cues=(Cue(0, "save k", "pause", 3.0),)),
        saves=(V1, V2, V1, V2),
        faults=("a_claim_taken_over_is_not_suspect", "what_is_suspect_does_not_settle"),
    ),
    Interleaving(
        # The late acknowledgement must not free the key under the flusher that has taken it over and still saves.
        name="a_claim_that_expired_and_was_taken_over_is_acknowledged_late",
        plan=_plan(
            (0, 0.1, PUT),
            (0, 3.0, PUT),
            cues=(Cue(0, "save k", "pause", 2.0, "answered"), Cue(1, "save k", "stall", 5.0)),
        ),
        saves=(V1, V1, V2, V2),
        faults=("an_acknowledgement_ignores_the_token",),
    ),
    Interleaving(
        name="a_claim_whose_holder_died_is_taken_over_at_once",
        plan=_plan(
            (0, 0.1, PUT),
            (1, 2.0, PUT),
            cues=(Cue(0, "save k", "crash", 1.0, "landed"),),
            behind={"claim": 3000.0},
        ),
        saves=(V1, V1, V2, V2),
        faults=("a_dead_process_keeps_its_claim",),
    ),
    Interleaving(
        name="a_claim_is_renewed_while_its_saver_is_slow",
        plan=_plan((0, 0.1, PUT), cues=(Cue(0, "save k", "stall", 3.0),)),
        saves=(V1,),
        faults=("claims_are_not_renewed",),
    ),
    Interleaving(
        name="an_append_while_the_saver_runs_keeps_the_claim",
        plan=_plan((0, 0.1, PUT), (1, 0.5, PUT), cues=(Cue(0, "save k", "stall", 2.0),)),
        saves=(V1, V2),
        faults=("an_append_takes_the_claim_away", "an_acknowledgement_ignores_the_sequence"),
    ),
    Interleaving(
        name="a_save_of_unknown_outcome_settles",
        plan=_plan((0, 0.1, PUT), (1, 0.5, PUT), cues=(Cue(0, "save k", "late", 2.0),)),
        saves=(V2, V1, V2),
        faults=("a_failure_of_unknown_outcome_leaves_no_mark", "what_is_suspect_does_not_settle"),
    ),
    Interleaving(
        name="a_settling_key_gets_a_newer_put",
        plan=_plan((0, 0.1, PUT), (1, 2.5, PUT), cues=(Cue(0, "save k", "late", 3.0),)),
        saves=(V1, V2, V1, V2),
        faults=("an_append_forgets_that_the_key_settles",),
    ),
    Interleaving(
        # Its records are saved one by one then, and well; what was sent first may still land over them.
        name="a_batch_of_unknown_outcome_settles_though_each_of_it_was_saved_again",
        plan=_plan(
            (0, 0.1, PutAll(("k", "m"))),
            (1, 2.0, PUT),
            cues=(Cue(0, "save many", "late", 3.0),),
            keys=("k", "m"),
            saves_many=0.0,
        ),
        saves=("k.3", "k.5", "k.3", "k.5"),
        faults=("a_try_of_unknown_outcome_before_a_good_one_leaves_no_mark",),
    ),
    # ---------------------------------------------------------------------------------------- crashes, deletes
    Interleaving(
        name="a_put_that_crashed_between_its_append_and_its_drop",
        plan=_plan(
            clients=(Client(0, ((0.1, READ), (0.1, PUT), (1.0, READ))),),
            cues=(Cue(0, "append r:k", "crash", 0.2, "answered"),),
        ),
        saves=(V1,),
        answers=(V0, V1),
        faults=("a_save_drops_nothing",),
    ),
    Interleaving(
        name="a_tombstone_after_a_value_whose_save_is_under_way",
        plan=_plan((0, 0.1, PUT), (1, 0.5, Delete()), (1, 1.0, READ), cues=(Cue(0, "save k", "stall", 2.0),)),
        saves=(V1, None),
        answers=(None,),
        faults=("a_tombstone_is_not_read",),
    ),
    # -------------------------------------------------------------------------------------------- dead letters
    Interleaving(
        name="a_dead_letter_is_replaced_by_a_new_put",
        plan=_plan(
            (0, 0.1, PUT),
            (1, 0.5, READ),
            (1, 1.0, PUT),
            (0, 1.5, READ),
            cues=(Cue(0, "save k", "refused"),),
            behind={"max_attempts": 1},
        ),
        saves=(V2,),
        answers=(V1, V2),
        faults=("a_put_over_a_dead_letter_is_dead_too",),
        scenario=DEAD,
    ),
    Interleaving(
        name="a_failure_of_the_older_state_leaves_the_newer_alive",
        plan=_plan(
            (0, 0.1, PUT),
            (1, 0.5, PUT),
            cues=(Cue(0, "save k", "stall", 1.0), Cue(0, "save k", "refused")),
            behind={"max_attempts": 1},
        ),
        saves=(V2,),
        faults=("a_failure_of_an_older_state_gives_the_newer_up",),
        scenario=DEAD,
    ),
    Interleaving(
        name="a_replay_comes_when_the_dead_letter_is_there_no_more",
        plan=_plan(
            (0, 0.1, PUT),
            (1, 0.5, Replay()),
            (0, 1.0, PUT),
            cues=(
                Cue(0, "save k", "refused"),
                Cue(1, "replay r:k", "stall", 1.0),
                Cue(0, "save k", "stall", 2.0, number=2),
            ),
            behind={"max_attempts": 1},
        ),
        saves=(V2,),
        answers=("no dead letter",),
        faults=("what_is_no_dead_letter_is_replayed",),
        scenario=DEAD,
    ),
    Interleaving(
        name="a_discard_drops_the_slot_too",
        plan=_plan(
            (0, 0.1, PUT),
            (1, 0.5, READ),
            (0, 1.0, Discard()),
            (1, 2.0, READ),
            cues=(Cue(0, "save k", "refused"),),
            behind={"max_attempts": 1},
        ),
        saves=(),
        answers=(V1, V0, V0),
        faults=("a_discard_leaves_the_slot",),
        scenario=DEAD,
    ),
    Interleaving(
        name="a_reader_comes_while_a_dead_letter_is_discarded",
        plan=_plan(
            (0, 0.1, PUT),
            (0, 0.5, Discard()),
            (1, 1.0, READ),
            (1, 3.0, READ),
            cues=(Cue(0, "save k", "refused"), Cue(0, "discard r:k", "stall", 1.0)),
            behind={"max_attempts": 1},
        ),
        saves=(),
        answers=(V0, V1, V0),
        faults=("a_discard_drops_the_slot_first",),
        scenario=DEAD,
    ),
    # --------------------------------------------------------------------------------------------- full buffers
    Interleaving(
        name="a_save_through_a_full_buffer_holds_the_claim",
        plan=_plan(
            (0, 0.1, Put("m")),
            (0, 0.5, PUT),
            (1, 1.0, PUT),
            cues=(Cue(0, "save m", "stall", 5.0), Cue(0, "save k", "stall", 2.0)),
            keys=("k", "m"),
            behind={"max_dirty": 1, "on_full": "through"},
        ),
        saves=("k.4", "k.5"),
        faults=("a_save_through_holds_no_claim",),
    ),
    Interleaving(
        # Who reads during the save finds nothing of the key in the buffer, and stores what the origin had before.
        name="a_put_that_crashed_between_its_save_through_a_full_buffer_and_its_drop",
        plan=_plan(
            (0, 0.1, Put("m")),
            (0, 0.5, PUT),
            (1, 1.0, READ),
            (1, 3.0, READ),
            cues=(
                Cue(0, "save m", "stall", 5.0),
                Cue(0, "save k", "stall", 1.0),
                Cue(0, "acknowledge r:k", "crash", 0.2, "answered"),
            ),
            keys=("k", "m"),
            behind={"max_dirty": 1, "on_full": "through"},
        ),
        saves=("k.4",),
        answers=("k.1", "k.4"),
        faults=("a_save_through_drops_before_it_saves",),
    ),
    # ---------------------------------------------------------------------------------------------------- reads
    Interleaving(
        name="a_dirty_key_is_evicted_from_every_tier_and_read",
        plan=_plan(
            (0, 0.1, PUT),
            (0, 0.3, READ),
            (1, 0.5, Evict()),
            (1, 0.7, READ),
            (0, 1.0, Delete()),
            (0, 1.2, READ),
            (1, 1.4, Evict()),
            (1, 1.6, READ),
            chain=("redis", "redis2"),
            behind={"delay": 5.0},
        ),
        saves=(None,),
        answers=(V1, V1, None, None),
        faults=("a_read_skips_the_buffer",),
    ),
    Interleaving(
        # Origin first would give what stood there before the save, and then find the buffer empty.
        name="a_record_is_saved_and_acknowledged_before_a_reader_looks_for_it",
        plan=_plan(
            (0, 0.1, PUT),
            (1, 0.5, READ),
            cues=(Cue(1, "look at r:k", "stall", 2.0),),
            behind={"delay": 1.0},
        ),
        saves=(V1,),
        answers=(V1,),
        faults=("a_read_asks_the_origin_before_the_buffer",),
    ),
    Interleaving(
        # The lease stood before the buffer was looked into: the put's drop takes it away.
        name="a_put_comes_between_a_readers_look_into_the_buffer_and_its_commit",
        plan=_plan(
            (1, 0.1, READ),
            (0, 1.0, PUT),
            (1, 3.0, READ),
            cues=(Cue(1, "load k", "stall", 1.5, "answered"),),
            behind={"delay": 5.0},
        ),
        saves=(V1,),
        answers=(V0, V1),
        faults=("a_load_commits_without_its_lease",),
    ),
    Interleaving(
        name="a_reader_comes_while_a_put_appends",
        plan=_plan(
            (0, 0.1, PUT),
            (1, 0.3, READ),
            (1, 3.0, READ),
            cues=(Cue(0, "append r:k", "stall", 1.0),),
            behind={"delay": 5.0},
        ),
        saves=(V1,),
        answers=(V0, V1),
        faults=("a_put_drops_before_it_appends",),
    ),
)
BY_NAME: dict[str, Interleaving] = {one.name: one for one in INTERLEAVINGS}
