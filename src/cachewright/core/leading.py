"""What the leader of a flight does: read, lease, look below, call the loader, commit where the lease still stands.

The order is the point; each step's reason is at the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from cachewright.core import slot as slots
from cachewright.core.ahead import refresh_is_due
from cachewright.core.context import LoadContext
from cachewright.core.flight import Flight, Outcome, Phase
from cachewright.core.lease import MAX_REFUSED, Held, Watch, lease_life
from cachewright.core.levels import Below, commit_down, look_below
from cachewright.core.loader import Loaded, late_tags_hold, run_loader
from cachewright.core.slot import Blocked, Hit, Slot, StoredEntry, Take, Wait
from cachewright.core.stale import answers_at_once, failed_lately, served_stale
from cachewright.core.state import State, now_ms
from cachewright.errors import TierUnavailable
from cachewright.events import LeaseLost, LoadFailed
from cachewright.events import Loaded as LoadedEvent
from cachewright.options import MISSING, Options
from cachewright.runtime.base import Runtime
from cachewright.tiers.base import Generation, Swapped
from cachewright.tiers.memory import Ticket

__all__ = ["Leading", "Plan"]

NO_MARK = bytes(8)


class Plan(msgspec.Struct, frozen=True):
    """One load as it was asked for.

    Attributes:
        key: the key.
        loader: called without arguments.
        options: merged options.
        tags: the tags of the entry to be, implicit ones included.
        forced: a refresh: a fresh entry does not end it.
        behind: nobody waits: where another process loads already, it is left to that one.
    """

    key: str
    loader: Callable[[], Any]
    options: Options
    tags: tuple[str, ...] = ()
    forced: bool = False
    behind: bool = False


Result = tuple[Outcome, Any]


class _Won(msgspec.Struct, frozen=True):
    """The lease is ours."""

    held: Held
    stale: StoredEntry | None
    marks: dict[str, bytes]


class Leading:
    """One leader's way through one load. ``refresh_behind`` starts a refresh that flies alone."""

    def __init__(
        self,
        state: State,
        rt: Runtime,
        plan: Plan,
        flight: Flight,
        refresh_behind: Callable[[State, Runtime, Plan], None],
    ) -> None:
        self.state, self.rt, self.plan, self.flight = state, rt, plan, flight
        self.refresh_behind = refresh_behind
        self.watch = Watch(state)
        self.held: Held | None = None
        self.refused = 0  # swaps
        self.ticket: Ticket | None = None
        self.generations: Mapping[str, Generation] = {}
        self.stale: Any = MISSING
        self.stale_entry: StoredEntry | None = None
        self.context: LoadContext | None = None
        # Nonce of a slot whose payload could not be read: as good as absent.
        self.unreadable: bytes | None = None
        self.waiting = False

    async def run(self) -> Result:
        """Rounds of reading until there is a value or the load is ours."""
        state, rt, key = self.state, self.rt, self.plan.key
        tags = state.tags_of(self.plan.tags)
        while True:
            # Before the read: a kill that comes in between must refuse the fill.
            self.ticket = state.ticket(key)
            state.flights.reached(self.flight, Phase.READING)
            try:
                standing, self.generations = await state.chain.authority.read(rt, (key,), tags)
                met = await self._meet(standing.get(key))
            except TierUnavailable:
                if state.strict:
                    raise
                return await self._without_authority()
            # Outside of the try: a loader may well raise a TierUnavailable of its own.
            if isinstance(met, Blocked):
                return await self._load_without_storing()
            if isinstance(met, _Won):
                return await self._with_lease(met.held, met.stale, met.marks)
            if met is not None:
                return met
            # Whoever joins during the pause joins before the next read.
            state.flights.reached(self.flight, Phase.STARTED)
            if self.waiting:
                await self.watch.pause(rt)

    def let_go(self) -> None:
        """Whatever became of the lease: nothing is sent under it any more.

        Its `Held` may live on in the traceback of what interrupted this load.
        """
        self.watch.awaits_no_more()
        if self.held is not None:
            self.held.let_go()
        if self.context is not None:
            self.context.end()  # its own end may have been interrupted

    async def _meet(self, slot: Slot | None) -> Result | Blocked | _Won | None:
        """Decides on what stands in the authority: an answer, a load with or without the lease, or None: read again."""
        state, rt, plan = self.state, self.rt, self.plan
        self.waiting = False
        while True:
            verdict = await self._verdict(slot)
            if isinstance(verdict, Hit):
                value = self._found(verdict.entry, slot)
                if value is MISSING:
                    continue
                return Outcome.FOUND, value
            if not isinstance(verdict, Wait):
                self.watch.awaits_no_more()
            if isinstance(verdict, Blocked):
                return verdict
            served = self._serve_stale(verdict.stale, slot)
            if served is not MISSING:
                return Outcome.FOUND, served
            if plan.behind and (isinstance(verdict, Wait) or self._failed_lately(verdict, slot)):
                return Outcome.FOUND, MISSING
            if isinstance(verdict, Wait):
                self.watch.awaits(state, rt, verdict.lease, self.flight, plan.key)
                state.stats.waits += not self.watch.pauses
                self.waiting = True
                return None
            # First the generations, then the lease, then all below: what decides whether the value may be stored.
            marks = await state.capture(rt, state.tags_of(plan.tags), self.generations)
            swapped = await self._place_lease(slot, verdict)
            if isinstance(swapped, Held):
                return _Won(swapped, verdict.stale, marks)
            self.let_go()
            slot = swapped.current
            self.refused += 1
            if self.refused > MAX_REFUSED:
                return Blocked()
            if slot is not None and slot.entry is not None and slot.entry.tags:
                return None  # its tags must be read with it or after it

    async def _place_lease(self, slot: Slot | None, verdict: Take) -> Held | Swapped:
        state, rt, key = self.state, self.rt, self.plan.key
        new = slots.begin_lease(verdict.slot, now=now_ms(rt))
        # Before the swap: one that is interrupted after it leaves a lease that somebody held.
        self.held = held = Held(state, state.chain.authority, key, verdict.token, new, self.flight)
        try:
            swapped = await state.chain.authority.swap_one(rt, key, slot, new)
        except BaseException as error:
            await held.unplaced(rt, error)
            raise
        return held if swapped.done else swapped

    def _failed_lately(self, verdict: Take, slot: Slot | None) -> bool:
        """Another process has tried and failed between this refresh's start and its read: the origin has rest."""
        return verdict.stale is not None and failed_lately(slot, now_ms(self.rt))

    async def _verdict(self, slot: Slot | None) -> Hit | Wait | Blocked | Take:
        state, rt = self.state, self.rt
        valid = slot is None or slot.entry is None or await state.is_valid(rt, slot.entry, self.generations)
        return slots.begin_load(
            slot,
            now=now_ms(rt),
            lease_life=lease_life(state, rt, self.plan.options),
            nonce=rt.new_id(),
            token=rt.new_id(),
            valid=valid and (slot is None or slot.nonce != self.unreadable),
            forced=self.plan.forced,
            takeover=slot is not None and self.watch.is_dead(rt, slot),
        )

    def _value(self, entry: StoredEntry, slot: Slot | None) -> Any:
        state, plan = self.state, self.plan
        value = state.value_of(plan.key, entry, plan.options.type, state.chain.authority.tier.name)
        if value is MISSING and slot is not None:
            self.unreadable = slot.nonce
        return value

    def _found(self, entry: StoredEntry, slot: Slot | None) -> Any:
        """A fresh entry's value; `MISSING` where its payload cannot be read, which makes it a miss."""
        state, rt, plan = self.state, self.rt, self.plan
        value = self._value(entry, slot)
        if value is MISSING:
            return MISSING
        state.stats.hits += 1
        state.fill(rt, self.ticket, value, entry, plan.options)
        if (
            not plan.behind
            and not failed_lately(slot, now_ms(rt))
            and refresh_is_due(rt, entry, plan.options)
        ):
            self.refresh_behind(state, rt, replace(plan, forced=True, behind=True))
        return value

    def _serve_stale(self, stale: StoredEntry | None, slot: Slot | None) -> Any:
        """A stale value that may be served at once, its refresh started; else `MISSING`."""
        state, rt, plan = self.state, self.rt, self.plan
        self.stale, self.stale_entry = MISSING, stale
        if stale is None:
            return MISSING
        self.stale = self._value(stale, slot)
        if self.stale is MISSING or plan.forced or plan.behind:
            return MISSING
        why = answers_at_once(stale, slot, now_ms(rt))
        if why is None:
            return MISSING
        served_stale(state, (plan.key,), why)
        if not failed_lately(slot, now_ms(rt)):
            self.refresh_behind(state, rt, replace(plan, behind=True))
        return self.stale

    # --------------------------------------------------------------------------------- the load is ours

    async def _with_lease(self, held: Held, stale: StoredEntry | None, marks: dict[str, bytes]) -> Result:
        state, rt, plan = self.state, self.rt, self.plan
        below: Below | None = None
        try:
            if state.chain.lowers:
                # A refresh takes nothing from below, but what it loads goes there too.
                found = await look_below(
                    state, rt, [plan.key], plan.options, self.generations, lease=True, take=not plan.forced
                )
                below = found[plan.key]
                if below.entry is not None:
                    return await self._found_below(held, below, below.entry)
            held.start_heartbeat(rt)
            loaded = await self._call_loader()
            # No joiners from here on: the commit speaks for those who came before it.
            state.flights.close(plan.key, self.flight)
            await self._commit(held, below, loaded, marks, stale if loaded.renewed else None)
        except Exception as error:
            return await self._failed(error, held, stale, below)
        except BaseException:
            await _give_up(rt, held, below)
            raise
        return Outcome.LOADED, loaded.value

    async def _call_loader(self) -> Loaded:
        state, plan = self.state, self.plan
        state.flights.reached(self.flight, Phase.LOADING)
        state.stats.misses += 1
        note = None
        if self.stale_entry is not None and self.stale is not MISSING:
            note = state.note_of(plan.key, self.stale_entry, state.chain.authority.tier.name)
        self.context = LoadContext(state, plan.key, plan.options, self.stale, (self.flight,), note=note)
        return await run_loader(state, self.rt, plan.loader, self.context)

    async def _found_below(self, held: Held, below: Below, entry: StoredEntry) -> Result:
        state, rt = self.state, self.rt
        state.stats.hits += 1
        state.flights.close(self.plan.key, self.flight)
        taken = await held.commit(rt, entry)
        await commit_down(rt, below, entry if taken else None)
        if taken:
            state.fill(rt, self.ticket, below.value, entry, self.plan.options, held.known_since(entry))
        return Outcome.FOUND, below.value

    async def _commit(
        self,
        held: Held,
        below: Below | None,
        loaded: Loaded,
        marks: dict[str, bytes],
        renews: StoredEntry | None,
    ) -> None:
        state, rt, plan = self.state, self.rt, self.plan
        if held.is_over():
            held.stop_heartbeat()
            return
        options = plan.options
        said = loaded.said
        store = said.get("store", True) and (options.store_if is None or options.store_if(loaded.value))
        # What is renewed keeps the tags that its first load named: who found nothing new has nothing to name them by.
        kept = {tag: mark for tag, mark in renews.tags if tag not in marks} if renews is not None else {}
        late = [tag for tag in said.get("tags", ()) if tag not in marks and tag not in kept]
        late_marks: dict[str, bytes] | None = None if late else {}
        if store and late:
            late_marks = await late_tags_hold(state, rt, late, loaded.started)
        if store and kept and renews is not None and not await state.is_valid(rt, renews, {}):
            late_marks = None
        # Tags that nobody could check may have changed before a late joiner came: then it must not take the value.
        checked = late_marks is not None
        marks = {**marks, **(late_marks or {})}
        if not (store and checked):
            self.flight.confirmed = await held.abandon(rt, 0) and checked
            await commit_down(rt, below, None)
        else:
            entry = state.make_entry(
                rt, plan.key, loaded.value, options, marks, said=said, cost=loaded.seconds, renews=renews
            )
            self.flight.confirmed = taken = await held.commit(rt, entry)
            await commit_down(rt, below, entry if taken else None)
            state.hub.emit(LoadedEvent(plan.key, loaded.seconds, taken))
            if taken:
                state.fill(rt, self.ticket, loaded.value, entry, options, held.known_since(entry))
            else:
                state.stats.lost_leases += 1
                state.hub.emit(LeaseLost(plan.key))
        if self.flight.confirmed and marks and self.flight.joined_late:
            # A tag that changed before a late joiner came is seen only by reading it again.
            self.flight.spoiled = not await state.still_stand(rt, marks)

    async def _failed(
        self, error: Exception, held: Held, stale: StoredEntry | None, below: Below | None
    ) -> Result:
        """The load failed: remember it beside a stale value, and serve that if the options allow."""
        state, rt, plan = self.state, self.rt, self.plan
        # Who comes while the lease is given back has nothing to do with a load that failed before.
        state.flights.close(plan.key, self.flight)
        error_ttl = int(plan.options.error_ttl * 1000)
        await _give_up(rt, held, below, now_ms(rt) + error_ttl if stale is not None else 0)
        state.hub.emit(LoadFailed(plan.key, error))
        unserved = stale is None or self.stale is MISSING or now_ms(rt) >= stale.sie_until
        # A refresh's failure is told, and nobody waits for a value.
        if unserved or plan.forced or plan.behind:
            raise error
        served_stale(state, (plan.key,), "error")
        return Outcome.FOUND, self.stale

    # ----------------------------------------------------------------------------------- nothing is stored

    async def _load_without_storing(self) -> Result:
        """A write is under way: whatever is read now may be older than what it saves."""
        if self.plan.behind:
            return Outcome.FOUND, MISSING
        return Outcome.LOADED, (await self._loaded_alone()).value

    async def _loaded_alone(self) -> Loaded:
        state, plan = self.state, self.plan
        try:
            loaded = await self._call_loader()
        except Exception as error:
            state.hub.emit(LoadFailed(plan.key, error))
            raise
        state.flights.close(plan.key, self.flight)
        return loaded

    async def _without_authority(self) -> Result:
        """The authority cannot be reached: another tier or the origin answers; memory keeps it for ``local_ttl``.

        Without the authority's generations only entries without users' tags can be trusted below.
        """
        state, rt, plan = self.state, self.rt, self.plan
        self.watch.awaits_no_more()
        if plan.behind:
            return Outcome.FOUND, MISSING
        if state.chain.lowers and not plan.forced:
            below = (await look_below(state, rt, [plan.key], plan.options, None, lease=False))[plan.key]
            if below.entry is not None:
                return Outcome.FOUND, below.value
        epoch = state.flights.epoch
        loaded = await self._loaded_alone()
        value, said = loaded.value, loaded.said
        # Nobody else's changes can be known of now; this process's can.
        self.flight.confirmed = not self.flight.killed and state.flights.epoch == epoch
        options = plan.options
        store = said.get("store", True) and (options.store_if is None or options.store_if(value))
        # Tags that came with the value cannot be checked: nothing would tell whether they changed meanwhile.
        if self.ticket is not None and store and not said.get("tags"):
            # So that a change of a tag finds it here.
            marks = dict.fromkeys(state.tags_of(plan.tags), NO_MARK)
            entry = state.make_entry(rt, plan.key, value, options, marks, said=said)
            state.fill(rt, self.ticket, value, entry, options, rt.monotonic())
        return Outcome.LOADED, value


async def _give_up(rt: Runtime, held: Held, below: Below | None, retry_at: int | None = None) -> None:
    await held.abandon(rt, retry_at)
    await commit_down(rt, below, None)
