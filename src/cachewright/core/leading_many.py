"""What the leader of many keys does: one round trip a tier, one loader call for all that is missing, a lease for each.

Keys that somebody else is loading, in this process or another, and keys under a write are left to their callers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cachewright.core.ahead import refresh_is_due
from cachewright.core.flight import Flight, Outcome, Phase
from cachewright.core.lease import Held, Watch, abandon_all, commit_all
from cachewright.core.levels import Below, look_below, place_leases
from cachewright.core.loading_many import LoadingMany
from cachewright.core.read import fresh_entries
from cachewright.core.slot import Slot, StoredEntry
from cachewright.core.stale import answers_at_once, failed_lately, served_stale
from cachewright.core.state import now_ms
from cachewright.errors import TierUnavailable
from cachewright.options import MISSING

__all__ = ["LeadingMany"]


class LeadingMany(LoadingMany):
    """One leader's way through one load of many keys."""

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

    def leave(self) -> None:
        """Nobody waits any more for those of this process who are at the other keys."""
        for key in list(self.joined):
            joined = self.joined.pop(
                key, None
            )  # once: its edge in the graph of waits may be another's next time
            if joined is not None:
                self.state.flights.left(joined[0], joined[2])

    async def _read(self, keys: list[str]) -> None:
        """What may answer at once in the authority."""
        state, rt = self.state, self.rt
        self.tickets = {key: state.ticket(key) for key in keys}
        self._fly(keys)
        try:
            tags = state.tags_of(self.tags)
            self.standing, self.generations = await state.chain.authority.read(rt, keys, tags)
            entries = await fresh_entries(state, rt, self.standing, self.generations)
            for key, entry in entries.items():
                self._serve_fresh(key, entry)
            if self.serves_stale:
                for key in [key for key in keys if key not in entries]:
                    await self._serve_stale(key, self.standing.get(key))
        except TierUnavailable:
            if state.strict:
                raise
            self.standing, self.generations, self.unreachable = {}, {}, True

    def _fly(self, keys: list[str]) -> None:
        """Led before the read, so that whoever joins from here on joins before it."""
        state, rt = self.state, self.rt
        for key in keys:
            # Ours before it is open to others: whatever interrupts this, `_hand_on` ends it.
            mine = self.flights[key] = Flight()
            mine.thread, mine.leader_alive = rt.whoami()
            if self.behind is None:
                flight, joined, waiter = state.flights.join(state, key, rt, mine)
                if waiter is not None:
                    self.joined[key] = flight, joined, waiter
                    del self.flights[key]
                    continue
            state.flights.reached(mine, Phase.READING)

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

    async def _lead(self, missing: list[str]) -> None:
        """Leases, looks below, loads and commits the keys that nobody else is at."""
        state, rt = self.state, self.rt
        if self.unreachable:
            await self._without_authority([key for key in missing if key in self.flights])
            return
        try:
            wanted = {key: self.standing.get(key) for key in missing if await self._is_ours(key)}
            if not wanted:
                return
            marks = await state.capture(rt, state.tags_of(self.tags), self.generations)
            held = await place_leases(
                state,
                rt,
                state.chain.authority,
                wanted,
                self.options,
                invalid=wanted.keys() - self.stale.keys(),
                made=self.leases,
                forced=[key for key, born in (self.behind or {}).items() if born is not None],
                dead=self.dead,
                flights=self.flights,
            )
        except TierUnavailable:
            if state.strict:
                raise
            return
        # Who waits for these would wait for a loader that has nothing to do with them; ours may be one of those.
        for key in [key for key in self.flights if key not in held]:
            self._finish(key, Outcome.HANDED_ON)
        try:
            take = self.behind is None
            below = await look_below(
                state, rt, list(held), self.options, self.generations, lease=True, take=take
            )
            await self._take_below(held, below)
            if held:
                await self.load_under(held, {key: below[key] for key in held}, marks)
        except BaseException:
            await abandon_all(rt, list(held.values()))
            raise

    async def _is_ours(self, key: str) -> bool:
        """Whether it is for us to load, because nobody else is at it. A stale value that may answer for an error is
        kept for that, and for the loader to see."""
        if key not in self.flights:
            return False
        state, slot = self.state, self.standing.get(key)
        if slot is None:
            return True
        if slot.lease is not None:
            # Nobody waits here to see whether it is renewed: it goes by the deadline that is written in it.
            if not Watch(state).is_dead(self.rt, slot):
                return False
            self.dead.add(key)
        entry, now = slot.entry, now_ms(self.rt)
        if entry is None:
            return True
        replaced = now >= entry.fresh_until or self.behind is not None
        if replaced and now < entry.ends and await state.is_valid(self.rt, entry, self.generations):
            if failed_lately(slot, now) and (
                self.behind is not None or (self.serves_stale and now < entry.sie_until)
            ):
                return False  # somebody else's load has failed since the read or just before: the origin has rest
            self.stale[key] = entry
        return True

    async def _take_below(self, held: dict[str, Held], below: Mapping[str, Below]) -> None:
        """What was found below goes to the authority, and to the tiers between; its leases are no longer ``held``."""
        found: list[tuple[Held, StoredEntry]] = [
            (held[key], one.entry) for key, one in below.items() if one.entry is not None
        ]
        if not found:
            return
        taken = await commit_all(self.rt, found)
        for lease, _ in found:
            del held[lease.key]
        stored = {lease.key: entry for (lease, entry), took in zip(found, taken, strict=True) if took}
        # (Those of keys that are still to be loaded stay.)
        await self.commit_down({lease.key: below[lease.key] for lease, _ in found}, stored)
        for lease, entry in found:
            value = self.values[lease.key] = below[lease.key].value
            self.state.stats.hits += 1
            if lease.key in stored:
                seen = lease.known_since(entry)
                self.state.fill(self.rt, self.tickets[lease.key], value, entry, self.options, seen)
            self._finish(lease.key, Outcome.FOUND, value)

    async def _without_authority(self, missing: list[str]) -> None:
        """Other tiers or the origin answer. Without the authority's generations only entries without users' tags can be
        trusted below."""
        state, rt = self.state, self.rt
        if self.behind is not None:
            return
        if state.chain.lowers and missing:
            for key, below in (await look_below(state, rt, missing, self.options, None, lease=False)).items():
                if below.entry is not None:
                    self.values[key] = below.value
                    self._finish(key, Outcome.FOUND, below.value)
        rest = [key for key in missing if key not in self.values]
        if rest:
            await self.load_alone(rest, state.tags_of(self.tags))

    def _hand_on(self) -> None:
        """Whatever this batch does not answer is for somebody else to lead.

        Nothing is sent under its leases any more: they may live on in the traceback of what ended it.
        """
        for lease in self.leases:
            lease.let_go()
        for key in list(self.flights):
            self._finish(key, Outcome.HANDED_ON)
