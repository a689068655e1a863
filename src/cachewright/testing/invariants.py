"""What must hold of a cache that nobody uses: nothing is under way on it, and its memory's accounts add up.

For the tests of services, and for cachewright's own, where it runs after every test.
"""

from __future__ import annotations

import time

from cachewright.cache import Cache
from cachewright.core.state import FOREVER_MS
from cachewright.tiers.memory import MemoryTier

__all__ = ["assert_quiet", "unrest"]


def unrest(cache: Cache) -> list[str]:
    """What is under way on a cache, and what does not add up in its process memory; empty where it is quiet.

    Under way are loads and refreshes in this process, and the cache's background work. Connections are no unrest:
    they are held until `Cache.close`.
    """
    state = cache.engine.state
    found = [f"a load of {key!r} is under way" for key in state.flights.open_keys()]
    found += [
        f"a refresh of {key!r} is under way"
        for key, job in tuple(state.refreshing.items())
        if job is None or not job.done()
    ]
    found += [f"background work is under way: {job!r}" for job in state.jobs()]
    memory = state.chain.memory
    if memory is not None:
        found += _wrong_in(memory, found)
    return found


def _wrong_in(memory: MemoryTier, under_way: list[str]) -> list[str]:
    try:
        memory.check()
    except AssertionError as error:
        return [f"the accounts of {memory.name!r} do not add up: {error}"]
    if under_way:
        return []
    with memory._held:
        leases = memory._content.leases()
    # Such a lease would keep all who ask for its key waiting until the process ends.
    return [
        f"a lease without end on {key!r}, and no load"
        for key, one in leases.items()
        if one.life >= FOREVER_MS
    ]


def assert_quiet(*caches: Cache, timeout: float = 5.0) -> None:
    """Waits until nothing is under way on these caches; for the end of a test.

    It blocks: where the work is done by an event loop, call it from another thread or after the loop has ended.

    Args:
        *caches: the caches; they stay open.
        timeout: seconds to wait.

    Raises:
        AssertionError: something was under way all the time, or the accounts of process memory do not add up;
            the message says what.
    """
    ends = time.monotonic() + timeout
    while found := [(cache, what) for cache in caches for what in unrest(cache)]:
        if time.monotonic() >= ends:
            lines = "\n".join(f"{cache!r}: {what}" for cache, what in found)
            raise AssertionError(f"not quiet after {timeout:g} s:\n{lines}")
        time.sleep(0.005)
