"""The process that loads dies."""

from __future__ import annotations

from benchmarks.conformance.holder import KEY, Holder, hold
from benchmarks.conformance.model import Failed, Scenario
from benchmarks.conformance.stage import Origin, Stage, Variant, ended, result

BOUND = 15.0


def probe(stage: Stage) -> None:
    """A process begins to load and is killed by SIGKILL; another one asks for the key. Locks live as by default.

    Pass: it has the value within 15 s.
    """
    stage.each(_one)


def _one(variant: Variant) -> None:
    with Holder(variant) as holder:
        holder.kill()
    call = variant.caller(Origin()).get(KEY)
    if not ended([call], BOUND):
        raise Failed(f"the next caller still waits after {BOUND:.0f} s")
    result(call, "the next caller")


SCENARIO = Scenario(
    "dead-holder",
    "The loading process is killed: the next one loads",
    probe,
    side_by_side=True,
    needs="coordinates",
    limit=90,
    parts={"holder": hold},
)
