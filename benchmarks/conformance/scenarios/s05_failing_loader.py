"""The loader raises."""

from __future__ import annotations

from benchmarks.conformance.model import Failed, Scenario
from benchmarks.conformance.stage import PATIENCE, Origin, Stage, Variant, ended, result


def probe(stage: Stage) -> None:
    """One call loads, a second one waits; the loader raises; the origin mends; a third call comes.

    Pass: the first two end, with the loader's exception or a value, and the third has the value.
    """
    stage.each(_one)


def _one(variant: Variant) -> None:
    origin = Origin(gated=True)
    origin.error = LookupError("the origin is down")
    caller = variant.caller(origin)
    calls = [caller.get("key")]
    if not origin.started.wait(PATIENCE):
        raise Failed("hung: the first load")
    calls.append(caller.get("key"))
    ended(calls, 0.2)
    origin.gate.set()
    if not ended(calls):
        raise Failed("who waited for the failing load hangs")
    origin.error = None
    third = caller.get("key")
    if not ended([third]):
        raise Failed("the next caller hangs")
    result(third, "the next caller")


SCENARIO = Scenario("failing-loader", "A loader raises: the next caller loads", probe)
