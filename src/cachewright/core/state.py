"""What all operations on one chain share: its tiers in order, codec, flights, counters; and how an entry is made.

A chain is ``[memory >] authority [> lower …]``. The *authority* is the first shared tier; without one it is the last
tier (SQLite, or memory alone). ``local`` is the memory above an authority of another kind; where memory itself is the
authority there is no ``local``.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from cachewright.codecs.base import make_context
from cachewright.codecs.pipeline import Pipeline
from cachewright.core.ahead import serve_until
from cachewright.core.background import Background
from cachewright.core.breaker import NAMESPACE_TAG, Level
from cachewright.core.flight import Flights
from cachewright.core.notes import pack_note, read_note
from cachewright.core.orphans import Orphans
from cachewright.core.slot import NEVER, StoredEntry
from cachewright.core.stats import Stats
from cachewright.errors import DecodeError, TierUnavailable
from cachewright.events import DecodeFailed, Hub
from cachewright.options import MISSING, Options
from cachewright.runtime.base import Runtime
from cachewright.tiers.base import Generation
from cachewright.tiers.memory import MemoryTier, Ticket

__all__ = ["Chain", "State", "now_ms"]

FOREVER_MS = (
    10**12
)  # life of a thread's lease in process memory: it is dead where its `State.holding` is gone
NOTHING_SAID: Mapping[str, Any] = MappingProxyType({})


def now_ms(rt: Runtime) -> int:
    """Wall-clock milliseconds."""
    return int(rt.now() * 1000)


class Chain:
    """The tiers of one cache, in order."""

    def __init__(self, local: MemoryTier | None, levels: Sequence[Level]) -> None:
        self.local = local
        self.levels = tuple(levels)
        self.authority = levels[0]
        self.lowers = self.levels[1:]
        for lower in self.lowers:
            lower.above = self.authority
        self.in_memory = self.authority.tier.holds_objects
        # Where `clear` cannot find all slots, every entry carries the namespace's own tag.
        self.stamped = any(not level.tier.scannable for level in self.levels)

    @property
    def memory(self) -> MemoryTier | None:
        """The process memory of this chain, in either role."""
        tier = self.authority.tier
        return self.local or (tier if isinstance(tier, MemoryTier) else None)


class State(Background):
    """See the module."""

    def __init__(
        self,
        namespace: str,
        chain: Chain,
        pipeline: Pipeline,
        options: Options,
        *,
        hub: Hub,
        strict: bool = False,
        local_ttl: float = 5.0,
    ) -> None:
        self.namespace = namespace
        self.chain = chain
        self.pipeline = pipeline
        self.options = options
        self.hub = hub
        self.strict = strict
        self.local_ttl = local_ttl
        self.stats = Stats()
        self.flights = Flights()
        self._own_generations: dict[str, Generation] = {}
        # Functions, which count their hits by themselves.
        self.decorated: weakref.WeakSet[Any] = weakref.WeakSet()
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: flights, background work and connections stayed with the parent."""
        super().after_fork()
        # By token, the leases (`lease.Held`) of this process that others of it may meet. Weak: a frame that is unwound
        # lets go of it by itself.
        self.holding: weakref.WeakValueDictionary[bytes, Any] = weakref.WeakValueDictionary()
        self.orphans = Orphans()

    # ------------------------------------------------------------------------------------------ entries

    def make_entry(
        self,
        rt: Runtime,
        key: str,
        value: Any,
        options: Options,
        marks: Mapping[str, bytes],
        *,
        said: Mapping[str, Any] = NOTHING_SAID,
        cost: float = 0.0,
        renews: StoredEntry | None = None,
    ) -> StoredEntry:
        """An entry as the chain's tiers hold it, its times fixed now.

        Args:
            marks: the generation of each of its tags, captured before the value was read.
            said: what the loader said of this value (see `Entry`); the rest is as the options say (``negative_ttl``
                for None).
            cost: seconds that the load took.
            renews: the entry whose payload and note stay: its origin has said that they still hold.

        Raises:
            EncodeError: the value or its note cannot be turned into the bytes that a tier needs.
        """
        negative = value is None and options.negative_ttl is not MISSING
        ttl = said.get("ttl", options.negative_ttl if negative else options.ttl)
        note = b"" if renews is None else renews.note
        if "note" in said:
            note = pack_note(self.pipeline, self.namespace, key, said["note"])
        born = now_ms(rt)
        if ttl is None:
            fresh = swr = sie = NEVER
        else:
            fresh = born + max(1, int(ttl * 1000 * (1 - options.jitter * rt.random())))
            swr, sie = (
                fresh + int(said.get(name, getattr(options, name)) * 1000)
                for name in ("stale_while_revalidate", "stale_if_error")
            )
        if renews is not None:
            # A load that finds nothing new is quick; the next one may not be, and refreshes ahead go by this.
            cost = max(cost, renews.cost_us / 1e6)
            return msgspec.structs.replace(
                renews,
                born=born,
                fresh_until=fresh,
                swr_until=swr,
                sie_until=sie,
                cost_us=int(cost * 1e6),
                tags=tuple({**dict(renews.tags), **marks}.items()),
                note=note,
                serve_until=serve_until(born, fresh, cost, options),
            )
        codec = codec_flags = 0
        payload = value
        if not self.chain.in_memory:
            codec, codec_flags, payload = self.pipeline.encode(
                value, make_context(self.namespace, key), options.type
            )
        return StoredEntry(
            payload,
            born,
            fresh,
            swr,
            sie,
            int(cost * 1e6),
            codec,
            codec_flags,
            tuple(marks.items()),
            note,
            serve_until=serve_until(born, fresh, cost, options),
            as_type=options.type,
        )

    def value_of(self, key: str, entry: StoredEntry, type_: Any, tier: str) -> Any:
        """The entry's value, or `MISSING` where its payload cannot be read (an event tells why): a miss.

        The payload of an entry in memory is the value itself.
        """
        if self.chain.in_memory and (type_ is None or entry.as_type is type_):
            return entry.payload
        context = make_context(self.namespace, key)
        try:
            if self.chain.in_memory:
                # Stored plain, asked for typed (or the other way about): what any other tier would answer.
                codec, flags, payload = self.pipeline.encode(entry.payload, context, entry.as_type)
                return self.pipeline.decode(codec, flags, payload, context, type_)
            return self.pipeline.decode(entry.codec, entry.codec_flags, entry.payload, context, type_)
        except DecodeError as error:
            self.hub.emit(DecodeFailed(key, tier, error))
            return MISSING

    def note_of(self, key: str, entry: StoredEntry, tier: str) -> Any:
        """What the loader left beside the entry's value; None where it left nothing, or where that cannot be read."""
        try:
            return read_note(self.pipeline, self.namespace, key, entry.note)
        except DecodeError as error:
            self.hub.emit(DecodeFailed(key, tier, error))
            return None

    # --------------------------------------------------------------------------------------------- tags

    def tags_of(self, tags: Iterable[str]) -> tuple[str, ...]:
        """The tags that an entry gets, the namespace's own included where `clear` needs it."""
        return (*tags, NAMESPACE_TAG) if self.chain.stamped else tuple(tags)

    async def capture(
        self, rt: Runtime, tags: Sequence[str], known: Mapping[str, Generation]
    ) -> dict[str, bytes]:
        """The generation of each tag, to be called before the value is read; missing ones are created."""
        missing = {tag: rt.new_id() for tag in tags if tag not in known}
        standing = dict(known)
        if missing:
            standing.update(await self.chain.authority.set_generations(rt, missing, only_missing=True))
        self.saw(standing)
        return {tag: standing[tag].mark for tag in tags}

    async def is_valid(self, rt: Runtime, entry: StoredEntry, known: Mapping[str, Generation]) -> bool:
        """Whether the generations that the entry was born under still stand.

        ``known`` must have been read with the slot or after it. Tags that it lacks cost one more round trip; a
        generation that is missing there makes the entry invalid.
        """
        unknown = [tag for tag, _ in entry.tags if tag not in known]
        if unknown:
            known = {**known, **(await self.chain.authority.read(rt, (), unknown))[1]}
        self.saw(known)
        return self.born_under(entry, known)

    def saw(self, generations: Mapping[str, Generation]) -> None:
        """Remembers the generations of the cache's own tags: of functions, repositories and the namespace."""
        for tag, generation in generations.items():
            if tag[0] == "\0":
                self._own_generations[tag] = generation

    def own_generations(self) -> Mapping[str, Generation]:
        """What vouches for lower tiers while the authority cannot be asked: the last that this process saw of our own
        tags. Almost every entry carries one, for ``cache_clear`` and ``clear`` alone; without this nothing below
        would answer in an outage. Users' tags are not vouched for: theirs change with the data."""
        return self._own_generations

    def forget_generations(self, tags: Iterable[str]) -> None:
        """These tags change now; what was seen of them vouches for nothing."""
        for tag in tags:
            self._own_generations.pop(tag, None)

    def born_under(self, entry: StoredEntry, generations: Mapping[str, Generation]) -> bool:
        """Whether each of the entry's tags still has the generation that the entry was born under."""
        for tag, mark in entry.tags:
            generation = generations.get(tag)
            if generation is None or generation.mark != mark:
                return False
        return bool(entry.tags) or not self.chain.stamped

    async def still_stand(self, rt: Runtime, marks: Mapping[str, bytes]) -> bool:
        """Whether these generations, captured before a load, stand now; False where that cannot be found out."""
        try:
            _, now = await self.chain.authority.read(rt, (), list(marks))
        except TierUnavailable:
            return False
        return all(tag in now and now[tag].mark == mark for tag, mark in marks.items())

    # ------------------------------------------------------------------------------------- local memory

    def ticket(self, key: str) -> Ticket | None:
        """The right to fill local memory later; None where there is none."""
        return self.chain.local.ticket(key) if self.chain.local is not None else None

    def fill(
        self,
        rt: Runtime,
        ticket: Ticket | None,
        value: Any,
        entry: StoredEntry,
        options: Options,
        seen: float | None = None,
    ) -> None:
        """Puts a value in local memory for the rest of its fresh life, at most ``local_ttl``.

        Args:
            rt: the runtime.
            ticket: from `ticket`.
            value: the decoded value.
            entry: as the authority has it.
            options: of the reader.
            seen: monotonic seconds from which on the authority had it; left out: the ticket's. ``local_ttl`` counts
                from there: a process that is paused between its read and this must not believe the value anew.
        """
        if ticket is None or self.chain.local is None:
            return
        ends = min(
            entry.fresh_until, serve_until(entry.born, entry.fresh_until, entry.cost_us / 1e6, options)
        )
        fresh_for = self.local_ttl - (rt.monotonic() - (ticket.taken if seen is None else seen))
        if ends < NEVER:
            fresh_for = min(fresh_for, (ends - now_ms(rt)) / 1000)
        self.chain.local.fill(
            ticket,
            value,
            fresh_for=fresh_for,
            tags=tuple(tag for tag, _ in entry.tags),
            entry=msgspec.structs.replace(entry, payload=None, as_type=options.type),
        )

    def kill_local(self, keys: Sequence[str]) -> None:
        """Own entries and pending fills die, and flights that are under way are old from now on."""
        if self.chain.local is not None:
            self.chain.local.kill(keys)
        self.flights.kill(list(keys))
