"""What waiting for another process's load costs the server."""

from __future__ import annotations

import time

from benchmarks.conformance.holder import KEY, Holder, hold
from benchmarks.conformance.model import REDIS, Failed, Scenario
from benchmarks.conformance.stage import Origin, Stage, Variant, ended, result

WAITERS = 5
BOUND = 40 * WAITERS  # a look every 25 ms from each of them


def probe(stage: Stage) -> None:
    """One process loads; five callers of another one wait. The server counts its commands for a second.

    Pass: at most 200, which is a look every 25 ms from each; and nobody else loads.
    """
    stage.each(_one)


def _one(variant: Variant) -> None:
    origin = Origin()
    with Holder(variant) as holder:
        waiting = variant.caller(origin)
        calls = [waiting.get(KEY) for _ in range(WAITERS)]
        ended(calls, 0.3)
        before = _commands(variant)
        time.sleep(1.0)
        sent = _commands(variant) - before - 1
        if origin.runs:
            raise Failed("callers load beside the process that loads already")
        holder.release()
        for call in calls:
            result(call, "a waiter")
    if sent > BOUND:
        raise Failed(f"{sent:,} commands in a second from {WAITERS} waiters")


def _commands(variant: Variant) -> int:
    return int(variant.redis.info("stats")["total_commands_processed"])


SCENARIO = Scenario(
    "waiting",
    "Waiting for another process's load: few commands",
    probe,
    timed=True,
    kinds=(REDIS,),
    needs="coordinates",
    parts={"holder": hold},
)
