"""The memory tier: objects in this process, bounded by entries, read without a lock.

It plays one of two roles. As the only tier of a chain it is the *authority*: `read`, `swap`, `drop`, `store` and
generations, as on any server. Above a shared tier it is a *local* copy: filled by *tickets*, emptied by kills.

**The reader's protocol.** ``table`` maps keys to nodes and may be read by anyone at any time, without the lock: first a
node's ``value``, then its ``deadline`` (`MemoryTier.peek`; `Cache.get` and decorated functions do the same in line).
A node dies in place, so every other index that still points to it sees it dead: the writer first sets ``deadline``
to minus infinity, then ``value`` to `DEAD`. A reader that got `DEAD` therefore finds the deadline gone; in the other
order it could pass the check and then be handed `DEAD`.
"""

from __future__ import annotations

import copy as copying
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar
from weakref import WeakValueDictionary

import msgspec

from cachewright.core import slot as slots
from cachewright.core.slot import Slot, StoredEntry
from cachewright.errors import ConfigurationError, EncodeError
from cachewright.options import MISSING
from cachewright.runtime.base import Runtime
from cachewright.tiers.base import Generation, Swap, Swapped, Tier
from cachewright.tiers.memory_table import DEAD, Node, NodeTable

__all__ = ["DEAD", "MemoryTier", "Node", "Ticket", "deep_copy"]

T = TypeVar("T")

TAG_KILLS = 1024  # tags whose last kill is remembered, for fills whose tags are known only when they arrive


class _Pending:
    """Shared by those tickets of one key that no kill separates; kept alive by them alone, so nothing can leak."""

    __slots__ = ("__weakref__", "dead")

    def __init__(self) -> None:
        self.dead = False


class Ticket:
    """The right to put a value into memory, ``taken`` (monotonic seconds) before it is read from the shared tier."""

    __slots__ = ("epoch", "key", "pending", "sequence", "taken")

    def __init__(self, key: str, pending: _Pending, epoch: int, sequence: int, taken: float) -> None:
        self.key = key
        self.pending: _Pending | None = pending
        self.epoch = epoch
        self.sequence = sequence
        self.taken = taken


class MemoryTier(Tier):
    """Process memory under S3-FIFO.

    Args:
        namespace: for reports only; the memory belongs to one cache alone.
        max_entries: entries held at most. Leases and intents are held beside them and are never evicted.
        name: for stats, events and errors.
        copy: deep-copies values on the way in and out (the reader's protocol above does not: its user looks here).
        monotonic: seconds that never go back; they alone decide what is fresh here.
        now: wall-clock seconds since the epoch.

    Raises:
        ConfigurationError: ``max_entries`` is less than 1.
    """

    kind: ClassVar[str] = "memory"
    shared: ClassVar[bool] = False
    holds_objects: ClassVar[bool] = True

    def __init__(
        self,
        *,
        namespace: str,
        max_entries: int = 10_000,
        name: str = "memory",
        copy: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(name, namespace)
        if max_entries < 1:
            raise ConfigurationError(f"max_entries={max_entries!r}: must be at least 1")
        self.max_entries = max_entries
        self.copy = copy
        self.monotonic = self._monotonic = monotonic
        self._now = now
        self._content = NodeTable(max_entries)
        self._held = threading.Lock()
        self.table: dict[str, Node] = self._content.nodes
        self._pending: WeakValueDictionary[str, _Pending] = WeakValueDictionary()
        self._tag_kills: OrderedDict[str, int] = OrderedDict()
        self._tag_floor = 0
        self._sequence = 0
        self._epoch = 0

    def _now_ms(self) -> int:
        return int(self._now() * 1000)

    def _change(self, work: Callable[[], T]) -> T:
        """``work`` under the lock: a plain one, as a signal handler may raise inside an ``__enter__`` in Python."""
        content = self._content
        with self._held:
            try:
                return work()
            except BaseException:
                self._kill_all()  # what was interrupted is half done
                raise
            finally:  # let go of after the lock: the ``__del__`` of a value may well call the cache
                _dead, content.graves = content.graves, []

    # ------------------------------------------------------------------------------------- as the authority

    async def read(
        self, rt: Runtime, keys: Sequence[str], tags: Sequence[str] = ()
    ) -> tuple[dict[str, Slot], dict[str, Generation]]:
        """Slots and generations as they stand; payloads are the objects."""
        monotonic, now = self._monotonic(), self._now_ms()
        content = self._content

        def look() -> tuple[dict[str, Slot], dict[str, Generation]]:
            found = {}
            for key in keys:
                slot = content.standing(key, monotonic, now)
                if slot is not None:
                    found[key] = slot
            return found, {tag: content.generations[tag] for tag in tags if tag in content.generations}

        found, generations = self._change(look)
        if self.copy:
            found = {key: self._copied(key, slot) for key, slot in found.items()}
        return found, generations

    async def swap(self, rt: Runtime, swaps: Sequence[Swap]) -> list[Swapped]:
        """Compares nonces: every header has its own, so equal nonces are equal headers."""
        news = [s.new if s.new is None or _same_entry(s) else self._copied(s.key, s.new) for s in swaps]
        results = self._change(lambda: [self._swap(s, new) for s, new in zip(swaps, news, strict=True)])
        if not self.copy:
            return results
        return [
            r if r.current is None else Swapped(r.done, self._copied(s.key, r.current))
            for s, r in zip(swaps, results, strict=True)
        ]

    def _swap(self, swap: Swap, new: Slot | None) -> Swapped:
        monotonic, now = self._monotonic(), self._now_ms()
        current = self._content.standing(swap.key, monotonic, now)
        if current is None or swap.expected is None:
            matches = current is swap.expected
        else:
            matches = current.nonce == swap.expected.nonce
        if not matches:
            return Swapped(False, current)
        self._content.place(swap.key, new, monotonic, now, same_entry=_same_entry(swap))
        self._kill_pending(swap.key)
        return Swapped(True)

    async def drop(self, rt: Runtime, keys: Sequence[str]) -> list[bool]:
        """Entry and lease go; standing intents stay, contended. True where an entry went."""
        return self._change(lambda: [self._drop(key) for key in keys])

    def _drop(self, key: str) -> bool:
        monotonic, now = self._monotonic(), self._now_ms()
        self._kill_pending(key)
        slot = self._content.standing(key, monotonic, now)
        if slot is None:
            return False
        self._content.place(key, slots.drop(slot, nonce=os.urandom(8)), monotonic, now)
        return slot.entry is not None

    async def store(self, rt: Runtime, slots: Mapping[str, Slot]) -> list[bool]:
        """Stores each entry; False where intents stood and it acted as a drop."""
        news = {key: self._copied(key, new) for key, new in slots.items()}
        return self._change(lambda: [self._store(key, new) for key, new in news.items()])

    def _store(self, key: str, new: Slot) -> bool:
        monotonic, now = self._monotonic(), self._now_ms()
        if new.entry is None:
            raise AssertionError(f"store of {key!r}: the slot holds no entry")
        stored, slot = slots.store(self._content.standing(key, monotonic, now), new.entry, nonce=new.nonce)
        self._content.place(key, slot, monotonic, now)
        self._kill_pending(key)
        return stored

    async def set_generations(
        self, rt: Runtime, marks: Mapping[str, bytes], *, only_missing: bool
    ) -> dict[str, Generation]:
        """Sets generations; what was born under another one dies at once, so that hits need not look at tags."""
        content = self._content

        def set_each() -> dict[str, Generation]:
            standing = {}
            for tag, mark in marks.items():
                current = content.generations.get(tag)
                if current is None or not only_missing:
                    current = Generation(mark, self._now_ms())
                    content.set_generation(tag, current)
                    content.kill_tag(tag, self._monotonic(), self._now_ms())
                standing[tag] = current
            return standing

        return self._change(set_each)

    async def clear(self, rt: Runtime) -> None:
        """Entries, leases and tickets go; standing intents stay, contended; generations stay."""
        self._change(self._clear)

    def _clear(self) -> None:
        self._kill_all()
        controls = self._content.controls
        for key, (slot, ends) in list(controls.items()):
            kept = slots.drop(slot, nonce=os.urandom(8))
            if kept is None:
                del controls[key]
            else:
                controls[key] = (kept, ends)

    # ------------------------------------------------------------------------------- as a local copy above

    def ticket(self, key: str) -> Ticket:
        """Take it *before* reading the shared tier. It holds nothing that would need giving back."""
        with self._held:
            pending = self._pending.get(key)
            if pending is None:
                pending = self._pending[key] = _Pending()
            return Ticket(key, pending, self._epoch, self._sequence, self._monotonic())

    def fill(
        self,
        ticket: Ticket,
        value: object,
        *,
        fresh_for: float | None,
        tags: tuple[str, ...],
        entry: StoredEntry,
    ) -> Node | None:
        """Puts in a value that was read after ``ticket`` was taken.

        Args:
            ticket: from `ticket`; it is used up.
            value: the decoded object.
            fresh_for: seconds of freshness from now on, bounded by ``local_ttl`` already; None for ever.
            tags: the names by which `kill_tags` finds the entry.
            entry: its times and cost, for inspection; the payload is not kept.

        Returns:
            The new node; None where a kill of the key, of a tag or of everything came since the ticket was taken.
        """
        pending, ticket.pending = ticket.pending, None
        if pending is None or (fresh_for is not None and fresh_for <= 0):
            return None
        if self.copy:
            value = deep_copy(ticket.key, value)
        kept = msgspec.structs.replace(entry, payload=value)

        def put() -> Node | None:
            if pending.dead or ticket.epoch != self._epoch or self._tag_killed(tags, ticket.sequence):
                return None
            monotonic = self._monotonic()
            deadline = math.inf if fresh_for is None else monotonic + fresh_for
            node = Node(ticket.key, value, deadline, deadline, tags, kept, Slot(os.urandom(8), entry=kept))
            if entry.as_type is not None:
                node.untyped = -math.inf
            self._content.insert(node, monotonic, self._now_ms())
            return node

        return self._change(put)

    def _tag_killed(self, tags: tuple[str, ...], since: int) -> bool:
        if not tags:
            return False
        return since < self._tag_floor or any(self._tag_kills.get(tag, 0) > since for tag in tags)

    def done(self, ticket: Ticket) -> None:
        """Gives a ticket up; one that is forgotten does no harm."""
        ticket.pending = None

    def kill(self, keys: Iterable[str]) -> None:
        """The entries of these keys die in place, and so do the tickets for them."""
        self._change(lambda: [self._drop(key) for key in keys])

    def kill_tags(self, tags: Iterable[str]) -> None:
        """Every entry with one of these tags dies in place; so do fills of such entries that are under way."""
        self._change(lambda: self._kill_tags(tags))

    def _kill_tags(self, tags: Iterable[str]) -> None:
        self._sequence += 1
        monotonic, now = self._monotonic(), self._now_ms()
        for tag in tags:
            self._content.kill_tag(tag, monotonic, now)
            self._tag_kills[tag] = self._sequence
            self._tag_kills.move_to_end(tag)
        while len(self._tag_kills) > TAG_KILLS:
            # A ticket older than what is forgotten here cannot know whether its tags were hit: it is refused.
            self._tag_floor = self._tag_kills.popitem(last=False)[1]

    def kill_all(self) -> None:
        """Every entry and every ticket dies: what stands here is not to be trusted any more."""
        self._change(self._kill_all)

    def _kill_all(self) -> None:
        self._content.empty()
        self._epoch += 1
        self._pending = WeakValueDictionary()

    def _kill_pending(self, key: str) -> None:
        pending = self._pending.pop(key, None)
        if pending is not None:
            pending.dead = True

    # ------------------------------------------------------------------------------------------- life cycle

    def close(self) -> None:
        """Lets go of everything; a later call starts empty."""
        self._change(self._close)

    def _close(self) -> None:
        self._kill_all()
        self._content.controls.clear()
        self._content.generations.clear()

    def after_fork(self) -> None:
        """In a forked child: entries stay, tickets die, and the parent's leases are not ours.

        Where another thread held the lock at the fork, its change is half done here: start empty.
        """
        torn = self._held.locked()
        self._held = threading.Lock()
        self._epoch += 1
        self._pending = WeakValueDictionary()
        content = self._content
        for key, (slot, _ends) in list(content.controls.items()):
            if not slot.intents:  # an intent stays: the parent may still save at the origin
                del content.controls[key]
        if torn:
            self._change(content.empty)
        for node in content.nodes.values():
            if node.slot is not None and node.slot.lease is not None:
                node.slot = msgspec.structs.replace(node.slot, nonce=os.urandom(8), lease=None)

    def peek(self, key: str, type_: Any) -> Any:
        """The fresh value that was stored or decoded as ``type_``, or `MISSING`; without a lock."""
        node = self.table.get(key)
        if node is None:
            return MISSING
        value, entry = node.value, node.entry  # before the deadline: a node dies the other way round
        if node.deadline <= self.monotonic() or entry is None or entry.as_type is not type_:
            return MISSING
        if node.mark < 3:
            node.mark += 1
        return deep_copy(key, value) if self.copy else value

    def describe(self) -> dict[str, Any]:
        """Entries now, their bound, and how many had to leave for others before their time."""
        evictions = self._content.evictions
        return {"entries": len(self.table), "max_entries": self.max_entries, "evictions": evictions}

    def check(self) -> None:
        """Raises AssertionError where the tier's own accounts do not agree; for tests."""
        with self._held:
            self._content.check()
            assert len(self._tag_kills) <= TAG_KILLS, "too many tag kills are remembered"

    def tagged(self, tag: str) -> int:
        """How many entries carry it."""
        return len(self._content.tagged.get(tag, ()))

    def _copied(self, key: str, slot: Slot) -> Slot:
        if not self.copy or slot.entry is None:
            return slot
        entry = msgspec.structs.replace(slot.entry, payload=deep_copy(key, slot.entry.payload))
        return msgspec.structs.replace(slot, entry=entry)


def _same_entry(swap: Swap) -> bool:
    """Whether only control state changes: the entry that was read is given back as it was."""
    new, old = swap.new, swap.expected
    return new is not None and old is not None and new.entry is not None and new.entry is old.entry


def deep_copy(key: str, value: Any) -> Any:
    """A value of one's own; where there is none, an `EncodeError` that names the key."""
    try:
        return copying.deepcopy(value)
    except Exception as error:
        raise EncodeError(
            f"the value of {key!r} cannot be deep-copied ({error}); set copy=False to share it"
        ) from error
