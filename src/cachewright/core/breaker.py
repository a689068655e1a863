"""One tier with its circuit breaker, and what it must hear before it is trusted again.

After ``THRESHOLD`` failures in a row the breaker opens: calls fail at once, without I/O, and one caller in every
``PROBE`` seconds tries. Drops and tag changes that could not reach the tier are kept here and replayed before anything
else is asked of it; so a Redis that comes back does not serve what was deleted while it was away. The record is bounded
and lives in this process: where it overflows, the whole namespace is dropped instead.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from cachewright.core.slot import Slot
from cachewright.errors import TierError, TierProtocolError, TierUnavailable
from cachewright.events import BreakerChanged, Hub, TierFailed
from cachewright.runtime.base import Job, Runtime
from cachewright.tiers.base import Generation, Swap, Swapped, Tier

T = TypeVar("T")

__all__ = ["NAMESPACE_TAG", "Level"]

log = logging.getLogger("cachewright")

THRESHOLD = 5
PROBE_SECONDS = 0.5
MAX_MISSED = 10_000
Missed = tuple[Collection[str], Collection[str]]  # keys and tags
NOTHING: Missed = ((), ())
Found = tuple[dict[str, Slot], dict[str, Generation]]
NAMESPACE_TAG = "\0all"  # users' tags never begin with NUL


class Level:
    """A tier in its place in the chain. Its methods are the tier's, guarded."""

    def __init__(self, tier: Tier, hub: Hub) -> None:
        self.tier = tier
        self.above: Level | None = None  # the authority, where this is a tier below it
        self._hub = hub
        # Each with a number of its own: what is missed again while it is being replayed is not forgotten with it.
        self._missed_keys: dict[str, int] = {}
        self._missed_tags: dict[str, int] = {}
        self._missed_all = 0  # such a number too; 0: nothing
        self._numbers = itertools.count(1)
        self.after_fork()

    def after_fork(self) -> None:
        """A child starts with a closed breaker. What is to be replayed it replays too: twice does no harm."""
        self._lock = threading.RLock()  # the collector may end a replay of a stopped loop inside of it
        self._failures = 0
        self._open = False
        self._next_probe = 0.0
        self._next_replay = 0.0
        self._at_it: Callable[[], bool] | None = None  # whether the one that replays can still end it
        self._replayer: Job | None = None

    @property
    def is_open(self) -> bool:
        """Whether the breaker keeps callers away."""
        return self._open

    @property
    def behind(self) -> int:
        """How many drops and tag changes the tier has yet to hear of."""
        return len(self._missed_keys) + len(self._missed_tags) + bool(self._missed_all)

    async def read(self, rt: Runtime, keys: Sequence[str], tags: Sequence[str] = ()) -> Found:
        """`Tier.read`; what the tier has yet to hear of counts as absent."""
        if not (self._missed_keys or self._missed_tags):
            # What is noted from here on changes while this reads.
            found = await self._guard(rt, "read", (), lambda: self.tier.read(rt, keys, tags))
            return _without(found, self._missed_of(keys, tags))
        missed = NOTHING

        async def read() -> Found:
            # Before it is asked, and after: it may hear of a change while its old answer is on the way.
            nonlocal missed
            missed = self._missed_of(keys, tags)
            return await self.tier.read(rt, keys, tags)

        found = await self._guard(rt, "read", (), read)
        return _without(_without(found, missed), self._missed_of(keys, tags))

    def _missed_of(self, keys: Sequence[str], tags: Sequence[str]) -> Missed:
        missed_keys, missed_tags = self._missed_keys, self._missed_tags
        if not (missed_keys or missed_tags):
            return NOTHING
        return {key for key in keys if key in missed_keys}, {tag for tag in tags if tag in missed_tags}

    async def swap(self, rt: Runtime, swaps: Sequence[Swap]) -> list[Swapped]:
        """`Tier.swap`."""
        keys = [swap.key for swap in swaps]
        results = await self._guard(rt, "swap", keys, lambda: self.tier.swap(rt, swaps))
        for swap, swapped in zip(swaps, results, strict=True):
            if not swapped.done and swap.expected is not None and swapped.current is not None:
                self._check_refusal(swap.expected, swapped.current)
        return results

    def _check_refusal(self, expected: Slot, current: Slot) -> None:
        # Every header that is written has a nonce of its own: this is no race, and would be repeated for ever.
        if expected.foreign is None and current.foreign is None and expected.nonce == current.nonce:
            raise TierProtocolError(self.tier.name, "refused to replace just what stands there")

    async def swap_one(self, rt: Runtime, key: str, expected: Slot | None, new: Slot | None) -> Swapped:
        """One swap."""
        return (await self.swap(rt, (Swap(key, expected, new),)))[0]

    async def drop(self, rt: Runtime, keys: Sequence[str]) -> list[bool]:
        """`Tier.drop`; what does not get through is kept for later, and the error raised all the same."""
        try:
            return await self._guard(rt, "drop", (), lambda: self.tier.drop(rt, keys))
        except TierUnavailable:
            self.missed(rt, keys)
            raise

    async def store(self, rt: Runtime, slots: Mapping[str, Slot]) -> list[bool]:
        """`Tier.store`; where its outcome is unknown the keys are dropped before they are read again."""
        try:
            return await self._guard(rt, "store", list(slots), lambda: self.tier.store(rt, slots))
        except TierUnavailable:
            self.missed(rt, slots)
            raise

    async def set_generations(
        self, rt: Runtime, marks: Mapping[str, bytes], *, only_missing: bool
    ) -> dict[str, Generation]:
        """`Tier.set_generations`; a change that does not get through is kept for later."""
        try:
            return await self._guard(
                rt, "tags", (), lambda: self.tier.set_generations(rt, marks, only_missing=only_missing)
            )
        except TierUnavailable:
            if not only_missing:
                self._note(rt, self._missed_tags, marks)
            raise

    async def clear(self, rt: Runtime) -> None:
        """`Tier.clear`."""
        try:
            await self._guard(rt, "clear", (), lambda: self.tier.clear(rt))
        except TierUnavailable:
            self._note_all(rt)
            raise

    def missed(self, rt: Runtime, keys: Iterable[str]) -> None:
        """Remembers keys whose old entries may still stand in the tier."""
        self._note(rt, self._missed_keys, keys)

    def _note(self, rt: Runtime, missed: dict[str, int], names: Iterable[str]) -> None:
        numbered = [(name, next(self._numbers)) for name in names]
        with self._lock:
            missed.update(numbered)
            if len(missed) > MAX_MISSED:
                missed.clear()
                self._missed_all = next(self._numbers)
        self._keep_trying(rt)

    def _note_all(self, rt: Runtime) -> None:
        with self._lock:
            self._missed_all = next(self._numbers)
        self._keep_trying(rt)

    def _keep_trying(self, rt: Runtime) -> None:
        """Replays in the background too: a process that changes something and then goes quiet must not leave the
        others with what it changed."""
        if self._replayer is None or not self._replayer.goes_on():
            if self._replayer is not None:
                self._replayer.cancel()  # it is on a loop that was stopped
            name = f"replay to {self.tier.name}"
            self._replayer = rt.every(PROBE_SECONDS, lambda: self._try_again(rt), name, errand=True)

    async def _try_again(self, rt: Runtime) -> float | None:
        if self.behind and not self._is_replayed():
            try:
                await self._replay(rt)
            except TierUnavailable:
                return PROBE_SECONDS  # told as an event; the next beat tries again
            self._succeeded()
        return PROBE_SECONDS if self.behind else None

    async def end(self, rt: Runtime) -> None:
        """Stops trying in the background, after one last try: nobody may use this cache again."""
        if self._replayer is not None:
            self._replayer.cancel()
            self._replayer = None
        if not self.behind or self._is_replayed():
            return
        try:
            await self._replay(rt)
        except TierError as error:  # nonsense for an answer as well: the others are to be closed all the same
            log.warning(
                "closed while %s has yet to hear of %d change(s), and others may be served what these made old until "
                "this cache is used again, for its TTL at most: %s",
                self.tier.name,
                self.behind,
                error,
            )

    async def _guard(
        self, rt: Runtime, operation: str, keys: Sequence[str], act: Callable[[], Awaitable[T]]
    ) -> T:
        if self._open:
            self._probe_or_raise(rt)
        if self.behind:
            await self._catch_up(rt, keys)
        try:
            result = await act()
        except TierUnavailable as error:
            self._failed(rt, operation, error)
            raise
        if self._failures or self._open:
            self._succeeded()
        return result

    async def _catch_up(self, rt: Runtime, keys: Sequence[str]) -> None:
        """Replays first. Where that fails, a tier of many nodes still serves what it has not missed."""
        if self._missed_all and self.tier.scannable and rt.name == "threads":
            # To clear a namespace may take seconds: no caller's time. (An event loop may end with its caller.)
            self._keep_trying(rt)
            raise TierUnavailable(self.tier.name, "its namespace is being cleared after an outage")
        sharded = self.tier.sharded and not self._missed_all
        if not sharded or rt.monotonic() >= self._next_replay:
            self._next_replay = rt.monotonic() + PROBE_SECONDS
            try:
                await self._replay(rt)
            except TierUnavailable:
                if not sharded:
                    raise
        if any(key in self._missed_keys for key in keys):
            raise TierUnavailable(self.tier.name, "the key's node has yet to hear of an earlier change")

    def _probe_or_raise(self, rt: Runtime) -> None:
        with self._lock:
            now = rt.monotonic()
            if now < self._next_probe:
                raise TierUnavailable(self.tier.name, "its breaker is open after repeated failures")
            self._next_probe = now + PROBE_SECONDS

    def _failed(self, rt: Runtime, operation: str, error: TierUnavailable) -> None:
        if self.tier.sharded:  # its nodes fail one by one, and the tier itself keeps away from those that do
            self._hub.emit(TierFailed(self.tier.name, operation, error))
            return
        with self._lock:
            self._failures += 1
            opened = self._failures >= THRESHOLD and not self._open
            if self._failures >= THRESHOLD:
                self._open = True
                self._next_probe = rt.monotonic() + PROBE_SECONDS
        self._hub.emit(TierFailed(self.tier.name, operation, error))
        if opened:
            self._hub.emit(BreakerChanged(self.tier.name, True))

    def _succeeded(self) -> None:
        with self._lock:
            closed, self._open, self._failures = self._open, False, 0
        if closed:
            self._hub.emit(BreakerChanged(self.tier.name, False))

    def _is_replayed(self) -> bool:
        at_it = self._at_it
        return at_it is not None and at_it()  # (not by a loop that was stopped in the middle of it)

    async def _replay(self, rt: Runtime) -> None:
        """Brings the tier up to date; one caller at a time, the others meanwhile find it unavailable."""
        with self._lock:
            if self._is_replayed():
                raise TierUnavailable(self.tier.name, "it is being brought up to date after an outage")
            at_it = self._at_it = rt.whoami()[1]
            everything = self._missed_all
            missed_keys, missed_tags = dict(self._missed_keys), dict(self._missed_tags)
        keys, tags = list(missed_keys), list(missed_tags)
        done = False
        try:
            if everything and not self.tier.scannable:
                tags.append(NAMESPACE_TAG)
            elif everything:
                await self.tier.clear(rt)
            if tags:
                await self.tier.set_generations(rt, {t: rt.new_id() for t in tags}, only_missing=False)
            for start in range(0, len(keys), 500):
                await self.tier.drop(rt, keys[start : start + 500])
            done = True
        except TierUnavailable as error:
            self._failed(rt, "replay", error)
            raise
        finally:
            with self._lock:
                if self._at_it is at_it:
                    self._at_it = None
                if done:
                    _forget(self._missed_keys, missed_keys)
                    _forget(self._missed_tags, missed_tags)
                    if self._missed_all == everything:
                        self._missed_all = 0
        self._tell_above(rt, keys, bool(everything))

    def _tell_above(self, rt: Runtime, keys: Sequence[str], everything: bool) -> None:
        """The authority too drops what this tier was late to lose: others who reached it may have filled it up since."""
        if self.above is not None and keys:
            self.above.missed(rt, keys)
        if self.above is not None and everything:
            self.above._note_all(rt)


def _forget(missed: dict[str, int], replayed: Mapping[str, int]) -> None:
    for name, number in replayed.items():
        if missed.get(name) == number:
            del missed[name]


def _without(found: Found, missed: Missed) -> Found:
    if missed is NOTHING:
        return found
    keys, tags = missed
    slots = {key: slot for key, slot in found[0].items() if key not in keys}
    return slots, {tag: generation for tag, generation in found[1].items() if tag not in tags}
