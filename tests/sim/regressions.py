"""Plans that once broke a promise, as small as they could be made, with the seed that gave them their luck."""

from __future__ import annotations

from dataclasses import dataclass

from cachewright.testing.sim import Client, Disaster, Faults, Plan, Scenario
from cachewright.testing.sim.ops import (
    Cancelled,
    Change,
    ChangeTag,
    Get,
    Put,
    Read,
    ReadTagged,
    Refresh,
    RepositoryRead,
    Wait,
)
from cachewright.testing.sim.ops_loads import ReadBatch, ReadSlowly
from tests.sim.scenarios import SCENARIOS


@dataclass(frozen=True)
class Regression:
    """One finding; its scenario says what must hold."""

    name: str
    seed: int
    scenario: Scenario
    plan: Plan


def _through_a_full_buffer(database: Faults) -> Plan:
    ops = (RepositoryRead("k"), Put("m"), Put("k"))
    return Plan(
        chain=("redis",),
        keys=("k", "m"),
        writes="behind",
        database=database,
        behind={"max_dirty": 1, "on_full": "through", "settle": 4.0, "delay": 8.0},
        ordered_saver=True,
        options={"ttl": 1000},
        quiet=60.0,
        clients=(Client(0, tuple((0.0, op) for op in ops)),),
    )


REGRESSIONS: tuple[Regression, ...] = (
    Regression(
        # A caller who came while a failed load gave its lease back was handed an error that was not its own.
        "a_failed_load_and_one_who_comes_late",
        514,
        SCENARIOS["writes"],
        Plan(
            chain=("redis",),
            processes=2,
            database=Faults(before=0.05, after=0.05, late=0.03),
            options={"ttl": 1000},
            clients=(
                Client(0, ()),
                Client(1, ((0.0, RepositoryRead()),)),
                Client(0, ()),
                Client(1, ((0.00835588, Cancelled(RepositoryRead(), 0.01496414989259492)),)),
            ),
        ),
    ),
    Regression(
        # Memory counted local_ttl from its filling, however long ago the value had been read.
        "a_process_paused_between_its_commit_and_its_filling",
        4055,
        SCENARIOS["writes"],
        Plan(
            chain=("memory", "redis"),
            processes=2,
            disasters=(Disaster(0.010899784220003528, "pause", 0, 7.0),),
            database=Faults(before=0.05, after=0.05, late=0.03),
            options={"ttl": 1000},
            clients=(
                Client(0, ()),
                Client(0, ((0.049147, RepositoryRead()),)),
                Client(0, ((0.0, RepositoryRead()),)),
                Client(1, ((0.0946904, Put()),)),
            ),
        ),
    ),
    Regression(
        # Memory counted local_ttl from the commit, though a tag had been changed elsewhere while the loader ran.
        "a_tag_changed_elsewhere_under_a_load",
        0,
        SCENARIOS["tags"],
        Plan(
            chain=("memory", "redis"),
            processes=2,
            options={"ttl": 1000, "local_ttl": 0.2},
            clients=(
                Client(0, ((0.0, ReadSlowly(seconds=1.0, tags=("t",))), (0.0, ReadTagged()))),
                Client(1, ((0.6, ChangeTag()),)),
            ),
        ),
    ),
    Regression(
        # No intent could be placed, the replay came before the save, and a reader stored the old value in between.
        "a_write_without_an_intent_and_a_replay_before_its_save",
        14,
        SCENARIOS["outages"],
        Plan(
            chain=("redis",),
            network=Faults(before=0.1),
            database=Faults(slow=1.0),
            options={"ttl": 1000},
            clients=(Client(0, ((0.0, Put()),)), Client(0, ((0.01, RepositoryRead()),) * 6)),
        ),
    ),
    Regression(
        # As for one key: who came while a failed batch gave its leases back was handed its error.
        "a_failed_batch_and_those_who_come_late",
        0,
        SCENARIOS["batches"],
        Plan(
            chain=("redis",),
            keys=("a", "b", "c", "d"),
            network=Faults(slow=1.0),
            database=Faults(before=1.0),
            options={"ttl": 1000},
            clients=(
                Client(0, ((0.0, ReadBatch(("a", "b", "c", "d"))),)),
                *(Client(0, ((0.1 * n, Read("d")),)) for n in range(2, 12)),
            ),
        ),
    ),
    Regression(
        # A lease's life counted from before its tags were created: over before the first renewal.
        "tags_created_slowly_under_a_short_lease",
        35,
        SCENARIOS["lives"],
        Plan(
            chain=("memcached",),
            processes=2,
            network=Faults(slow=0.5),
            options={"ttl": 1000, "lease": 0.5},
            clients=(Client(0, ((0.0, ReadSlowly()),)), Client(1, ((0.0, ReadSlowly()),))),
        ),
    ),
    Regression(
        # load_timeout counted anew for each flight that a caller could not use, and not at all for the last.
        "a_timeout_that_began_anew_with_every_flight",
        0,
        SCENARIOS["freshness"],
        Plan(
            chain=("redis",),
            processes=2,
            options={"ttl": 1000, "load_timeout": 0.8},
            clients=(
                Client(0, ((0.0, ReadSlowly(seconds=0.7)),)),
                Client(0, ((0.1, ReadSlowly(seconds=2.0)),)),
                Client(1, ((0.4, Change()),)),
            ),
        ),
    ),
    Regression(
        # A save through a full buffer whose answer was lost: a saver that orders its writes had nothing to settle, so the
        # claim was given up at once, and with it the drop: the old entry stayed.
        "a_lost_answer_to_a_save_through_a_full_buffer",
        2,
        SCENARIOS["behind"],
        _through_a_full_buffer(Faults(after=0.5)),
    ),
    Regression(
        # The same save, landing after its put had raised: a drop at once would not have been enough.
        "a_late_save_through_a_full_buffer",
        2,
        SCENARIOS["behind"],
        _through_a_full_buffer(Faults(late=0.5)),
    ),
    Regression(
        # A renewal had found another's entry; the batch's commit took that for its own lease, and away, and told it as
        # stored: memory was filled with the value from before the change.
        "a_batch_whose_lease_went_to_somebody_else",
        8,
        SCENARIOS["lives"],
        Plan(
            chain=("memory", "redis"),
            keys=("k", "l"),
            processes=2,
            options={"ttl": 1000, "lease": 0.5, "local_ttl": 0.1},
            clients=(
                Client(0, ((0.0, ReadBatch(("k", "l"), seconds=1.0)), (0.0, Get()))),
                Client(1, ((0.5, Change()), (0.0, Read()))),
            ),
        ),
    ),
    Regression(
        # A lower tier missed a drop; before its replay another process filled the authority from there, for good.
        "a_lower_tier_that_was_late_to_lose_a_key",
        7,
        SCENARIOS["outages"],
        Plan(
            chain=("redis", "redis2"),
            processes=2,
            network=Faults(before=0.1, slow=0.0),
            options={"ttl": 1000},
            clients=(
                Client(0, ((0.0, Read()), (0.2, Change()))),
                Client(1, ((0.25, Read()), *((0.02, Read()),) * 8)),
            ),
        ),
    ),
    Regression(
        # Leases in process memory stood as held for as long as anybody kept the error of the batch: had one not been
        # given back, all others would have waited for it.
        "a_failed_batch_whose_error_is_kept",
        0,
        SCENARIOS["memory_alone"],
        Plan(
            chain=("memory",),
            keys=("k", "l"),
            database=Faults(before=1.0),
            options={"ttl": 1000},
            clients=(Client(0, ((0.0, ReadBatch(("k", "l"))),)),),
        ),
    ),
    Regression(
        # A put that died between the buffer and its drop, and whose record was given up: no save healed it, and the tiers
        # went on with what had stood there before.
        "a_dead_letter_whose_put_never_dropped",
        9,
        SCENARIOS["dead_letters"],
        Plan(
            chain=("redis",),
            writes="behind",
            processes=2,
            network=Faults(slow=1.0),
            database=Faults(before=1.0),
            behind={"max_attempts": 1},
            options={"ttl": 1000},
            quiet=60.0,
            clients=(
                Client(0, ((0.0, Put()), (0.0, RepositoryRead()), (1.0, Put()))),
                Client(1, ((5.0, Wait(0.0)),)),
            ),
            disasters=(Disaster(1.8, "crash", 0, 0.2),),
        ),
    ),
    Regression(
        # One key came at the last moment, from elsewhere; the other, which never came, was left out without a word.
        "a_batch_out_of_time_leaves_out_a_key",
        439,
        SCENARIOS["freshness"],
        Plan(
            chain=("memcached",),
            keys=("k", "l"),
            processes=3,
            network=Faults(slow=0.05),
            database=Faults(before=0.2, after=0.1, lost=0.05, slow=0.05),
            disk=Faults(slow=0.05),
            options={
                "ttl": 0.3,
                "jitter": 0.0,
                "local_ttl": 0.5,
                "stale_while_revalidate": 5.0,
                "load_timeout": 0.1,
                "negative_ttl": 0.5,
            },
            clients=(
                Client(0, ((0.0, ReadBatch(("k", "l"))),)),
                Client(2, ((0.000533961555488941, ReadBatch(("k", "l"))),)),
                Client(0, ((0.0002205943416445544, Refresh("k")),)),
            ),
        ),
    ),
)
