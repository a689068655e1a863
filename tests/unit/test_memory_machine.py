"""The memory tier against a plain dict: whatever is done in whatever order, it holds the model's slots or less."""

from __future__ import annotations

import itertools

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cachewright.core import slot as slots
from cachewright.core.slot import Intent, Lease, Slot, StoredEntry
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS
from cachewright.tiers.base import Swap
from cachewright.tiers.memory import DEAD, MemoryTier, Node

KEYS = st.sampled_from([f"k{n}" for n in range(8)])
TAGS = st.sampled_from([(), ("a",), ("b",), ("a", "b")])


class Machine(RuleBasedStateMachine):
    """Entries may be evicted at any time; leases and intents never are, and nothing else may appear."""

    def __init__(self):
        super().__init__()
        self.time = 1000.0
        self.tier = MemoryTier(
            namespace="t", max_entries=4, monotonic=lambda: self.time, now=lambda: self.time
        )
        self.model: dict[str, Slot] = {}
        self.marks: dict[str, bytes] = {}
        self.seen: dict[str, Slot | None] = {}
        self.nodes: list[Node] = []
        self.numbers = itertools.count(1)

    @property
    def now(self):
        return int(self.time * 1000)

    def id(self):
        return next(self.numbers).to_bytes(8, "big")

    def entry(self, life, tags=()):
        fresh = self.now + life
        pairs = tuple((tag, self.marks.get(tag, b"missing!")) for tag in tags)
        return StoredEntry(next(self.numbers), self.now, fresh, fresh + 3000, 0, tags=pairs)

    def standing(self, key):
        """The model's slot, as far as it is not over."""
        slot = self.model.get(key)
        if slot is None:
            return None
        entry = slot.entry if slot.entry is not None and slot.entry.ends > self.now else None
        lease = slot.lease if slot.lease is not None and slot.lease.deadline > self.now else None
        intents = slot.intents if any(i.deadline > self.now for i in slot.intents) else ()
        return slot if entry or lease or intents else None

    def compare(self, key):
        """Reads the tier and holds it to the model; whatever was evicted goes from the model too."""
        found, model = drive(self.tier.read(THREADS, [key]))[0].get(key), self.standing(key)
        if found is None:
            assert model is None or (model.entry is not None and model.lease is None), (
                "control state was lost"
            )
            self.model.pop(key, None)
        elif found.entry is None and model is not None and model.entry is not None:
            assert found.lease == model.lease, "an eviction leaves the lease"
            assert found.nonce != model.nonce
            self.model[key] = found
        else:
            assert found == model
        return found

    @rule(key=KEYS)
    def look(self, key):
        self.seen[key] = self.compare(key)

    @rule(
        key=KEYS,
        what=st.sampled_from(["lease", "entry", "intent", "beside", "nothing"]),
        life=st.integers(1, 9000),
    )
    def swap(self, key, what, life):
        """From whatever was seen last, be it long gone."""
        expected, standing = self.seen.get(key), self.compare(key)
        lease = Lease(self.id(), self.now + life, life)
        entry = expected.entry if expected is not None else None
        new = {
            "lease": Slot(self.id(), lease=lease),
            "entry": Slot(self.id(), entry=self.entry(life)),
            "intent": Slot(self.id(), intents=(Intent(self.id(), self.now + life),)),
            "beside": Slot(self.id(), entry=entry, lease=lease),
            "nothing": None,
        }[what]
        result = drive(self.tier.swap(THREADS, [Swap(key, expected, new)]))[0]
        same = (
            expected is standing
            if expected is None or standing is None
            else expected.header == standing.header
        )
        assert result.done == same
        if not result.done:
            assert result.current == standing
        elif new is None:
            self.model.pop(key, None)
        else:
            self.model[key] = new

    @rule(key=KEYS, life=st.integers(1, 9000), tags=TAGS)
    def store(self, key, life, tags):
        new, standing = Slot(self.id(), entry=self.entry(life, tags)), self.compare(key)
        stored = drive(self.tier.store(THREADS, {key: new}))[0]
        assert new.entry is not None
        expected, self.model[key] = slots.store(standing, new.entry, nonce=new.nonce)
        assert stored == expected
        if key in self.tier.table:
            self.nodes.append(self.tier.table[key])

    @rule(key=KEYS)
    def drop(self, key):
        standing = self.compare(key)
        assert drive(self.tier.drop(THREADS, [key])) == [standing is not None and standing.entry is not None]
        self.dropped(key, standing)

    def dropped(self, key, standing):
        found = drive(self.tier.read(THREADS, [key]))[0].get(key)
        if standing is None or not standing.intents:
            assert found is None
            self.model.pop(key, None)
        else:
            assert found is not None
            assert found.intents == standing.intents
            assert found.contended
            self.model[key] = found

    @rule()
    def clear(self):
        before = {key: self.compare(key) for key in list(self.model)}
        drive(self.tier.clear(THREADS))
        for key, standing in before.items():
            self.dropped(key, standing)

    @rule(tag=st.sampled_from("ab"), only_missing=st.booleans())
    def generation(self, tag, only_missing):
        mark = self.id()
        known = self.marks.get(tag)
        stands = drive(self.tier.set_generations(THREADS, {tag: mark}, only_missing=only_missing))[tag]
        self.marks[tag] = known if only_missing and known is not None else mark
        assert stands.mark == self.marks[tag]

    @rule(seconds=st.floats(0.001, 5))
    def wait(self, seconds):
        self.time += seconds

    @invariant()
    def hits_are_fresh_valid_and_the_models_own(self):
        for key, node in self.tier.table.items():
            if node.deadline > self.time:
                model = self.standing(key)
                assert model is not None
                assert model.entry is not None
                assert node.value == model.entry.payload
                assert model.entry.fresh_until > self.time * 1000 - 1
                assert all(self.marks.get(tag) == mark for tag, mark in model.entry.tags)

    @invariant()
    def the_dead_are_dead(self):
        for node in self.nodes:
            if self.tier.table.get(node.key) is not node:
                assert node.deadline == float("-inf")
                assert node.value is DEAD

    @invariant()
    def accounts_agree(self):
        self.tier.check()


Machine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestMachine = Machine.TestCase
