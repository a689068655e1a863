"""What loads many keys by one call of their loader, commits what it gave, and answers for each key.

Which keys those are, and under which leases, is decided in `leading_many`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from cachewright.core.context import LoadContext, NotModified, laid_over
from cachewright.core.flight import ABSENT, Flight, Joined, Outcome, Phase
from cachewright.core.leading import NO_MARK
from cachewright.core.lease import Held, abandon_all, commit_all
from cachewright.core.levels import Below
from cachewright.core.loader import Loaded, run_loader
from cachewright.core.slot import StoredEntry
from cachewright.core.stale import served_stale
from cachewright.core.state import State, now_ms
from cachewright.errors import ConfigurationError, LoaderInterrupted
from cachewright.events import LeaseLost, LoadFailed
from cachewright.options import MISSING, Entry, Options
from cachewright.runtime.base import Runtime, Waiter
from cachewright.tiers.memory import Ticket

__all__ = ["LoaderMany", "LoadingMany", "as_mapping"]

LoaderMany = Callable[[list[str]], Any]
Called = tuple[dict[str, Any], Loaded, LoadContext]


class LoadingMany:
    """One load of many keys.

    Args:
        behind: a refresh behind its readers: who flies alone, and only where nobody else is at it. By key, when the
            fresh entry was born that is to be replaced ahead of time; None where it is stale.
        renew: a stale value is no answer.

    Attributes:
        values: found or loaded.
        done: the keys that are answered: with a value or an error, or because they are absent.
        errors: of single keys.
        joined: the keys that others of this process are loading, and where to wait for them.
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
        *,
        renew: bool = False,
    ) -> None:
        self.serves_stale = behind is None and not renew
        self.state, self.rt, self.loader, self.options, self.tags = state, rt, loader, options, tags
        self.behind = behind
        self.to_refresh: dict[str, int | None] = {}
        self.values: dict[str, Any] = {}
        self.done: set[str] = set()
        self.errors: dict[str, Exception] = {}
        self.stale: dict[str, StoredEntry] = {}  # what may answer where a load fails
        self.flights: dict[str, Flight] = {}
        self.leases: list[Held] = []
        self.joined: dict[str, tuple[Flight, Joined, Waiter]] = {}
        self.tickets: dict[str, Ticket | None] = {}
        self.dead: set[str] = set()  # keys whose lease nobody holds any more
        self.since: dict[str, float | None] = {}  # see `Held.known_since`
        self.unreachable = False

    async def load_under(
        self, held: dict[str, Held], below: Mapping[str, Below], marks: dict[str, bytes]
    ) -> None:
        """One loader call for the keys that we hold leases on; what it gave is stored.

        Raises:
            Exception: what the loader raised as a whole, unless stale values answer for every key.
        """
        state, rt, keys = self.state, self.rt, list(held)
        for lease in held.values():
            lease.start_heartbeat(rt)
        called = await self._call(keys, held, below)
        if called is None:
            return
        found, loaded, context = called
        entries = self._entries(found, keys, marks, loaded, context)
        pairs = [(held[key], entry) for key, entry in entries.items()]
        taken = await commit_all(rt, pairs)
        self.since = {lease.key: lease.known_since(entry) for lease, entry in pairs}
        stored = {lease.key: entry for (lease, entry), took in zip(pairs, taken, strict=True) if took}
        await self.commit_down(below, stored)
        for key in keys:
            if isinstance(failure := found.get(key), Exception):
                await self._failed(key, failure, held)
        rest = [lease for key, lease in held.items() if key not in entries]
        stood = await abandon_all(rt, rest)
        confirmed = stored.keys() | {lease.key for lease, mine in zip(rest, stood, strict=True) if mine}
        held.clear()
        late = any(self.flights[key].joined_late for key in confirmed)
        # As for one key: a tag may have changed before a late joiner came.
        spoiled = late and bool(marks) and not await state.still_stand(rt, marks)
        for key in [key for key in keys if key not in self.done]:
            self.flights[key].spoiled = spoiled
            self.flights[key].confirmed = key in confirmed
            if found.get(key, ABSENT) is not ABSENT and key not in stored:
                state.stats.lost_leases += key not in confirmed
                if key not in confirmed:
                    state.hub.emit(LeaseLost(key))
            self._answer(key, found, stored.get(key), self.since.get(key))

    async def load_alone(self, keys: list[str], tags: Sequence[str]) -> None:
        """One loader call without the authority: memory keeps what it gave for ``local_ttl``, as for one key."""
        state, rt, epoch = self.state, self.rt, self.state.flights.epoch
        called = await self._call(keys, {}, {})
        if called is None:
            return
        found, loaded, context = called
        filled = [key for key in keys if self.tickets[key] is not None]
        entries = self._entries(found, filled, dict.fromkeys(tags, NO_MARK), loaded, context)
        for key in keys:
            # Nobody else's changes can be known of now; this process's can.
            flight = self.flights[key]
            flight.confirmed = not flight.killed and state.flights.epoch == epoch
            if isinstance(failure := found.get(key), Exception):
                await self._failed(key, failure, {})
            else:
                self._answer(key, found, entries.get(key), rt.monotonic())

    async def _call(
        self, keys: list[str], held: dict[str, Held], below: Mapping[str, Below]
    ) -> Called | None:
        """What the loader gave; None: it failed, and stale values answered for all."""
        state, rt = self.state, self.rt
        for key in keys:
            state.flights.reached(self.flights[key], Phase.LOADING)
        state.stats.misses += len(keys)
        flights = [self.flights[key] for key in keys]
        context = LoadContext(
            state, keys[0], self.options, MISSING, flights, also=frozenset(keys), find=self._kept
        )
        try:
            loaded = await run_loader(state, rt, partial(self.loader, keys), context)
            found = as_mapping(loaded.value)
        except Exception as error:
            # Who comes while the leases are given back has nothing to do with a load that failed before.
            self._close(keys)
            answered = [await self._failed(key, error, held) for key in keys]
            await self.commit_down(below, {})
            if not all(answered):
                raise
            return None
        self._close(keys)
        return found, loaded, context

    def _kept(self, key: str) -> tuple[Any, Any]:
        """The stale value of a key and its note, for its loader to see."""
        state, entry = self.state, self.stale.get(key)
        if entry is None:
            return MISSING, None
        value = self._value(key, entry)
        note = state.note_of(key, entry, state.chain.authority.tier.name) if value is not MISSING else None
        return value, note

    def _value(self, key: str, entry: StoredEntry) -> Any:
        state = self.state
        return state.value_of(key, entry, self.options.type, state.chain.authority.tier.name)

    def _close(self, keys: list[str]) -> None:
        """No further joiners from here on."""
        for key in keys:
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
        if stale is not None and now < stale.sie_until and self.serves_stale:
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

    def _answer(
        self, key: str, found: Mapping[str, Any], entry: StoredEntry | None, since: float | None
    ) -> None:
        value = _bare(found.get(key, ABSENT))
        self.done.add(key)
        if value is ABSENT:
            self._finish(key, Outcome.HANDED_ON)
            return
        self.values[key] = value
        if entry is not None:
            self.state.fill(self.rt, self.tickets[key], value, entry, self.options, since)
        self._finish(key, Outcome.LOADED, value)

    async def commit_down(self, below: Mapping[str, Below], stored: Mapping[str, StoredEntry]) -> None:
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


def as_mapping(result: Any) -> dict[Any, Any]:
    """What a loader of many keys returned; what is no value fails its key.

    Raises:
        ConfigurationError: it is no mapping.
    """
    if not isinstance(result, Mapping):
        raise ConfigurationError(
            f"a loader of many keys returned a {type(result).__name__}: expected a mapping from key to value"
        )
    return {
        key: _failure(key, value) if isinstance(value, BaseException) else value
        for key, value in result.items()
    }


def _failure(key: object, value: BaseException) -> Exception:
    if isinstance(value, Exception):
        return value
    # Of `asyncio.gather(…, return_exceptions=True)`, say; stored, it would end whoever raises it.
    return LoaderInterrupted(f"the loader gave a {type(value).__name__} as the value of {key!r}")


def _bare(value: Any) -> Any:
    return value.value if isinstance(value, Entry) else value
