"""An entry that comes into memory from Redis late in its life."""

from __future__ import annotations

import time

from benchmarks.conformance.model import REDIS, Failed, Scenario
from benchmarks.conformance.stage import Stage, Variant, until

TTL = 2.0
LATE = 1.3
BOUND = TTL + 0.7


def probe(stage: Stage) -> None:
    """One instance stores a value for 2 s. After 1.3 s another one reads it, so that it comes into its memory.

    Pass: it is gone there 2.7 s after it was stored: 0.7 s are for the clock and the news.
    """
    stage.each(_one)


def _one(variant: Variant) -> None:
    one, two = (variant.store(variant.stage.library.above) for _ in range(2))
    two.get("other")
    started = time.monotonic()
    one.set("key", "value", TTL)
    time.sleep(LATE)
    if two.get("key") != "value":
        raise Failed("the other process does not read what was written")
    if not until(lambda: two.get("key") is None, BOUND - (time.monotonic() - started)):
        raise Failed(f"memory still has a value of {TTL:g} s after {BOUND:g} s")


SCENARIO = Scenario(
    "backfill",
    "A late backfill keeps the remaining life",
    probe,
    timed=True,
    side_by_side=True,
    kinds=(REDIS,),
    needs="levels",
)
