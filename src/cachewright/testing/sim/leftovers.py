"""What a fleet that has come to rest still has under way: what ordinary tests ask of a cache, and what only a world can see."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence

from cachewright.testing.invariants import unrest
from cachewright.testing.sim.seat import Seat
from cachewright.testing.sim.world import EPOCH

__all__ = ["leftovers"]

GOES_ON = ("flusher of", "schedule", "refresh_every")  # tasks that are meant to run as long as their process


def leftovers(seats: Sequence[Seat], servers: bool) -> list[str]:
    """What is left by the processes that live, in words.

    Args:
        seats: theirs.
        servers: look at them too: nothing has gone wrong for longer than a lease or an intent lives.
    """
    found = [f"{seat.process.name}: {what}" for seat in seats for what in _of(seat)]
    for name, server in seats[0].scene.servers.items() if servers else ():
        for key in list(server.store.rows):
            slot = server.store.get(key)
            if slot is None:
                continue
            now = (EPOCH + server.world.time) * 1000
            if slot.lease is not None and now < slot.lease.deadline:
                found.append(f"{name}: a living lease on {key}, and nobody loads it")
            found += [f"{name}: a living intent on {key}" for one in slot.intents if now < one.deadline]
    return found


def _of(seat: Seat) -> Iterator[str]:
    state = seat.cache.engine.state
    yield from unrest(seat.cache)
    if state.holding:
        gc.collect()  # held weakly; what a traceback holds in a circle is gone with the collector's next round
    yield from (f"it still holds the lease {token.hex()[:4]}" for token in state.holding)
    for level in state.chain.levels:
        if level.behind:
            yield f"{level.tier.name} has yet to hear of {level.behind} change(s)"
    for task in seat.process.tasks:
        name = task.name.partition(".")[2]
        if not name.startswith(GOES_ON):
            yield f"the task {name!r} runs on"
