"""One process of a fleet that keeps the key ``rates`` warm. Run as a script with one JSON argument.

Each event is one line of the journal, a file that all processes append to: ``load <pid> <value>`` when the loader
begins, ``done <pid> <value>`` when it ends, ``run <pid> <due>`` when a run is over, named by the moment at which it
was due, and before it ``stored <pid> <due>=<value>``, the value that stands in the shared tier then. While the file
``hold`` exists the loader does not end, and says so: ``hangs <pid> <value>``. The process ends when its standard input
does.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from cachewright import Cache
from cachewright.schedule_election import Election

ORDER = json.loads(sys.argv[1])
FOLDER = Path(ORDER["folder"])


def journal(*words: object) -> None:
    line = " ".join(str(word) for word in words) + "\n"
    file = os.open(FOLDER / "journal", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, line.encode())  # one write: lines never mix
    finally:
        os.close(file)


finish = Election.finish


async def told(self: Election, rt: Any, turn: Any, error: Exception | None = None) -> None:
    state = self._state
    standing, _ = await state.chain.authority.read(rt, ("rates",))
    slot = standing.get("rates")
    entry = slot.entry if slot is not None else None
    value = state.value_of("rates", entry, None, "redis") if entry is not None else None
    journal("stored", os.getpid(), f"{turn.due}={value}")
    journal("run", os.getpid(), turn.due)
    await finish(self, rt, turn, error)


Election.finish = told  # type: ignore[method-assign]
holding = FOLDER / "hold"


def load() -> str:
    value = f"{os.getpid()}:{time.time_ns()}"
    journal("load", os.getpid(), value)
    if holding.exists():
        journal("hangs", os.getpid(), value)
    while holding.exists():
        time.sleep(0.005)
    journal("done", os.getpid(), value)
    return value


async def aload() -> str:
    value = f"{os.getpid()}:{time.time_ns()}"
    journal("load", os.getpid(), value)
    if holding.exists():
        journal("hangs", os.getpid(), value)
    while holding.exists():
        await asyncio.sleep(0.005)
    journal("done", os.getpid(), value)
    return value


async def on_a_loop() -> None:
    async with Cache(ORDER["url"], namespace=ORDER["namespace"]) as cache:
        await cache.arefresh_every(ORDER["every"], "rates", aload)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


def in_threads() -> None:
    with Cache(ORDER["url"], namespace=ORDER["namespace"]) as cache:
        cache.refresh_every(ORDER["every"], "rates", load)
        print("ready", flush=True)
        sys.stdin.read()


if ORDER["face"] == "asyncio":
    asyncio.run(on_a_loop())
else:
    in_threads()
