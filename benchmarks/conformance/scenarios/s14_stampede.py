"""Many callers of one process, one cold key."""

from __future__ import annotations

import time

from benchmarks.conformance.model import Failed, Scenario
from benchmarks.conformance.stage import Origin, Stage, Variant, ended

CALLERS = 50
LOAD = 0.3


def probe(stage: Stage) -> None:
    """50 callers ask at once for one cold key; its load takes 0.3 s.

    Pass: one load, and all have the value.
    """
    stage.each(_one)


def _one(variant: Variant) -> None:
    origin = Origin()

    def slow(key: str) -> object:
        value = origin(key)
        time.sleep(LOAD)
        return value

    caller = variant.caller(slow)
    calls = [caller.get("key") for _ in range(CALLERS)]
    if not ended(calls, 20):
        raise Failed("hung: the callers")
    errors = [type(error).__name__ for call in calls if (error := call.exception()) is not None]
    if errors:
        raise Failed(f"{errors[0]} at some callers")
    if origin.runs > 1:
        raise Failed(f"{'every caller loads' if origin.runs > CALLERS / 2 else 'several load'}")


SCENARIO = Scenario("stampede", f"{CALLERS} callers on one cold key: one load", probe, limit=90)
