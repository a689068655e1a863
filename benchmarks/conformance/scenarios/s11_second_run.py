"""A second ``asyncio.run`` in one process, as tests and command-line tools have it."""

from __future__ import annotations

import asyncio

from benchmarks.conformance.model import SHARED, TASKS, Failed, How, Scenario
from benchmarks.conformance.stage import Origin, Stage, Variant


def probe(stage: Stage) -> None:
    """One cached function, made outside any loop, is called under three calls of ``asyncio.run``: each time three
    keys are invalidated at once, then these and three others are read at once.

    Pass: every call returns, and over a server the loader ran once for each key that was not invalidated. (A memory
    that begins anew with each loop is as good.)
    """
    stage.each(_one)


def _one(variant: Variant) -> None:
    origin = Origin()
    again = 0

    async def load(key: str) -> object:
        nonlocal again
        again += key.startswith("same")
        return origin(key)

    reader = variant.stage.library.awaited(variant.place, load, How())

    async def calls() -> None:
        async with asyncio.timeout(10):
            if reader.invalidate is not None:
                await asyncio.gather(*(reader.invalidate(f"other {number}") for number in range(3)))
            for some in ("same", "other"):
                await asyncio.gather(*(reader.get(f"{some} {number}") for number in range(3)))

    for name in ("first", "second", "third"):
        try:
            asyncio.run(calls())
        except Exception as error:
            raise Failed(f"the {name} run: {type(error).__name__}: {str(error)[:60]}") from error
    if again > 3 and variant.place.kind in SHARED:
        raise Failed("stored values are loaded again in the later runs")


SCENARIO = Scenario("second-run", "A second `asyncio.run` with the same cache", probe, faces=(TASKS,))
