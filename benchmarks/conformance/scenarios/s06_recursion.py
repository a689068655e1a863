"""A loader asks the cache for its own key."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.conformance.model import THREADS, Failed, How, Scenario
from benchmarks.conformance.stage import Caller, Stage, Variant, ended, result

LOOP_LIMIT = 3.0


def probe(stage: Stage) -> None:
    """The loader, on its first run, asks for the very key that it loads.

    Pass: the call ends within 3 s, with an exception or a value.
    """
    stage.each(_one)


def _one(variant: Variant) -> None:
    made: list[Caller] = []
    runs = 0

    def load(key: str) -> Any:
        nonlocal runs
        runs += 1
        return made[0].reader.get(key) if runs == 1 else "value"

    async def aload(key: str) -> Any:
        nonlocal runs
        runs += 1
        return await made[0].reader.get(key) if runs == 1 else "value"

    library, face = variant.stage.library, variant.face
    if face.name == THREADS:
        made.append(variant.caller(load))
    else:

        async def make() -> Caller:
            return Caller(face, library.awaited(variant.place, aload, How()))

        assert face.loop is not None
        made.append(result(asyncio.run_coroutine_threadsafe(make(), face.loop), "set-up"))
    if not ended([made[0].get("key")], LOOP_LIMIT):
        raise Failed("hung: the loader waits for itself")


SCENARIO = Scenario("recursion", "A loader that asks for its own key: an error, no deadlock", probe)
