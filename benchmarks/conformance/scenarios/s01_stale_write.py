"""A key is invalidated while its load runs."""

from __future__ import annotations

from benchmarks.conformance.model import Failed, Scenario
from benchmarks.conformance.stage import PATIENCE, Origin, Stage, Variant, ended, result


def probe(stage: Stage) -> None:
    """A load has read the old value and stops; the origin changes, the key is invalidated; the load goes on.

    Pass: the next call returns the new value. An invalidation that waits for the load is as good.
    """
    stage.each(_one)


def _one(variant: Variant) -> None:
    origin = Origin("old", gated=True)
    caller = variant.caller(origin)
    loading = caller.get("key")
    if not origin.started.wait(PATIENCE):
        raise Failed("hung: the first load")
    origin.value = "new"
    dropping = caller.invalidate("key")
    ended([dropping], 0.5)
    origin.gate.set()
    result(loading, "the call that loaded")
    result(dropping, "the invalidation")
    if result(caller.get("key"), "the next call") != "new":
        raise Failed("the old value is stored all the same")


SCENARIO = Scenario("stale-write", "A key invalidated during its load: the old value is not stored", probe)
