"""A load takes longer than the lock that guards it."""

from __future__ import annotations

import time

from benchmarks.conformance.model import Failed, How, Scenario
from benchmarks.conformance.stage import PATIENCE, Origin, Stage, Variant, ended

LOCK = 1.0
LOAD = 2.5


def probe(stage: Stage) -> None:
    """Four instances, as four processes, ask for one cold key; the lock lives for 1 s, the load takes 2.5 s.

    Pass: the loader ran once, and all four have the value.
    """
    stage.each(_one)


def _one(variant: Variant) -> None:
    origin = Origin()

    def slow(key: str) -> object:
        value = origin(key)
        time.sleep(LOAD)
        return value

    callers = [variant.caller(slow, How(lock=LOCK)) for _ in range(4)]
    calls = [callers[0].get("key")]
    if not origin.started.wait(PATIENCE):
        raise Failed("hung: the first load")
    calls += [caller.get("key") for caller in callers[1:]]
    if not ended(calls, 4 * LOAD + PATIENCE):
        raise Failed("hung: the callers")
    said = []
    if origin.runs > 1:
        said.append(f"the loader ran {origin.runs} times for 4 callers")
    errors = [type(error).__name__ for call in calls if (error := call.exception()) is not None]
    if errors:
        said.append(f"{errors[0]} at {len(errors)} of 4 callers")
    if said:
        raise Failed(", ".join(said))


SCENARIO = Scenario(
    "short-lock",
    "A load longer than its lock: one run, no error",
    probe,
    side_by_side=True,
    needs="coordinates",
    limit=90,
)
