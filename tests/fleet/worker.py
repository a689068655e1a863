"""One process of a fleet: many callers ask one cache for one cold key at the same moment.

Run as a script with one JSON argument (`Order`). It says ``ready`` on standard output when its callers stand at the
barrier, starts them at the line ``go`` on standard input, and ends with one JSON line (`Report`). Every start of its
loader is a line of the journal, a file that all processes append to: ``pid, monotonic seconds``. The monotonic clock
is one for all processes of a machine.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import sys
import threading
import time
from typing import Any

from cachewright import Cache

Result = tuple[Any, float]


class Journal:
    """The loads of all processes, in the order in which they began."""

    def __init__(self, path: str) -> None:
        self.path = path

    def append(self) -> int:
        """Writes this load down; how many there were before."""
        file = os.open(self.path, os.O_RDWR | os.O_APPEND)
        try:
            os.write(file, f"{os.getpid()} {time.monotonic()}\n".encode())  # one write: lines never mix
        finally:
            os.close(file)
        with open(self.path, encoding="ascii") as lines:
            return [line.split()[0] for line in lines].index(str(os.getpid()))


def begin(order: dict[str, Any]) -> float:
    """A load has begun; how long it is to take."""
    before = Journal(order["journal"]).append()
    return 3600.0 if order["first_hangs"] and before == 0 else float(order["seconds"])


def threads(cache: Cache, order: dict[str, Any]) -> list[Result]:
    """All callers are threads."""
    barrier = threading.Barrier(order["callers"] + 1)
    results: list[Result] = []

    def load() -> str:
        time.sleep(begin(order))
        return str(os.getpid())

    def call() -> None:
        barrier.wait(60)
        value = cache.get_or_set("cold", load, lease=order["lease"])
        results.append((value, time.monotonic()))

    callers = [threading.Thread(target=call, daemon=True) for _ in range(order["callers"])]
    for caller in callers:
        caller.start()
    cache.connect(attempts=1)
    wait_for_go()
    barrier.wait(60)
    for caller in callers:
        caller.join(60)
    return results


async def tasks(cache: Cache, order: dict[str, Any]) -> list[Result]:
    """All callers are tasks of one loop."""

    async def load() -> str:
        await asyncio.sleep(begin(order))
        return str(os.getpid())

    async def call() -> Result:
        value = await cache.aget_or_set("cold", load, lease=order["lease"])
        return value, time.monotonic()

    await cache.aconnect(attempts=1)
    wait_for_go()
    return await asyncio.gather(*(call() for _ in range(order["callers"])))


def wait_for_go() -> None:
    print("ready", flush=True)
    if sys.stdin.readline() != "go\n":
        raise SystemExit("the one who was to say go has gone")


def main() -> None:
    order: dict[str, Any] = json.loads(sys.argv[1])
    faulthandler.dump_traceback_later(order["patience"], exit=True)  # nothing here runs for ever
    with Cache(*order["urls"], namespace=order["namespace"]) as cache:
        results = asyncio.run(tasks(cache, order)) if order["face"] == "asyncio" else threads(cache, order)
    print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
