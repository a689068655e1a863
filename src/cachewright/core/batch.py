"""Loading many keys: one round trip a tier, one loader call for all that is missing, a lease for each.

Keys that somebody else is loading, in this process or another, and keys under a write take the way of a single load
afterwards, each for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cachewright.core.flight import ABSENT, Flight, LoadContext, NotModified, Outcome, Phase, laid_over
from cachewright.core.leading import Plan
from cachewright.core.lease import Held, abandon_all, commit_all
from cachewright.core.levels import Below, look_below, place_leases
from cachewright.core.load import get_or_load
from cachewright.core.loader import Loaded, run_loader
from cachewright.core.read import fresh_entries
from cachewright.core.slot import StoredEntry
from cachewright.core.state import State, now_ms
from cachewright.errors import ConfigurationError, TierUnavailable
from cachewright.events import LeaseLost, LoadFailed, StaleServed
from cachewright.options import MISSING, Entry, Options
from cachewright.runtime.base import Runtime
from cachewright.tiers.memory import Ticket

__all__ = ["get_or_load_many"]

LoaderMany = Callable[[list[str]], Any]


async def get_or_load_many(
    state: State,
    rt: Runtime,
    keys: Sequence[str],
    loader: LoaderMany,
    options: Options,
    tags: tuple[str, ...],
) -> dict[str, Any]:
    """The values of these keys; those that the loader left out are left out.

    Raises:
        Exception: what the loader raised as a whole, or the first exception that it gave as a key's value, after the
            other keys were stored.
    """
    batch = _Batch(state, rt, loader, options, tags)
    keys = list(dict.fromkeys(keys))
    try:
        await batch.read(keys)
        await batch.lead([key for key in keys if key not in batch.values])
    finally:
        batch.hand_on()
    for key in [key for key in keys if key not in batch.values and key not in batch.done]:
        value = await get_or_load(state, rt, batch.single(key))
        if value is not ABSENT:
            batch.values[key] = value
    if batch.errors:
        raise next(iter(batch.errors.values()))
    return {key: batch.values[key] for key in keys if key in batch.values}


class _Batch:
    def __init__(
        self, state: State, rt: Runtime, loader: LoaderMany, options: Options, tags: tuple[str, ...]
    ) -> None:
        self.state, self.rt, self.loader, self.options, self.tags = state, rt, loader, options, tags
        self.values: dict[str, Any] = {}
        self.done: set[str] = set()  # answered: has a value, an error, or is absent
        self.errors: dict[str, Exception] = {}
        self.stale: dict[str, StoredEntry] = {}  # what may answer where a load fails
        self.flights: dict[str, Flight] = {}
        self.leases: list[Held] = []
        self.tickets: dict[str, Ticket | None] = {}
        self.since: dict[str, float | None] = {}  # see `Held.known_since`
        self.unreachable = False

    async def read(self, keys: list[str]) -> None:
        """What stands fresh in the authority."""
        state, rt = self.state, self.rt
        self.tickets = {key: state.ticket(key) for key in keys}
        # Led before the read, so that whoever joins from here on joins before it.
        for key in keys:
            # Ours before it is open to others: whatever interrupts this, `hand_on` ends it.
            flight = self.flights[key] = Flight()
            flight.thread, flight.leader_alive = rt.whoami()
            if state.flights.lead(state, key, flight):
                state.flights.reached(flight, Phase.READING)
            else:
                del self.flights[key]
        try:
            self.standing, self.generations = await state.chain.authority.read(
                rt, keys, state.tags_of(self.tags)
            )
            entries = await fresh_entries(state, rt, self.standing, self.generations)
        except TierUnavailable:
            if state.strict:
                raise
            self.standing, self.generations, entries, self.unreachable = {}, {}, {}, True
        for key, entry in entries.items():
            value = state.value_of(key, entry, self.options.type, state.chain.authority.tier.name)
            if value is not MISSING:
                state.stats.hits += 1
                self.values[key] = value
                state.fill(rt, self.tickets[key], value, entry, self.options)
                self._finish(key, Outcome.FOUND, value)

    async def lead(self, missing: list[str]) -> None:
        """Leases, looks below, loads and commits the keys that nobody else is at."""
        state, rt = self.state, self.rt
        if self.unreachable and missing:
            await self._load({}, {}, {}, missing)
            return
        try:
            wanted = {
                key: self.standing.get(key)
                for key in missing
                if key in self.flights and await self._is_ours(key)
            }
            if not wanted:
                return
            marks = await state.capture(rt, state.tags_of(self.tags), self.generations)
            invalid = wanted.keys() - self.stale.keys()
            held = await place_leases(
                state, rt, state.chain.authority, wanted, self.options, invalid, self.leases
            )
        except TierUnavailable:
            if state.strict:
                raise
            return
        try:
            below = await look_below(state, rt, list(held), self.options, self.generations, lease=True)
            await self._take_below(held, below)
            if held:
                await self._load(held, below, marks, list(held))
        except BaseException:
            await abandon_all(rt, list(held.values()))
            raise

    async def _is_ours(self, key: str) -> bool:
        """Whether the batch may load it: nobody else is at it, and no stale value may answer at once (that is the way
        of a single load, which refreshes behind). A stale value that may answer for an error is kept for that."""
        slot = self.standing.get(key)
        if slot is None or (slot.lease is None and slot.entry is None):
            return True
        if slot.lease is not None or slot.entry is None:
            return False
        entry, now = slot.entry, now_ms(self.rt)
        if now >= entry.fresh_until and await self.state.is_valid(self.rt, entry, self.generations):
            if now < entry.swr_until or now < min(slot.retry_at, entry.sie_until):
                return False
            self.stale[key] = entry
        return True

    async def _take_below(self, held: dict[str, Held], below: Mapping[str, Below]) -> None:
        found: list[tuple[Held, StoredEntry]] = [
            (held.pop(key), one.entry) for key, one in below.items() if one.entry is not None
        ]
        taken = await commit_all(self.rt, found)
        await self._down(
            below, {lease.key: entry for (lease, entry), took in zip(found, taken, strict=True) if took}
        )
        for (lease, entry), took in zip(found, taken, strict=True):
            value = self.values[lease.key] = below[lease.key].value
            self.state.stats.hits += 1
            if took:
                seen = lease.known_since(entry)
                self.state.fill(self.rt, self.tickets[lease.key], value, entry, self.options, seen)
            self._finish(lease.key, Outcome.FOUND, value)

    async def _load(
        self, held: dict[str, Held], below: Mapping[str, Below], marks: dict[str, bytes], keys: list[str]
    ) -> None:
        """One loader call for ``keys``; those that we hold leases on (none, without the authority) are stored."""
        state, rt = self.state, self.rt
        for lease in held.values():
            lease.start_heartbeat(rt)
        for key in keys:
            if key in self.flights:
                state.flights.reached(self.flights[key], Phase.LOADING)
        state.stats.misses += len(keys)
        flights = [self.flights[key] for key in keys if key in self.flights]
        context = LoadContext(
            state, keys[0], self.options, MISSING, flights, also=frozenset(keys), find=self._kept
        )
        try:
            loaded = await run_loader(state, rt, lambda: self.loader(keys), context)
        except Exception as error:
            # Who comes while the leases are given back has nothing to do with a load that failed before.
            self._close(keys)
            answered = [await self._failed(key, error, held) for key in keys]
            await self._down(below, {})
            if not all(answered):
                raise
            return
        self._close(keys)
        found = _mapping(loaded.value)
        entries = self._entries(found, list(held), marks, loaded, context)
        pairs = [(held[key], entry) for key, entry in entries.items()]
        taken = await commit_all(rt, pairs)
        self.since = {lease.key: lease.known_since(entry) for lease, entry in pairs}
        stored = {lease.key: entry for (lease, entry), took in zip(pairs, taken, strict=True) if took}
        await self._down(below, stored)
        for key in keys:
            if isinstance(failure := found.get(key), Exception):
                await self._failed(key, failure, held)
        rest = [lease for key, lease in held.items() if key not in entries]
        stood = await abandon_all(rt, rest)
        confirmed = stored.keys() | {lease.key for lease, mine in zip(rest, stood, strict=True) if mine}
        held.clear()
        late = any(key in self.flights and self.flights[key].joined_late for key in confirmed)
        # As for one key: a tag may have changed before a late joiner came.
        spoiled = late and bool(marks) and not await state.still_stand(rt, marks)
        for key in [key for key in keys if key not in self.done]:
            if key in self.flights:
                self.flights[key].spoiled = spoiled
            self._answer(key, found, stored.get(key), key in confirmed)

    def _kept(self, key: str) -> tuple[Any, Any]:
        """The stale value of a key and its note, for its loader to see."""
        state, entry = self.state, self.stale.get(key)
        if entry is None:
            return MISSING, None
        tier = state.chain.authority.tier.name
        value = state.value_of(key, entry, self.options.type, tier)
        return (value, state.note_of(key, entry, tier)) if value is not MISSING else (MISSING, None)

    def _close(self, keys: list[str]) -> None:
        """No further joiners from here on."""
        for key in keys:
            if key in self.flights:
                self.state.flights.close(key, self.flights[key])

    async def _failed(self, key: str, error: Exception, held: dict[str, Held]) -> bool:
        """A key's load failed: True where its stale value answers, and the failure is remembered beside it."""
        state, options = self.state, self.options
        self.done.add(key)
        state.hub.emit(LoadFailed(key, error))
        stale, now = self.stale.get(key), now_ms(self.rt)
        lease = held.pop(key, None)
        if lease is not None:
            await lease.abandon(self.rt, now + int(options.error_ttl * 1000) if stale is not None else 0)
        value: Any = MISSING
        if stale is not None and now < stale.sie_until:
            value = state.value_of(key, stale, options.type, state.chain.authority.tier.name)
        if value is MISSING:
            self.errors[key] = error
            self._finish(key, Outcome.FAILED, error=error)
            return False
        self.values[key] = value
        state.stats.stale_served += 1
        state.hub.emit(StaleServed(key, "error"))
        self._finish(key, Outcome.FOUND, value)
        return True

    def _entries(
        self,
        found: Mapping[str, Any],
        keys: list[str],
        marks: dict[str, bytes],
        loaded: Loaded,
        context: LoadContext,
    ) -> dict[str, StoredEntry]:
        entries = {}
        for key in keys:
            value = _bare(found.get(key, ABSENT))
            if value is ABSENT or isinstance(value, Exception):
                continue
            part, given = context.parts.get(key), found[key]
            said = {**loaded.said, **(part.said if part is not None else {})}
            if isinstance(given, Entry):
                said = laid_over(said, given)
            renewed = part is not None and isinstance(given, NotModified) and given.load is part
            if said.get("tags"):
                raise ConfigurationError("Entry(…, tags=…) in a batch: give the tags to get_or_set_many")
            if said.get("store", True) and (self.options.store_if is None or self.options.store_if(value)):
                entries[key] = self.state.make_entry(
                    self.rt,
                    key,
                    value,
                    self.options,
                    marks,
                    said=said,
                    cost=loaded.seconds,
                    renews=self.stale.get(key) if renewed else None,
                )
        return entries

    def _answer(self, key: str, found: Mapping[str, Any], entry: StoredEntry | None, confirmed: bool) -> None:
        state = self.state
        value = _bare(found.get(key, ABSENT))
        self.done.add(key)
        flight = self.flights.get(key)
        if flight is not None:
            flight.confirmed = confirmed
        if value is not ABSENT:
            self.values[key] = value
            if entry is not None:
                state.fill(self.rt, self.tickets[key], value, entry, self.options, self.since.get(key))
            else:
                state.stats.lost_leases += not confirmed
                if not confirmed:
                    state.hub.emit(LeaseLost(key))
            self._finish(key, Outcome.LOADED, value)
            return
        self._finish(key, Outcome.HANDED_ON)

    async def _down(self, below: Mapping[str, Below], stored: Mapping[str, StoredEntry]) -> None:
        """Lower leases, tier by tier: those of keys that the authority took are committed, the rest abandoned."""
        for level in self.state.chain.lowers:
            ours = [lease for one in below.values() for lease in one.leases if lease.level is level]
            await commit_all(self.rt, [(lease, stored[lease.key]) for lease in ours if lease.key in stored])
            await abandon_all(self.rt, [lease for lease in ours if lease.key not in stored])

    def _finish(self, key: str, outcome: Outcome, value: Any = None, error: Exception | None = None) -> None:
        flight = self.flights.get(key)
        if flight is not None and flight.outcome is None:
            flight.value, flight.error = value, error
            self.state.flights.finish(key, flight, outcome)
        self.flights.pop(key, None)  # last: `hand_on` is to find it where this was interrupted

    def hand_on(self) -> None:
        """Whatever this batch does not answer is for somebody else to lead.

        Nothing is sent under its leases any more: they may live on in the traceback of what ended it.
        """
        for lease in self.leases:
            lease.let_go()
        for key in list(self.flights):
            self._finish(key, Outcome.HANDED_ON)

    def single(self, key: str) -> Plan:
        """The same load for one key."""

        async def load_async() -> Any:
            return _one(await self.rt.call(self.loader, [key]), key)

        def load() -> Any:
            return _one(self.loader([key]), key)

        options = self.options
        kept = options.store_if

        def store_if(value: Any) -> bool:
            return value is not ABSENT and (kept is None or kept(value))

        loader = load if self.rt.name == "threads" else load_async
        return Plan(key, loader, replace(options, store_if=store_if), self.tags)


def _mapping(result: Any) -> Mapping[str, Any]:
    if not isinstance(result, Mapping):
        raise ConfigurationError(
            f"a loader of many keys returned a {type(result).__name__}: expected a mapping from key to value"
        )
    return result


def _one(result: Any, key: str) -> Any:
    value = _mapping(result).get(key, ABSENT)
    if isinstance(value, Exception):
        raise value
    return value


def _bare(value: Any) -> Any:
    return value.value if isinstance(value, Entry) else value
