"""Redis hangs: its connections stay open, and nothing answers."""

from __future__ import annotations

import time

from benchmarks.conformance.model import REDIS, Failed, Scenario
from benchmarks.conformance.stage import Origin, Stage, Variant, ended, result

BOUND = 1.0
GIVEN_UP = 12.0


def probe(stage: Stage) -> None:
    """Redis is stopped by SIGSTOP under a client that is connected; then three calls, each with a loader at hand.

    Pass: each has the loader's value within 1 s.
    """
    stage.each(_one)


def _one(variant: Variant) -> None:
    caller = variant.caller(Origin())
    result(caller.get("warm"), "the first call")
    server = variant.redis
    server.pause()
    try:
        worst = 0.0
        for number in range(3):
            started = time.monotonic()
            call = caller.get(f"key{number}")
            if not ended([call], GIVEN_UP):
                raise Failed(f"a call takes more than {GIVEN_UP:.0f} s")
            worst = max(worst, time.monotonic() - started)
            error = call.exception()
            if error is not None:
                raise Failed(f"{type(error).__name__} after {worst:.1f} s instead of the loader's value")
        if worst > BOUND:
            raise Failed(f"calls take up to {worst:.1f} s")
    finally:
        server.resume()


SCENARIO = Scenario(
    "hung-redis",
    "Redis hangs: the loader answers within 1 s",
    probe,
    timed=True,
    kinds=(REDIS,),
    needs="client",
)
