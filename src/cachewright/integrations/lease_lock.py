"""A lock that all processes on a cache's tiers share: a lease in a slot of its own, held without loading anything.

Its holder may die without hanging anyone: the lease is renewed for as long as the holder's process lives, and ends
within its life (`Options.lease`, 5 s) when that is gone. As with any lock that can outlive its holder's attention, a
process that was paused for longer than that may find that somebody else holds the lock by now; so it is right where
holding it twice costs double work (building one value), not where it would do damage.
"""

from __future__ import annotations

import os
import threading

from cachewright.cache import Cache
from cachewright.core import slot as slots
from cachewright.core.lease import Held, Watch
from cachewright.core.slot import Take, Wait
from cachewright.core.state import now_ms
from cachewright.errors import TierUnavailable
from cachewright.keys import check_key
from cachewright.runtime.base import Runtime, drive

__all__ = ["LeaseLock"]


class LeaseLock:
    """A lock by name. Not reentrant; what one thread acquired another may release.

    While the tier that decides cannot be reached it keeps only the threads of this process apart, or, with
    ``on_outage="raise"``, raises.

    Args:
        cache: on whose tiers it lies.
        name: which lock; as a key may be. It is apart from the key of the same name.
    """

    def __init__(self, cache: Cache, name: str) -> None:
        engine = cache.engine
        self._rt: Runtime = cache._threads
        self._state = engine.state
        # Also in process memory it must end: who holds it may be a thread that died.
        self._life = int(engine.options.lease * 1000)
        self._key = f"\0lock:{check_key(name)}"  # no key of a user's begins with NUL
        self._pid = 0
        self._become_ours()

    def _become_ours(self) -> None:
        """After a fork the parent's threads hold the lock, not the child's."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._local = threading.Lock()
            self._held: Held | None = None

    def acquire(self, wait: bool = True) -> bool:
        """Takes the lock; with ``wait=False`` only where it is free. True if it was taken.

        Raises:
            TierUnavailable: the tier cannot be reached, and the cache was made with ``on_outage="raise"``.
        """
        self._become_ours()
        local = self._local
        if not local.acquire(wait):
            return False
        taken = False
        try:
            taken = drive(self._take(wait))
        finally:
            if not taken:
                local.release()
        return taken

    def release(self) -> None:
        """Gives the lock back. In a child that was forked while it was held: nothing, the parent holds it.

        Raises:
            RuntimeError: nobody holds it here.
        """
        if self._pid != os.getpid():
            return
        held, self._held = self._held, None
        try:
            if held is not None:
                drive(held.abandon(self._rt))
        finally:
            self._local.release()

    def locked(self) -> bool:
        """Whether anybody holds it, in this process or another."""
        self._become_ours()
        if self._local.locked():
            return True
        try:
            slot = drive(self._state.chain.authority.read(self._rt, (self._key,)))[0].get(self._key)
        except TierUnavailable:
            if self._state.strict:
                raise
            return False
        return slot is not None and slot.lease is not None and not Watch(self._state).is_dead(self._rt, slot)

    async def _take(self, wait: bool) -> bool:
        rt, authority, watch, refused = self._rt, self._state.chain.authority, Watch(self._state), 0
        while True:
            try:
                slot = (await authority.read(rt, (self._key,)))[0].get(self._key)
                verdict = slots.begin_load(
                    slot,
                    now=now_ms(rt),
                    lease_life=self._life,
                    nonce=rt.new_id(),
                    token=rt.new_id(),
                    forced=True,
                    takeover=slot is not None and watch.is_dead(rt, slot),
                )
                if isinstance(verdict, Take):
                    held = Held(self._state, authority, self._key, verdict.token, verdict.slot)
                    try:
                        swapped = await authority.swap_one(rt, self._key, slot, verdict.slot)
                    except BaseException:
                        held.orphan(rt)
                        raise
                    if swapped.done:
                        self._held = held
                        held.start_heartbeat(rt)
                        return True
                    refused += 1  # somebody else's change came first
                    if wait or refused < 5:
                        await watch.pause(rt)
                        continue
                    return False
            except TierUnavailable:
                if self._state.strict:
                    raise
                return True
            if not isinstance(verdict, Wait):
                return True  # what a newer version wrote is left alone, as if it could not be reached
            if not wait:
                return False
            await watch.pause(rt)

    def __del__(self) -> None:
        # Who held it died without releasing it: nobody renews it any more.
        held = getattr(self, "_held", None)
        if held is not None:
            held.stop_heartbeat()
