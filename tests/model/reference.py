"""What a cache does, by one dictionary and one clock. Written from the documentation; nothing of the library is used.

There are no tiers here, no leases, slots, bytes or flights: a user of one process, who does one thing after the other,
must not be able to tell. Times are whole milliseconds, so that "fresh until" is exact.

A *stale* entry is served at once within ``stale_while_revalidate`` (its refresh follows behind), and where its loader
fails within ``stale_if_error``. An entry one of whose tags changed is as good as absent.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

NEVER = 10**18
UNSET: Any = "as ttl"
ABSENT: Any = "left out by the loader"
MUTE: Any = "no calls of its loader are noted"


class Down(Exception):
    """What loaders and savers raise here."""


@dataclass
class Entry:
    """A value, until when it is fresh, usable meanwhile and usable for errors, and its tags as they were."""

    value: Any
    born: int
    fresh: int
    swr: int
    sie: int
    tags: dict[str, int]
    retry_at: int = 0
    below: bool = False
    """Evicted from the first tier that all processes share, and left in one under it."""

    @property
    def ends(self) -> int:
        return max(self.fresh, self.swr, self.sie)


@dataclass(frozen=True)
class Options:
    """Freshness options, in seconds."""

    ttl: float | None = 300
    swr: float = 0
    sie: float = 0
    error_ttl: float = 1
    negative: float | None = UNSET
    tags: tuple[str, ...] = ()
    only_true: bool = False
    """``store_if=bool``."""


@dataclass(frozen=True)
class Outcome:
    """What a loader will do: raise, or after ``slow`` seconds return ``value`` (in an `Entry` where ``ttl`` or ``tags`` are said)."""

    value: Any = None
    error: str = ""
    ttl: float | None = UNSET
    tags: tuple[str, ...] = ()
    slow: float = 0
    log: Any = None
    """What the loader notes of its call; None: the keys."""

    @property
    def bare(self) -> bool:
        return self.ttl == UNSET and not self.tags


@dataclass
class Reference:
    """A cache. Of its tiers it knows but this: whether their clock can tell if a tag changed since a load began
    (``dates_tags``), and whether ``clear`` finds what is to be dropped, or makes it invalid where it stands."""

    now: int
    dates_tags: bool = True
    clear_drops: bool = True
    entries: dict[str, Entry] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    counts: Counter[str] = field(default_factory=Counter)
    log: list[Any] = field(default_factory=list)
    """The loader calls, in order."""

    # What stands

    def standing(self, key: str) -> Entry | None:
        """The entry that may still be used for something."""
        entry = self.entries.get(key)
        if entry is None or self.now >= entry.ends or not self.valid(entry):
            return None
        # Only fresh entries are taken from lower tiers.
        return None if entry.below and self.now >= entry.fresh else entry

    def fresh(self, key: str) -> Entry | None:
        entry = self.standing(key)
        return entry if entry is not None and self.now < entry.fresh else None

    def own(self, key: str) -> Entry | None:
        """The fresh entry of the first shared tier: small changes and drops look nowhere else."""
        entry = self.fresh(key)
        return None if entry is None or entry.below else entry

    def valid(self, entry: Entry) -> bool:
        return all(self.generations[tag] == number for tag, number in entry.tags.items())

    def state(self, key: str) -> str:
        """As `inspect` words it."""
        if self.fresh(key) is not None:
            return "fresh"
        return "stale" if self.standing(key) is not None else "absent"

    def make(self, value: Any, options: Options, tags: Sequence[str], ttl: float | None = UNSET) -> Entry:
        if ttl == UNSET:
            ttl = options.negative if value is None and options.negative != UNSET else options.ttl
        fresh = NEVER if ttl is None else self.now + int(ttl * 1000)
        swr, sie = (
            fresh if ttl is None else fresh + int(window * 1000) for window in (options.swr, options.sie)
        )
        born_under = {tag: self.generations[tag] for tag in (*tags, "#all")}
        return Entry(value, self.now, fresh, swr, sie, born_under)

    # Reading

    def get(self, key: str, default: Any = None, convert: Callable[[Any], Any] = lambda value: value) -> Any:
        """``convert`` gives `ABSENT` for what is not of the wanted type: a miss."""
        entry = self.fresh(key)
        value = ABSENT if entry is None else convert(entry.value)
        if value is ABSENT:
            self.counts["misses"] += 1
            return default
        assert entry is not None
        return self.hit(entry, value)

    def hit(self, entry: Entry, value: Any) -> Any:
        self.counts["hits"] += 1
        entry.below = False  # a read brings it up
        return value

    def load(self, key: str, outcome: Outcome, options: Options, *, forced: bool = False) -> Any:
        """``get_or_set``, a decorated function's call, a repository's read; ``forced``: a refresh."""
        entry = self.standing(key)
        if entry is not None and not forced:
            if self.now < entry.fresh:
                return self.hit(entry, entry.value)
            served = self.served_at_once(entry)
            if served:
                self.counts["stale_served"] += 1
                if served == "revalidate":
                    self.refresh_behind(key, entry, outcome, options)
                return entry.value
        return self.call(key, entry, outcome, options, forced)

    def served_at_once(self, entry: Entry) -> str:
        if self.now < min(entry.retry_at, entry.sie):
            return "error"  # a load failed a moment ago: the origin is left alone
        if self.now < entry.swr:
            return "revalidate" if self.now >= entry.retry_at else "error"
        return ""

    def refresh_behind(self, key: str, entry: Entry, outcome: Outcome, options: Options) -> None:
        try:
            self.call(key, entry, outcome, options, forced=True)
        except Down:
            pass  # told as an event

    def call(self, key: str, entry: Entry | None, outcome: Outcome, options: Options, forced: bool) -> Any:
        """The loader runs. ``entry`` is what it is to replace, and what answers if it fails, unless ``forced``."""
        self.note(outcome, (key,))
        self.counts["misses"] += 1
        self.now += int(outcome.slow * 1000)
        if outcome.error:
            self.counts["load_failures"] += 1
            return self.failed(key, entry, outcome.error, options, forced)
        self.counts["loads"] += 1
        self.take(key, entry, outcome, options)
        return outcome.value

    def note(self, outcome: Outcome, keys: tuple[str, ...]) -> None:
        if outcome.log is not MUTE:
            self.log.append(keys if outcome.log is None else outcome.log)

    def failed(
        self, key: str, entry: Entry | None, error: str, options: Options, forced: bool = False
    ) -> Any:
        if entry is None or entry.below:
            self.entries.pop(key, None)
            raise Down(error)
        entry.retry_at = self.now + int(options.error_ttl * 1000)
        if forced or self.now >= entry.sie:
            raise Down(error)
        self.counts["stale_served"] += 1
        return entry.value

    def take(self, key: str, entry: Entry | None, outcome: Outcome, options: Options) -> None:
        """A loader has returned: its value is stored, or what stood stays and is no failure's any more."""
        wanted = outcome.value is not ABSENT and (not options.only_true or bool(outcome.value))
        if wanted and (self.dates_tags or set(outcome.tags) <= set(options.tags)):
            self.entries[key] = self.make(outcome.value, options, (*options.tags, *outcome.tags), outcome.ttl)
        elif entry is None or entry.below:
            self.entries.pop(key, None)
        else:
            entry.retry_at = 0

    def load_many(
        self, keys: Sequence[str], outcomes: Mapping[str, Outcome], error: str, options: Options
    ) -> dict[str, Any]:
        """``get_or_set_many``: one call for all that is missing; ``error``: the call as a whole raises it."""
        keys = list(dict.fromkeys(keys))
        values = {key: self.hit(entry, entry.value) for key in keys if (entry := self.fresh(key)) is not None}
        stale = {key: entry for key in keys if key not in values and (entry := self.standing(key))}
        at_once = [key for key, entry in stale.items() if self.served_at_once(entry)]
        values.update({key: stale[key].value for key in at_once})
        self.counts["stale_served"] += len(at_once)
        again = [key for key in at_once if self.served_at_once(stale[key]) == "revalidate"]
        if again:
            self.refresh_many_behind(again, stale, outcomes, error, options)
        asked = tuple(key for key in keys if key not in values)
        errors: list[Down] = []
        if asked:
            self.log.append(asked)
            self.counts["misses"] += len(asked)
            self.counts["load_failures" if error else "loads"] += 1
        for key in asked:
            outcome = replace(outcomes[key], error=error or outcomes[key].error)
            try:
                if outcome.error:
                    values[key] = self.failed(key, stale.get(key), outcome.error, options)
                else:
                    self.take(key, stale.get(key), outcome, options)
                    values[key] = outcome.value
            except Down as down:
                errors.append(down)
        if errors:
            raise errors[0]
        return {key: values[key] for key in keys if key in values and values[key] is not ABSENT}

    def refresh_many_behind(
        self,
        keys: Sequence[str],
        stale: Mapping[str, Entry],
        outcomes: Mapping[str, Outcome],
        error: str,
        options: Options,
    ) -> None:
        self.log.append(tuple(keys))
        self.counts["misses"] += len(keys)
        self.counts["load_failures" if error else "loads"] += 1
        for key in keys:
            outcome = replace(outcomes[key], error=error or outcomes[key].error)
            try:
                if outcome.error:
                    self.failed(key, stale[key], outcome.error, options, forced=True)
                else:
                    self.take(key, stale[key], outcome, options)
            except Down:
                pass  # told as an event

    # Changing

    def set(self, key: str, value: Any, options: Options) -> None:
        self.entries[key] = self.make(value, options, options.tags)
        self.counts["stores"] += 1

    def add(self, key: str, value: Any, options: Options) -> bool:
        if self.own(key) is not None:
            return False
        self.set(key, value, options)
        return True

    def touch(self, key: str, ttl: float | None) -> bool:
        """Its stale windows stay as long; one that never expired had none."""
        entry = self.own(key)
        if entry is None:
            return False
        fresh = NEVER if ttl is None else self.now + int(ttl * 1000)
        windows = [
            fresh if NEVER in (fresh, entry.fresh) else fresh + (end - entry.fresh)
            for end in (entry.swr, entry.sie)
        ]
        self.entries[key] = replace(entry, fresh=fresh, swr=windows[0], sie=windows[1], retry_at=0)
        return True

    def incr(self, key: str, delta: float) -> Any:
        entry = self.own(key)
        if entry is None:
            raise LookupError
        if type(entry.value) not in (int, float):
            raise TypeError
        self.entries[key] = replace(entry, value=entry.value + delta, retry_at=0)
        return entry.value + delta

    def drop(self, key: str) -> bool | None:
        """Whether there was an entry; None where it was over or invalid: tiers forget such at their own time."""
        entry = self.entries.pop(key, None)
        self.counts["drops"] += 1
        if entry is None or entry.below:
            return False
        return True if self.now < entry.ends and self.valid(entry) else None

    def invalidate_tags(self, tags: Sequence[str]) -> None:
        for tag in tags:
            self.generations[tag] += 1

    def clear(self) -> None:
        self.generations["#all"] += 1
        if self.clear_drops:
            self.entries.clear()
