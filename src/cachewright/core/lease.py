"""Holding a lease, and waiting for somebody else's.

A lease is placed in a slot *before* anything below it is read, and what was read or loaded is committed only where
the lease still stands. A heartbeat renews it while a loader runs; losing it never raises at a caller that holds a
value. One waiter per process waits for another process's lease: it polls with growing, jittered pauses, holds no
connection, and takes no lock in turn: it reads the value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cachewright.core import slot as slots
from cachewright.core.breaker import Level
from cachewright.core.flight import Flight
from cachewright.core.slot import Lease, Slot, StoredEntry
from cachewright.core.state import FOREVER_MS, State, now_ms
from cachewright.errors import TierError, TierUnavailable
from cachewright.events import TierFailed
from cachewright.options import Options
from cachewright.runtime.base import Job, Runtime, next_renewal
from cachewright.tiers.base import Swap

__all__ = ["MAX_REFUSED", "Held", "Watch", "abandon_all", "commit_all", "lease_life"]

POLL_FIRST, POLL_LONGEST = 0.005, 0.05
MAX_REFUSED = 1000  # swaps of one call: a store that refuses more would keep its caller for ever
TAKEOVER_MARGIN_MS = 500  # hosts' clocks may differ by so much before a living lease is taken for dead


def lease_life(state: State, rt: Runtime, options: Options) -> int:
    """A lease's life in ms. In process memory a thread's needs no end: it is dead once its `Held` is gone.

    A task's does not go where its event loop was stopped with it unfinished: all others would wait for ever.
    """
    forever = state.chain.in_memory and rt.name == "threads"
    return FOREVER_MS if forever else int(options.lease * 1000)


class Held:
    """A lease of ours in one tier, for ``flight``. Made *before* the swap that places it: see `Watch`."""

    def __init__(
        self,
        state: State,
        level: Level,
        key: str,
        token: bytes,
        slot: Slot,
        flight: Flight | None = None,
        *,
        only_dies: bool = False,
    ) -> None:
        self.flight = flight
        self.only_dies = only_dies  # never given back as an orphan
        self.state, self.level, self.key, self.token = state, level, key, token
        self.slot: Slot | None = slot  # what we believe stands there
        self.lost = False
        self.sent = 0.0  # monotonic seconds before the last commit was sent: its entry was true then or later
        self._closings = state.closings
        self._beat: Job | None = None
        if flight is not None or state.chain.in_memory:
            state.holding[token] = self

    def let_go(self) -> None:
        """Nothing is sent under it any more: should it still stand in process memory, others may take it over."""
        self.state.holding.pop(self.token, None)

    def orphan(self, rt: Runtime) -> None:
        """Nothing is sent under it any more, and it may stand: what placed it or was to end it was never answered."""
        slot, self.slot = self.slot, None
        self.let_go()
        if self.only_dies or slot is None or not slots.holds(slot, self.token) or self.is_over():
            return
        assert slot.lease is not None
        left = (slot.lease.life + TAKEOVER_MARGIN_MS) / 1000
        # Without the flight, and what hangs on it: that has ended.
        again = Held(self.state, self.level, self.key, self.token, slot)
        again._closings = self._closings
        self.state.orphans.add(rt, self.token, left, again.is_given_back)

    async def unplaced(self, rt: Runtime, error: BaseException) -> None:
        """What was to place it, or to use it, ended by ``error``: it may stand, and all would wait for its whole life."""
        if isinstance(error, TierUnavailable):
            self.orphan(rt)
        elif not isinstance(error, GeneratorExit):  # (collected with its loop: nothing can be awaited)
            await self.abandon(rt)

    async def is_given_back(self, rt: Runtime) -> bool:
        """Gives an orphan back; False where the tier did not answer."""
        return await self._abandon(rt) is not None

    def start_heartbeat(self, rt: Runtime) -> None:
        """Renews the lease every third of its life (rarely: over a stale entry each renewal is news to all)."""
        if self.slot is None or self.slot.lease is None or self.slot.lease.life >= FOREVER_MS:
            return
        pause = self.slot.lease.life / 3000

        async def beat() -> float | None:
            began = rt.monotonic()
            answered = await self._renew(rt)
            return None if answered is None else next_renewal(rt, began, pause, answered)

        self._beat = rt.every(pause, beat, f"lease of {self.key}")

    def stop_heartbeat(self) -> None:
        """No renewal starts from here on; one under way loses against the commit, or the commit repeats."""
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None

    def known_since(self, entry: StoredEntry) -> float | None:
        """From when memory counts the life of what was committed; None: from before the read that found no entry.

        The commit shows that nobody changed the key. It says nothing of tags: one that another process has changed
        while the loader ran makes the entry invalid in its tier, and is not heard of here.
        """
        return None if entry.tags else self.sent

    def is_over(self) -> bool:
        """The cache was closed since: nothing is sent any more, and the lease dies by its life."""
        return self.state.closings != self._closings

    async def _renew(self, rt: Runtime) -> bool | None:
        """Whether the tier answered; None: it is ours no more."""
        for _ in range(3):
            if self.is_over():
                return None
            new = slots.renew_lease(self.slot, self.token, now=now_ms(rt), nonce=rt.new_id())
            if new is None:
                self.lost = True
                return None
            try:
                swapped = await self.level.swap_one(rt, self.key, self.slot, new)
            except TierUnavailable:
                return False
            self.slot = new if swapped.done else swapped.current
            if swapped.done:
                return True
        return True

    async def commit(self, rt: Runtime, entry: StoredEntry) -> bool:
        """Puts the entry in the lease's place; False where the lease is gone, or its fate unknown."""
        self.stop_heartbeat()
        if self.is_over():
            return False
        for _ in range(MAX_REFUSED):
            new = slots.commit_load(self.slot, self.token, entry, nonce=rt.new_id())
            if new is None:
                return False
            self.sent = rt.monotonic()
            try:
                swapped = await self.level.swap_one(rt, self.key, self.slot, new)
            except TierUnavailable:
                self.orphan(rt)
                return False
            except TierError as error:  # a server that refuses this value, as too large, say
                self.state.hub.emit(TierFailed(self.level.tier.name, "commit", error))
                return False
            if swapped.done:
                return True
            self.slot = swapped.current
        return False

    async def abandon(self, rt: Runtime, retry_at: int | None = None) -> bool:
        """Gives the lease back; True where it still stood, so that nothing changed the key meanwhile.

        ``retry_at``: see `slot.abandon`.
        """
        given = await self._abandon(rt, retry_at)
        if given is None:
            self.orphan(rt)
        return bool(given)

    async def _abandon(self, rt: Runtime, retry_at: int | None = None) -> bool | None:
        """`abandon`; None where the tier did not answer."""
        self.stop_heartbeat()
        if self.is_over():
            return False
        for _ in range(MAX_REFUSED):
            mine, new = slots.abandon(self.slot, self.token, nonce=rt.new_id(), retry_at=retry_at)
            if not mine:
                return False
            try:
                swapped = await self.level.swap_one(rt, self.key, self.slot, new)
            except TierUnavailable:
                return None
            except TierError:
                return False  # it dies by its life
            if swapped.done:
                return True
            self.slot = swapped.current
        return False


async def commit_all(rt: Runtime, pairs: Sequence[tuple[Held, StoredEntry]]) -> list[bool]:
    """`Held.commit` for leases of one tier, in one batch; the few that are refused repeat by themselves."""
    if len(pairs) == 1:
        return [await held.commit(rt, entry) for held, entry in pairs]
    done = await _swap_all(rt, [held for held, _ in pairs], dict(pairs))
    return [ok or await held.commit(rt, entry) for ok, (held, entry) in zip(done, pairs, strict=True)]


async def abandon_all(rt: Runtime, helds: Sequence[Held]) -> list[bool]:
    """`Held.abandon` for leases of one tier, in one batch."""
    if len(helds) == 1:
        return [await held.abandon(rt) for held in helds]
    done = await _swap_all(rt, helds, {})
    return [ok or await held.abandon(rt) for ok, held in zip(done, helds, strict=True)]


async def _swap_all(rt: Runtime, helds: Sequence[Held], entries: Mapping[Held, StoredEntry]) -> list[bool]:
    """One try for all; a tier that cannot be reached leaves every one undone (and lost)."""
    mine, swaps = [], []
    for held in helds:
        held.stop_heartbeat()
        # Where a renewal was refused, what stands is somebody else's lease, entry or intent.
        if not slots.holds(held.slot, held.token):
            continue
        held.sent = rt.monotonic()
        entry = entries.get(held)
        if entry is not None:
            new = slots.commit_load(held.slot, held.token, entry, nonce=rt.new_id())
        else:
            new = slots.abandon(held.slot, held.token, nonce=rt.new_id())[1]
        mine.append(held)
        swaps.append(Swap(held.key, held.slot, new))
    if not swaps or helds[0].is_over():
        return [False] * len(helds)
    try:
        results = await helds[0].level.swap(rt, swaps)
    except TierError:
        for held in helds:
            held.orphan(rt)
        return [False] * len(helds)
    done = set()
    for held, swapped in zip(mine, results, strict=True):
        if swapped.done:
            done.add(held)
        else:
            held.slot = swapped.current
    return [held in done for held in helds]


class Watch:
    """Waiting for a lease that somebody else holds, and judging whether that one is dead.

    The better judge is an own clock that has seen the same lease, never renewed, for a full life. One who comes late
    goes by the deadline written in it, with a margin for clocks that differ.

    A lease without end in process memory is dead where nobody is holding it (`State.holding`): what a signal handler
    raises may unwind its holder between any two steps. So is one of this process's own `Orphans`.
    """

    def __init__(self, state: State) -> None:
        self._orphans = state.orphans
        self._holding = state.holding if state.chain.in_memory else None
        self._nonce: bytes | None = None
        self._since = 0.0
        self.pauses = 0
        self._awaited: Flight | None = None
        self._no_more: Callable[[], None] | None = None

    def awaits(self, state: State, rt: Runtime, lease: Lease, mine: Flight, key: str) -> None:
        """``mine`` waits for this lease. Where this very process holds it, that is to be seen in a circle of loads.

        Raises:
            RecursiveLoadError, WouldDeadlockError: see `Flights.awaits_lease`.
        """
        held = state.holding.get(lease.token)
        holder = held.flight if held is not None else None
        if holder is not self._awaited:
            self.awaits_no_more()
            if holder is not None:
                self._no_more = state.flights.awaits_lease(rt, mine, holder, key)
                self._awaited = holder

    def awaits_no_more(self) -> None:
        """Whatever it waited for, that is over."""
        no_more, self._no_more, self._awaited = self._no_more, None, None
        if no_more is not None:
            no_more()

    def is_dead(self, rt: Runtime, slot: Slot) -> bool:
        """Whether the slot's lease may be taken over."""
        lease = slot.lease
        if lease is None:
            return False
        if now_ms(rt) > lease.deadline + TAKEOVER_MARGIN_MS:
            return True
        if lease.life >= FOREVER_MS and self._holding is not None:
            return self._holding.get(lease.token) is None
        if lease.token in self._orphans:
            return True
        if self._nonce != slot.nonce:
            self._nonce, self._since = slot.nonce, rt.monotonic()
            return False
        return rt.monotonic() - self._since >= lease.life / 1000

    async def pause(self, rt: Runtime) -> None:
        """One growing, jittered pause."""
        self.pauses += 1
        longest = min(POLL_LONGEST, POLL_FIRST * 2 ** min(self.pauses - 1, 10))
        await rt.sleep(longest * (0.75 + rt.random() / 2))
