"""What the memory tier holds, and how an entry dies: nodes, their queues, the tag index, and slots without an entry.

Nothing here locks or waits; `MemoryTier` calls it under its lock. Only ``nodes`` is read from outside without it.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from typing import Any

import msgspec

from cachewright.core.slot import NEVER, Lease, Slot, StoredEntry, life_of
from cachewright.tiers.base import Generation
from cachewright.tiers.eviction import S3FIFO, Policy

__all__ = ["DEAD", "Node", "NodeTable"]


class _Dead:
    """What a dead node holds in its value's place, so that an index that keeps the node keeps no value alive."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<dead>"


DEAD: Any = _Dead()
_INF = math.inf
SWEEP = 2  # old slots looked at per insertion: what expired is reclaimed without a thread and without a pause
MIN_GENERATIONS = 4096


class Node:
    """One entry in memory. Never changed in place, but for ``mark`` (by hits) and for dying.

    Attributes:
        key: the caller's key.
        value: the object, or `DEAD`. Read it *before* ``deadline``.
        deadline: monotonic seconds until which hits may have the value; ``inf`` for ever, ``-inf`` once dead.
        fresh: monotonic seconds until which the entry is fresh; later than ``deadline`` where the core wants to see
            reads before (`StoredEntry.serve_until`).
        untyped: the deadline for who asks for no type: ``deadline``, or ``-inf`` where a local copy was decoded to a
            type, as an untyped read of the shared tier would give something else.
        mark: hits since the eviction policy last looked, up to `MAX_MARK`.
        entry: times, cost and tags; None once dead.
        tags: the names that `NodeTable.kill_tag` finds it by.
        ends: monotonic seconds at which the entry's physical life ends, stale windows included.
        slot: all that stands under the key; None once dead. Belongs to the tier, as ``home`` does to the policy.
    """

    __slots__ = (
        "__weakref__",
        "deadline",
        "ends",
        "entry",
        "fresh",
        "home",
        "key",
        "mark",
        "slot",
        "tags",
        "untyped",
        "value",
    )

    def __init__(
        self,
        key: str,
        value: Any,
        deadline: float,
        ends: float,
        tags: tuple[str, ...],
        entry: StoredEntry,
        slot: Slot,
    ) -> None:
        self.key = key
        self.value = value
        self.deadline = self.fresh = self.untyped = deadline
        self.mark = 0
        self.entry: StoredEntry | None = entry
        self.tags = tags
        self.ends = ends
        self.home = 0
        self.slot: Slot | None = slot

    def __repr__(self) -> str:
        return f"<Node {self.key!r} {'dead' if self.value is DEAD else 'alive'}>"


class NodeTable:
    """Entries (bounded, in queues) and beside them slots that hold control state only (they end by themselves)."""

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self.nodes: dict[str, Node] = {}
        self.policy: Policy[Node] = S3FIFO(max_entries, lambda node: node.ends <= self._at)
        # Slots without an entry, with the monotonic second at which each ends.
        self.controls: OrderedDict[str, tuple[Slot, float]] = OrderedDict()
        self.tagged: dict[str, set[Node]] = {}
        self.generations: OrderedDict[str, Generation] = OrderedDict()
        # What the dead held. The tier lets it go after its lock: a value's own __del__ may well call the cache.
        self.graves: list[Any] = []
        self.evictions = 0
        self._at = -_INF  # monotonic seconds of the insertion that is being made
        self._sweeping: list[str] = []

    def standing(self, key: str, monotonic: float, now: int) -> Slot | None:
        """The slot under ``key``; what is past its life counts as absent and is reclaimed."""
        node = self.nodes.get(key)
        if node is not None:
            if node.ends > monotonic:
                assert node.slot is not None, "a node of the table is dead"
                return self._clamped(node, node.slot, monotonic, now)
            self.demote(node, monotonic, now)
        control = self.controls.get(key)
        if control is None:
            return None
        if control[1] <= monotonic:
            del self.controls[key]
            return None
        return control[0]

    @staticmethod
    def _clamped(node: Node, slot: Slot, monotonic: float, now: int) -> Slot:
        """The slot, never fresher than the monotonic deadline says: a wall clock that was set back revives nothing."""
        entry = node.entry
        if entry is None or node.fresh in (-_INF, _INF):
            return slot
        latest = now + max(0, math.ceil((node.fresh - monotonic) * 1000))
        if entry.fresh_until <= latest + 1:  # one ms of rounding
            return slot
        return msgspec.structs.replace(slot, entry=msgspec.structs.replace(entry, fresh_until=latest))

    def place(
        self, key: str, slot: Slot | None, monotonic: float, now: int, *, same_entry: bool = False
    ) -> None:
        """Lets ``slot`` (None: nothing) stand under ``key``.

        Args:
            same_entry: only control state changes beside an entry that stays; its node lives on, and its hits too.
        """
        node = self.nodes.get(key)
        if slot is None or slot.entry is None:
            if node is not None:
                self.bury(node)
            if slot is None:
                self.controls.pop(key, None)
                return
            life = life_of(slot, now)
            self.controls[key] = (slot, _INF if life is None else monotonic + life / 1000)
            self.controls.move_to_end(key)
            self._sweep_controls(monotonic)
            return
        if same_entry and node is not None:
            node.slot = slot if slot.entry is node.entry else msgspec.structs.replace(slot, entry=node.entry)
            return
        entry = slot.entry
        deadline = _INF if entry.fresh_until >= NEVER else monotonic + (entry.fresh_until - now) / 1000
        ends = _INF if entry.ends >= NEVER else monotonic + (entry.ends - now) / 1000
        if entry.tags and not self._born_valid(entry):
            # Its tag was invalidated during its load. Hits do not look at tags, so they must not see it at all;
            # who reads the slot compares generations.
            deadline = -_INF
        node = Node(key, entry.payload, deadline, ends, tuple(t for t, _ in entry.tags), entry, slot)
        if entry.serve_until < entry.fresh_until:
            node.deadline = node.untyped = min(deadline, monotonic + (entry.serve_until - now) / 1000)
        self.insert(node, monotonic, now)

    def _born_valid(self, entry: StoredEntry) -> bool:
        for tag, mark in entry.tags:
            generation = self.generations.get(tag)
            if generation is None or generation.mark != mark:
                return False
        return True

    def insert(self, node: Node, monotonic: float, now: int) -> None:
        """Puts a node in its key's place; others may have to leave for it."""
        self._at = monotonic
        key = node.key
        self.controls.pop(key, None)
        old = self.nodes.get(key)
        if old is not None:
            self.policy.replace(old, node)
            self.nodes[key] = node
            self._die(old)
        else:
            for gone in self.policy.admit(node):
                if gone.ends > monotonic:
                    self.evictions += 1
                self._forget(gone)
                self._keep_lease(gone, monotonic, now)
                self._die(gone)
            self.nodes[key] = node
        for tag in node.tags:
            members = self.tagged.get(tag)
            if members is None:
                self.tagged[tag] = {node}
            else:
                members.add(node)
        self._sweep(monotonic, now)

    def bury(self, node: Node) -> None:
        """The node dies in place; nothing of its slot stays."""
        self.policy.remove(node)
        self._forget(node)
        self._die(node)

    def demote(self, node: Node, monotonic: float, now: int) -> None:
        """The entry goes; a lease beside it stays, as control state is never evicted."""
        self.policy.remove(node)
        self._forget(node)
        self._keep_lease(node, monotonic, now)
        self._die(node)

    def _forget(self, node: Node) -> None:
        if self.nodes.get(node.key) is node:
            del self.nodes[node.key]

    def _keep_lease(self, node: Node, monotonic: float, now: int) -> None:
        slot = node.slot
        if slot is None or slot.lease is None:
            return
        # How long it still runs is known by the wall clock alone; one that was over must not stand again.
        left = min(slot.lease.life, slot.lease.deadline - now)
        if left > 0:
            # A new nonce: the header has changed, and no two headers are ever alike.
            self.controls[node.key] = (Slot(os.urandom(8), lease=slot.lease), monotonic + left / 1000)

    def _die(self, node: Node) -> None:
        """Deadline first, value second: see the reader's protocol in `cachewright.tiers.memory`."""
        node.deadline = node.untyped = -_INF
        self.graves.append((node.value, node.entry, node.slot))
        node.value, node.entry, node.slot = DEAD, None, None
        for tag in node.tags:
            members = self.tagged.get(tag)
            if members is not None:
                members.discard(node)
                if not members:
                    del self.tagged[tag]

    def kill_tag(self, tag: str, monotonic: float, now: int) -> None:
        """Every entry with this tag dies; a lease beside one stays, its load will be born under the old generation."""
        for node in list(self.tagged.get(tag, ())):
            self.demote(node, monotonic, now)

    def empty(self) -> None:
        """Every entry dies, whatever stands beside it; slots without an entry stay."""
        for node in self.nodes.values():
            node.deadline = node.untyped = -_INF
            self.graves.append((node.value, node.entry, node.slot))
            node.value, node.entry, node.slot = DEAD, None, None
        self.nodes.clear()
        self.policy.clear()
        self.tagged.clear()
        self._sweeping = []

    def set_generation(self, tag: str, generation: Generation) -> None:
        """A new generation; the number kept is bounded by forgetting old ones that no entry was born under.

        Forgetting is safe: a missing generation makes what a running load brings invalid, never valid.
        """
        self.generations[tag] = generation
        self.generations.move_to_end(tag)
        if len(self.generations) > max(MIN_GENERATIONS, 2 * self.max_entries):
            for _ in range(SWEEP):
                oldest, kept = self.generations.popitem(last=False)
                if oldest in self.tagged:
                    self.generations[oldest] = kept

    def _sweep(self, monotonic: float, now: int) -> None:
        """Looks at a few entries, in turn over many insertions, and reclaims the expired: O(1) amortised."""
        for _ in range(SWEEP):
            if not self._sweeping:
                self._sweeping = list(self.nodes)
            node = self.nodes.get(self._sweeping.pop())
            if node is not None and node.ends <= monotonic:
                self.demote(node, monotonic, now)

    def _sweep_controls(self, monotonic: float) -> None:
        for _ in range(min(SWEEP, len(self.controls))):
            key, (_slot, ends) = next(iter(self.controls.items()))
            if ends <= monotonic:
                del self.controls[key]
            else:
                self.controls.move_to_end(key)

    def leases(self) -> dict[str, Lease]:
        """The leases that stand, by key; ended ones too, as long as nobody has looked at their keys."""
        slots = {key: node.slot for key, node in self.nodes.items()}
        slots.update((key, slot) for key, (slot, _ends) in self.controls.items())
        return {key: s.lease for key, s in slots.items() if s is not None and s.lease is not None}

    def check(self) -> None:
        """Raises AssertionError where the accounts do not agree; for tests."""
        self.policy.check()
        queued = {node.key: node for node in self.policy}
        assert queued == self.nodes, f"queues and table differ in {queued.keys() ^ self.nodes.keys()}"
        assert len(self.policy) == len(self.nodes), "a key stands in a queue twice"
        assert len(self.nodes) <= self.max_entries, f"{len(self.nodes)} entries, bound {self.max_entries}"
        assert not self.nodes.keys() & self.controls.keys(), "a slot stands twice"
        assert all(n.value is not DEAD and n.slot is not None for n in self.nodes.values()), (
            "a dead node in the table"
        )
        assert all(slot.entry is None for slot, _ in self.controls.values()), "an entry outside the queues"
        index: dict[str, set[Node]] = {}
        for node in self.nodes.values():
            for tag in node.tags:
                index.setdefault(tag, set()).add(node)
        assert index == self.tagged, "the tag index and the table differ"
        assert not self.graves, "dead values were not let go"
