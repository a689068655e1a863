"""One of several tasks that wait for the same load is cancelled."""

from __future__ import annotations

from benchmarks.conformance.model import TASKS, Failed, Scenario
from benchmarks.conformance.stage import PATIENCE, Origin, Stage, Variant, ended


def probe(stage: Stage) -> None:
    """Three tasks ask for one cold key; while it loads, one is cancelled: the first that came, then a later one.

    Pass: both others have the value.
    """
    stage.each(_one)


def _one(variant: Variant) -> None:
    for victim, which in ((0, "the first"), (1, "a later")):
        origin = Origin(gated=True)
        caller = variant.caller(origin)
        calls = [caller.get(which)]
        if not origin.started.wait(PATIENCE):
            raise Failed("hung: the first load")
        calls += [caller.get(which), caller.get(which)]
        ended(calls, 0.3)  # until they wait for the load: nothing from outside shows that
        calls[victim].cancel()
        ended(calls, 0.2)
        origin.gate.set()
        others = [call for number, call in enumerate(calls) if number != victim]
        if not ended(others):
            raise Failed(f"hung: the others, after {which} caller was cancelled")
        lost = sum(other.cancelled() or other.exception() is not None for other in others)
        if lost:
            raise Failed(f"{which} caller cancelled: {lost} of 2 others with it")


SCENARIO = Scenario("cancel", "One of the waiting tasks is cancelled: that one alone", probe, faces=(TASKS,))
