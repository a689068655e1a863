"""Waiters and the connection pool."""

from __future__ import annotations

from benchmarks.conformance.holder import KEY, Holder, hold
from benchmarks.conformance.model import REDIS, Failed, How, Scenario
from benchmarks.conformance.stage import Origin, Stage, Variant, ended, result

WAITERS = 50
BOUND = 1.0


def probe(stage: Stage) -> None:
    """One process loads; 50 callers of another one, with 10 connections where that can be said, wait for it.
    Meanwhile that one reads a key that is in the store.

    Pass: the read ends within 1 s, and every waiter has the value.
    """
    stage.each(_one)


def _one(variant: Variant) -> None:
    waiting = variant.caller(Origin(), How(connections=10))
    result(waiting.get("other"), "the first call")
    with Holder(variant) as holder:
        calls = [waiting.get(KEY) for _ in range(WAITERS)]
        ended(calls, 0.5)
        reading = waiting.get("other")
        in_time = ended([reading], BOUND)
        holder.release()
        result(reading, "a read of another key")
        if not ended(calls, 20):
            raise Failed("hung: the waiters")
    errors = [type(error).__name__ for call in calls if (error := call.exception()) is not None]
    if errors:
        raise Failed(f"{errors[0]} at {len(errors)} of {len(calls)} callers")
    if not in_time:
        raise Failed(f"a read of another key took more than {BOUND:g} s")


SCENARIO = Scenario(
    "pool",
    "50 waiters leave a connection for other reads",
    probe,
    timed=True,
    kinds=(REDIS,),
    needs="coordinates",
    parts={"holder": hold},
)
