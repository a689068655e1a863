"""What the leader of many keys does: one round trip a tier, one loader call for all that is missing, a lease for each.

Keys that somebody else is loading, in this process or another, and keys under a write are left to their callers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from cachewright.core.ahead import refresh_is_due
from cachewright.core.flight import ABSENT, Flight, LoadContext, NotModified, Outcome, Phase, laid_over
from cachewright.core.lease import Held, abandon_all, commit_all
from cachewright.core.levels import Below, look_below, place_leases
from cachewright.core.loader import Loaded, run_loader
from cachewright.core.read import fresh_entries
from cachewright.core.slot import Slot, StoredEntry
from cachewright.core.stale import answers_at_once, failed_lately, served_stale
from cachewright.core.state import State, now_ms
from cachewright.errors import ConfigurationError, TierUnavailable
from cachewright.events import LeaseLost, LoadFailed
from cachewright.options import MISSING, Entry, Options
from cachewright.runtime.base import Runtime
from cachewright.tiers.memory import Ticket

__all__ = ["LeadingMany", "as_mapping"]

LoaderMany = Callable[[list[str]], Any]


class LeadingMany:
    """One load of many keys.

    Args:
        behind: a refresh behind its readers: who flies alone, and only where nobody else is at it. By key, when the
            fresh entry was born that is to be replaced ahead of time; None where it is stale.

    Attributes:
        values: found or loaded.
        done: the keys that are answered: with a value or an error, or because they are absent.
        errors: of single keys.
        to_refresh: the keys whose values were served although they want a refresh; what ``behind`` is to be then.
    """

    def __init__(
        self,
        state: State,
        rt: Runtime,
        loader: LoaderMany,
        options: Options,
        tags: tuple[str, ...],
        behind: Mapping[str, int | None] | None = None,
    ) -> None:
        self.state, self.rt, self.loader, self.options, self.tags = state, rt, loader, options, tags
        self.behind = behind
        self.to_refresh: dict[str, int | None] = {}
        self.values: dict[str, Any] = {}
        self.done: set[str] = set()
        self.errors: dict[str, Exception] = {}
        self.stale: dict[str, StoredEntry] = {}  # what may answer where a load fails
        self.flights: dict[str, Flight] = {}
        self.leases: list[Held] = []
        self.tickets: dict[str, Ticket | None] = {}
        self.since: dict[str, float | None] = {}  # see `Held.known_since`
        self.unreachable = False

    async def run(self, keys: list[str], refresh_behind: Callable[[LeadingMany], None]) -> None:
        """Reads the keys and loads those that are missing and nobody else's.

        Raises:
            Exception: what the loader raised as a whole, unless stale values answer for every key.
        """
        try:
            await self._read(keys)
            if self.to_refresh:
                refresh_behind(self)
            await self._lead([key for key in keys if key not in self.values])
        finally:
            self._hand_on()

    async def _read(self, keys: list[str]) -> None:
        """What may answer at once in the authority."""
        state, rt = self.state, self.rt
        self.tickets = {key: state.ticket(key) for key in keys}
        if self.behind is None:
            self._fly(keys)
        try:
            tags = state.tags_of(self.tags)
            self.standing, self.generations = await state.chain.authority.read(rt, keys, tags)
            entries = await fresh_entries(state, rt, self.standing, self.generations)
            for key, entry in entries.items():
                self._serve_fresh(key, entry)
            if self.behind is None:
                for key in [key for key in keys if key not in entries]:
                    await self._serve_stale(key, self.standing.get(key))
        except TierUnavailable:
            if state.strict:
                raise
            self.standing, self.generations, self.unreachable = {}, {}, True

    def _fly(self, keys: list[str]) -> None:
        # Led before the read, so that whoever joins from here on joins before it.
        state, rt = self.state, self.rt
        for key in keys:
            # Ours before it is open to others: whatever interrupts this, `_hand_on` ends it.
            flight = self.flights[key] = Flight()
            flight.thread, flight.leader_alive = rt.whoami()
            if state.flights.lead(state, key, flight):
                state.flights.reached(flight, Phase.READING)
            else:
                del self.flights[key]

    def _serve_fresh(self, key: str, entry: StoredEntry) -> None:
        if self.behind is not None and self.behind.get(key) == entry.born:
            return
        value = self._value(key, entry)
        if value is MISSING:
            return
        self.state.stats.hits += 1
        self.values[key] = value
        self.state.fill(self.rt, self.tickets[key], value, entry, self.options)
        self._finish(key, Outcome.FOUND, value)
        rests = failed_lately(self.standing[key], now_ms(self.rt))
        if self.behind is None and not rests and refresh_is_due(self.rt, entry, self.options):
            self.to_refresh[key] = entry.born

    async def _serve_stale(self, key: str, slot: Slot | None) -> None:
        if slot is None or slot.entry is None or slot.intents or slot.newer:
            return
        entry, now = slot.entry, now_ms(self.rt)
        why = answers_at_once(entry, slot, now)
        if why is None or not await self.state.is_valid(self.rt, entry, self.generations):
            return
        value = self._value(key, entry)
        if value is MISSING:
            return
        served_stale(self.state, (key,), why)
        self.values[key] = value
        self._finish(key, Outcome.FOUND, value)
        if not failed_lately(slot, now):
            self.to_refresh[key] = None

    def _value(self, key: str, entry: StoredEntry) -> Any:
        state = self.state
        return state.value_of(key, entry, self.options.type, state.chain.authority.tier.name)

    async def _lead(self, missing: list[str]) -> None:
        """Leases, looks below, loads and commits the keys that nobody else is at."""
        state, rt = self.state, self.rt
        if self.unreachable:
            if missing and self.behind is None:
                await self._load({}, {}, {}, missing)
            return
        try:
            wanted = {key: self.standing.get(key) for key in missing if await self._is_ours(key)}
            if not wanted:
                return
            marks = await state.capture(rt, state.tags_of(self.tags), self.generations)
            invalid = wanted.keys() - self.stale.keys()
            ahead = [key for key, born in (self.behind or {}).items() if born is not None]
            held = await place_leases(
                state, rt, state.chain.authority, wanted, self.options, invalid, self.leases, ahead
            )
        except TierUnavailable:
            if state.strict:
                raise
            return
        try:
            below = await look_below(
                state, rt, list(held), self.options, self.generations, lease=True, take=self.behind is None
            )
            await self._take_below(held, below)
            if held:
                await self._load(held, below, marks, list(held))
        except BaseException:
            await abandon_all(rt, list(held.values()))
            raise

    async def _is_ours(self, key: str) -> bool:
        """Whether it is for us to load, because nobody else is at it. A stale value that may answer for an error is
        kept for that, and for the loader to see."""
        if self.behind is None and key not in self.flights:
            return False
        slot = self.standing.get(key)
        if slot is None or (slot.lease is None and slot.entry is None):
            return True
        if slot.lease is not None or slot.entry is None:
            return False
        entry, now = slot.entry, now_ms(self.rt)
        replaced = now >= entry.fresh_until or self.behind is not None
        if replaced and now < entry.ends and await self.state.is_valid(self.rt, entry, self.generations):
            if failed_lately(slot, now) and (self.behind is not None or now < entry.sie_until):
                return False  # somebody else's load has failed since the read or just before: the origin has rest
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
            loaded = await run_loader(state, rt, partial(self.loader, keys), context)
        except Exception as error:
            # Who comes while the leases are given back has nothing to do with a load that failed before.
            self._close(keys)
            answered = [await self._failed(key, error, held) for key in keys]
            await self._down(below, {})
            if not all(answered):
                raise
            return
        self._close(keys)
        found = dict(as_mapping(loaded.value))
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
        value = self._value(key, entry)
        note = state.note_of(key, entry, state.chain.authority.tier.name) if value is not MISSING else None
        return value, note

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
        if stale is not None and now < stale.sie_until and self.behind is None:
            value = self._value(key, stale)
        if value is MISSING:
            self.errors[key] = error
            self._finish(key, Outcome.FAILED, error=error)
            return False
        self.values[key] = value
        served_stale(state, (key,), "error")
        self._finish(key, Outcome.FOUND, value)
        return True

    def _entries(
        self,
        found: dict[str, Any],
        keys: list[str],
        marks: dict[str, bytes],
        loaded: Loaded,
        context: LoadContext,
    ) -> dict[str, StoredEntry]:
        """What is to be stored. A value that cannot be is that key's failure alone, and takes its place in ``found``."""
        entries = {}
        for key in [key for key in keys if key in found and not isinstance(found[key], Exception)]:
            try:
                entry = self._entry(key, found[key], marks, loaded, context)
            except Exception as error:
                found[key] = error
            else:
                if entry is not None:
                    entries[key] = entry
        return entries

    def _entry(
        self, key: str, given: Any, marks: dict[str, bytes], loaded: Loaded, context: LoadContext
    ) -> StoredEntry | None:
        part, value = context.parts.get(key), _bare(given)
        said = {**loaded.said, **(part.said if part is not None else {})}
        if isinstance(given, Entry):
            said = laid_over(said, given)
        renewed = part is not None and isinstance(given, NotModified) and given.load is part
        if isinstance(given, NotModified) and not renewed and given.load in context.parts.values():
            raise ConfigurationError(
                f"the value of {key!r} is what current_load().of({given.load.key!r}).not_modified() gave: "
                f"each key takes its own part, of({key!r})"
            )
        if said.get("tags"):
            raise ConfigurationError("Entry(…, tags=…) in a batch: give the tags to get_or_set_many")
        if not said.get("store", True) or (self.options.store_if and not self.options.store_if(value)):
            return None
        renews = self.stale.get(key) if renewed else None
        return self.state.make_entry(
            self.rt, key, value, self.options, marks, said=said, cost=loaded.seconds, renews=renews
        )

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
        self.flights.pop(key, None)  # last: `_hand_on` is to find it where this was interrupted

    def _hand_on(self) -> None:
        """Whatever this batch does not answer is for somebody else to lead.

        Nothing is sent under its leases any more: they may live on in the traceback of what ended it.
        """
        for lease in self.leases:
            lease.let_go()
        for key in list(self.flights):
            self._finish(key, Outcome.HANDED_ON)


def as_mapping(result: Any) -> Mapping[str, Any]:
    """What a loader of many keys returned.

    Raises:
        ConfigurationError: it is no mapping.
    """
    if not isinstance(result, Mapping):
        raise ConfigurationError(
            f"a loader of many keys returned a {type(result).__name__}: expected a mapping from key to value"
        )
    return result


def _bare(value: Any) -> Any:
    return value.value if isinstance(value, Entry) else value
