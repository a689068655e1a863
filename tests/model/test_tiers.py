"""Every tier against slots in a dictionary: whatever is done in whatever order, it holds the model's slots.

The steps come through both faces and two tier objects over one store, as two processes have them. Process memory may
evict an entry at any time; leases and intents never go before their time, and nothing else may appear, anywhere.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cachewright.core.slot import NEVER, Intent, Lease, Slot, StoredEntry
from cachewright.runtime.aio import AioRuntime
from cachewright.runtime.base import drive
from cachewright.runtime.threads import ThreadRuntime
from cachewright.tiers.base import Swap, Swapped, Tier
from cachewright.tiers.memory import DEAD, MemoryTier, Node
from cachewright.urls import make_tier

KINDS = ["memory", "sqlite", "redis", "valkey", "cluster", "memcached", "memcached3", "embedded"]
KEYS = st.sampled_from(["k0", "k1", "k2", "k3", "k4", "é \r\n", "x" * 300])
TAGS = st.lists(st.sampled_from(["a", "b", "ü"]), max_size=2, unique=True).map(tuple)
LIVES = st.integers(1, 9000) | st.integers(1, 72).map(lambda eighths: 125 * eighths)
SIZES = st.sampled_from([0, 3, 3, 3, 40_000])
WHAT = st.sampled_from(
    ["entry", "forever", "lease", "beside", "both", "failed", "intent", "intents", "nothing"]
)
START = 2_000_000_000.0


class Clock:
    """Time that only the machine moves."""

    def __init__(self) -> None:
        self.time = START

    def now(self) -> float:
        return self.time

    monotonic = now


class TierMachine(RuleBasedStateMachine):
    """See the module. A subclass says how a tier is made.

    ``keeps_time``: the tier's life and death of slots go by the machine's clock. Others are servers, which count
    by their own: their slots are given lives that no example reaches, and stand until they are removed.
    """

    make_tier: ClassVar[Callable[[Clock, Tier | None], Tier]]
    keeps_time: ClassVar[bool]

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.loop = asyncio.new_event_loop()
        self.runtimes: list[Any] = [ThreadRuntime(self.clock), AioRuntime(self.clock)]
        first = type(self).make_tier(self.clock, None)
        other = first if isinstance(first, MemoryTier) else type(self).make_tier(self.clock, first)
        self.tiers = [first, other]
        self.turn = 0
        self.model: dict[str, Slot] = {}
        self.marks: dict[str, bytes] = {}
        self.changed: dict[str, int] = {}
        self.seen: dict[str, Slot | None] = {}
        self.nodes: list[Node] = []
        self.numbers = itertools.count(1)

    def teardown(self) -> None:
        for tier in getattr(self, "tiers", []):
            drive(tier.clear(self.runtimes[0]))
            self.loop.run_until_complete(tier.aclose(self.runtimes[1]))
            tier.close()
        if hasattr(self, "loop"):
            self.loop.close()

    # Calling: each of the four ways in turn

    def do(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.turn += 1
        face, tier = self.turn % 2, self.tiers[self.turn // 2 % 2]
        made = getattr(tier, name)(self.runtimes[face], *args, **kwargs)
        return self.loop.run_until_complete(made) if face else drive(made)

    @rule()
    def another_turn(self) -> None:
        self.turn += 1

    # What the model says

    @property
    def now(self) -> int:
        return int(self.clock.time * 1000)

    def standing(self, key: str) -> Slot | None:
        """The model's slot: as long as any part of it lives."""
        slot = self.model.get(key)
        if slot is None or not self.keeps_time:
            return slot
        ends = [intent.deadline for intent in slot.intents]
        ends += [slot.entry.ends] if slot.entry is not None else []
        ends += [slot.lease.deadline] if slot.lease is not None else []
        return slot if max(ends) > self.now else None

    def compare(self, key: str) -> Slot | None:
        """Reads the tier and holds it to the model; whatever memory has evicted goes from the model too."""
        found, model = self.do("read", [key])[0].get(key), self.standing(key)
        if same(found, model):
            if found is None:
                self.model.pop(key, None)
            return found
        assert isinstance(self.tiers[0], MemoryTier), f"{key}: {found} stands, and the model says {model}"
        assert model is not None, f"{key}: {found} came from nowhere"
        assert model.entry is not None, f"{key}: control state was lost"
        if found is None:
            assert model.lease is None or model.lease.deadline <= self.now, "an eviction leaves the lease"
            del self.model[key]
        else:
            assert (found.entry, found.lease) == (None, model.lease), "an eviction takes the entry alone"
            assert found.nonce != model.nonce
            self.model[key] = found
        return found

    # What slots are made of

    def id(self) -> bytes:
        return next(self.numbers).to_bytes(8, "big")

    def entry(self, life: int, size: int, tags: tuple[str, ...] = ()) -> StoredEntry:
        payload = next(self.numbers).to_bytes(3, "big") + bytes(size) if size else b""
        fresh = NEVER if life == NEVER else self.now + self.long(life)
        stale = NEVER if life == NEVER else fresh + 3000
        pairs = tuple((tag, self.marks.get(tag, b"missing!")) for tag in tags)
        return StoredEntry(payload, self.now, fresh, stale, fresh, 1500, tags=pairs)

    def long(self, life: int) -> int:
        return life if self.keeps_time else 1_000_000 + life

    def new(self, key: str, what: str, life: int, size: int) -> Slot | None:
        expected = self.seen.get(key)
        lease = Lease(self.id(), self.now + self.long(life), self.long(life))
        intents = tuple(Intent(self.id(), self.now + self.long(life)) for _ in range(3))
        kept = expected.entry if expected is not None else None
        return {
            "entry": Slot(self.id(), entry=self.entry(life, size, ("a",))),
            "forever": Slot(self.id(), entry=self.entry(NEVER, size)),
            "lease": Slot(self.id(), lease=lease),
            "beside": Slot(self.id(), entry=kept, lease=lease),
            "both": Slot(self.id(), entry=self.entry(life, size), lease=lease),
            "failed": Slot(self.id(), entry=self.entry(life, size), retry_at=self.now + life),
            "intent": Slot(self.id(), intents=intents[:1]),
            "intents": Slot(self.id(), intents=intents, contended=True),
            "nothing": None,
        }[what]

    # Steps

    @rule(keys=st.lists(KEYS, max_size=4, unique=True))
    def look(self, keys: list[str]) -> None:
        for key in keys:
            self.seen[key] = self.compare(key)
        found, _ = self.do("read", keys)
        assert found.keys() == {key for key in keys if self.standing(key) is not None}

    @rule(keys=st.lists(KEYS, max_size=3, unique=True), what=WHAT, life=LIVES, size=SIZES)
    def swap_what_stands(self, keys: list[str], what: str, life: int, size: int) -> None:
        self.look(keys)
        self.swap(keys, what, life, size)

    @rule(keys=st.lists(KEYS, max_size=3, unique=True), what=WHAT, life=LIVES, size=SIZES)
    def swap_what_was_seen(self, keys: list[str], what: str, life: int, size: int) -> None:
        """Be it long gone, or come and gone again."""
        self.swap(keys, what, life, size)

    def swap(self, keys: list[str], what: str, life: int, size: int) -> None:
        if isinstance(self.tiers[0], MemoryTier):
            keys = keys[:1]  # the first of a call may evict what the second expects
        stood = {key: self.compare(key) for key in keys}
        swaps = [Swap(key, self.seen.get(key), self.new(key, what, life, size)) for key in keys]
        for swap, result in zip(swaps, self.do("swap", swaps), strict=True):
            stands = stood[swap.key]
            if not same(swap.expected, stands):
                assert not result.done
                assert same(result.current, stands), "a refusal shows what stands"
                continue
            assert result == Swapped(True)
            if swap.new is None:
                self.model.pop(swap.key, None)
            else:
                self.model[swap.key] = swap.new

    @rule(keys=st.lists(KEYS, max_size=3, unique=True), life=LIVES, tags=TAGS, size=SIZES)
    def store(self, keys: list[str], life: int, tags: tuple[str, ...], size: int) -> None:
        stood = {key: self.compare(key) for key in keys}
        news = {key: Slot(self.id(), entry=self.entry(life, size, tags)) for key in keys}
        results = self.do("store", news)
        for (key, new), stored in zip(news.items(), results, strict=True):
            stands = stood[key]
            assert stored == (stands is None or not stands.intents)
            if stored:
                self.model[key] = new
            else:
                self.dropped(key, stands)
        if isinstance(self.tiers[0], MemoryTier):
            self.nodes += [node for key in keys if (node := self.tiers[0].table.get(key)) is not None]

    @rule(keys=st.lists(KEYS, max_size=3, unique=True))
    def drop(self, keys: list[str]) -> None:
        stood = {key: self.compare(key) for key in keys}
        went = [stands is not None and stands.entry is not None for stands in stood.values()]
        assert self.do("drop", keys) == went
        for key, stands in stood.items():
            self.dropped(key, stands)

    def dropped(self, key: str, stood: Slot | None) -> None:
        """Entry and lease are gone; intents stand, contended, under a new nonce."""
        found = self.do("read", [key])[0].get(key)
        if stood is None or not stood.intents:
            assert found is None
            self.model.pop(key, None)
        else:
            assert found is not None
            assert (found.intents, found.contended) == (stood.intents, True)
            assert (found.entry, found.lease) == (None, None)
            assert found.nonce != stood.nonce
            self.model[key] = found

    @rule()
    def clear(self) -> None:
        before = {key: self.compare(key) for key in list(self.model)}
        self.do("clear")
        for key, stood in before.items():
            if self.tiers[0].scannable:
                self.dropped(key, stood)
            else:
                self.compare(key)  # untouched: the core sets a new generation instead

    @rule(tags=TAGS, only_missing=st.booleans())
    def generations(self, tags: tuple[str, ...], only_missing: bool) -> None:
        marks = {tag: self.id() for tag in tags}
        stands = self.do("set_generations", marks, only_missing=only_missing)
        assert stands.keys() == marks.keys()
        for tag, mark in marks.items():
            if only_missing and tag in self.marks:
                assert stands[tag].changed == self.changed[tag], "it did not change"
            else:
                self.marks[tag] = mark
                assert stands[tag].changed >= self.changed.get(tag, 0)
            assert stands[tag].mark == self.marks[tag]
            self.changed[tag] = stands[tag].changed

    @rule(tags=TAGS, keys=st.lists(KEYS, max_size=2, unique=True))
    def read_with_generations(self, tags: tuple[str, ...], keys: list[str]) -> None:
        for key in keys:
            self.compare(key)
        slots, generations = self.do("read", keys, tags)
        assert {tag: one.mark for tag, one in generations.items()} == {
            tag: self.marks[tag] for tag in tags if tag in self.marks
        }
        for key in keys:
            assert same(slots.get(key), self.standing(key))

    @precondition(lambda self: self.keeps_time)
    @rule(seconds=st.sampled_from([0.125, 0.5, 1.5, 4.0, 9.0]))
    def wait(self, seconds: float) -> None:
        """Eighths of a second: exact as floats and in milliseconds."""
        self.clock.time += seconds

    # Process memory, which is read without a lock and without asking the tier

    @invariant()
    def hits_are_fresh_valid_and_the_models_own(self) -> None:
        if not isinstance(self.tiers[0], MemoryTier):
            return
        for key, node in self.tiers[0].table.items():
            if node.deadline > self.clock.time:
                model = self.standing(key)
                assert model is not None
                assert model.entry is not None
                assert node.value == model.entry.payload
                assert model.entry.fresh_until > self.clock.time * 1000 - 1
                assert all(self.marks.get(tag) == mark for tag, mark in model.entry.tags)

    @invariant()
    def the_dead_are_dead(self) -> None:
        if isinstance(self.tiers[0], MemoryTier):
            for node in self.nodes:
                if self.tiers[0].table.get(node.key) is not node:
                    assert node.deadline == float("-inf")
                    assert node.value is DEAD
            self.tiers[0].check()


def same(one: Slot | None, other: Slot | None) -> bool:
    """Header and payload; who has the slot from where does not count."""
    if one is None or other is None:
        return one is other
    return (one.header, one.payload) == (other.header, other.payload)


@pytest.fixture(scope="session")
def embedded_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of an embedded server that runs as long as the session."""
    folder = tmp_path_factory.mktemp("embedded-model")
    keeper = make_tier(f"embedded://{folder}?timeout=30", "keeper", Clock())
    runtime: Any = ThreadRuntime()
    drive(keeper.connect(runtime))
    yield folder
    keeper.close()


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    get = request.getfixturevalue
    if kind == "memory":
        return "memory://?max_entries=4"
    if kind == "sqlite":
        return f"sqlite:///{tmp_path}/cache.db?timeout=30"
    if kind == "embedded":
        return f"embedded://{get('embedded_folder')}?timeout=30"
    if kind == "memcached3":
        servers = ",".join(server.address for server in get("memcached_servers"))
        return f"memcached://{servers}?timeout=30"
    names = {"cluster": "redis_cluster", "memcached": "memcached_server"}
    return f"{get(names.get(kind, f'{kind}_server')).url}?timeout=30"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("examples", [15, pytest.param(300, marks=pytest.mark.soak)])
def test_a_tier_holds_what_the_model_holds(kind: str, examples: int, url: str, namespace: str) -> None:
    made = itertools.count()

    def make(clock: Clock, again: Tier | None) -> Tier:
        return make_tier(url, again.namespace if again else f"{namespace}.{next(made)}", clock)

    body = {"make_tier": staticmethod(make), "keeps_time": kind in ("memory", "sqlite")}
    run_state_machine_as_test(
        type(f"Machine of {kind}", (TierMachine,), body),
        settings=settings(
            max_examples=examples * (5 if kind == "memory" else 1),
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
        ),
    )
