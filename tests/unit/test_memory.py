"""The memory tier: both of its roles, the reader's protocol, clocks, copies, forks."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from typing import Any

import pytest

from cachewright.core.slot import NEVER, Intent, Lease, Slot, StoredEntry
from cachewright.errors import ConfigurationError, EncodeError
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS
from cachewright.tiers.base import Swap
from cachewright.tiers.memory import DEAD, TAG_KILLS, MemoryTier, Node


class Clock:
    """Both clocks, moved by hand."""

    def __init__(self):
        self.mono = 100.0
        self.wall = 1_000_000.0

    def forward(self, seconds):
        self.mono += seconds
        self.wall += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tier(clock):
    tier = MemoryTier(namespace="t", max_entries=100, monotonic=lambda: clock.mono, now=lambda: clock.wall)
    yield tier
    tier.check()


def nonce():
    return os.urandom(8)


def entry(clock, value, ttl=10.0, stale=0.0, tags=()):
    now = int(clock.wall * 1000)
    fresh = NEVER if ttl is None else now + int(ttl * 1000)
    return StoredEntry(value, now, fresh, fresh if ttl is None else fresh + int(stale * 1000), 0, tags=tags)


def put(tier, clock, key, value, **how):
    slot = Slot(nonce(), entry=entry(clock, value, **how))
    assert drive(tier.store(THREADS, {key: slot})) == [True]
    return slot


def read(tier, key):
    return drive(tier.read(THREADS, [key]))[0].get(key)


def swap(tier, key, expected, new):
    return drive(tier.swap(THREADS, [Swap(key, expected, new)]))[0]


def hit(tier, key, clock):
    """A hit as the reader's protocol has it; DEAD where there is none."""
    node = tier.table.get(key)
    if node is not None:
        value = node.value
        if node.deadline > clock.mono:
            return value
    return DEAD


# ------------------------------------------------------------------------------------------- as the authority


def test_swap_succeeds_only_from_the_slot_that_stands(tier, clock):
    first = Slot(nonce(), lease=Lease(nonce(), int(clock.wall * 1000) + 5000, 5000))
    assert swap(tier, "k", None, first).done
    refused = swap(tier, "k", None, Slot(nonce(), entry=entry(clock, 1)))
    assert not refused.done
    assert refused.current == first
    assert swap(tier, "k", first, Slot(nonce(), entry=entry(clock, 1))).done
    assert not swap(tier, "k", first, None).done
    assert hit(tier, "k", clock) == 1
    assert swap(tier, "k", read(tier, "k"), None).done
    assert read(tier, "k") is None


def test_many_threads_swapping_one_slot_have_one_winner(tier, clock):
    rounds, threads = 200, 8
    barrier = threading.Barrier(threads)
    wins = [0] * rounds

    def race(who):
        for n in range(rounds):
            key = f"k{n % 10}"
            barrier.wait(10)
            seen = read(tier, key)
            barrier.wait(10)
            if swap(tier, key, seen, Slot(nonce(), entry=entry(clock, who))).done:
                wins[n] += 1

    workers = [threading.Thread(target=race, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert wins == [1] * rounds


def test_a_lease_beside_a_fresh_entry_leaves_its_hits_alone(tier, clock):
    put(tier, clock, "k", "v")
    node = tier.table["k"]
    seen = read(tier, "k")
    token = nonce()
    leased = Slot(nonce(), entry=seen.entry, lease=Lease(token, int(clock.wall * 1000) + 5000, 5000))
    assert swap(tier, "k", seen, leased).done
    assert tier.table["k"] is node
    assert hit(tier, "k", clock) == "v"
    assert read(tier, "k").lease.token == token


def test_a_lease_outlives_the_eviction_of_the_entry_beside_it(clock):
    tier = MemoryTier(namespace="t", max_entries=1, monotonic=lambda: clock.mono, now=lambda: clock.wall)
    put(tier, clock, "k", "v", ttl=1, stale=100)
    seen = read(tier, "k")
    leased = Slot(nonce(), entry=seen.entry, lease=Lease(nonce(), int(clock.wall * 1000) + 5000, 5000))
    assert swap(tier, "k", seen, leased).done
    put(tier, clock, "other", 1)
    left = read(tier, "k")
    assert left.entry is None
    assert left.lease == leased.lease
    assert left.nonce != leased.nonce
    clock.forward(6)
    assert read(tier, "k") is None
    tier.check()


def test_control_slots_vanish_at_their_deadline_and_are_swept(tier, clock):
    for n in range(500):
        lease = Lease(nonce(), int(clock.wall * 1000) + 1000, 1000)
        assert swap(tier, f"k{n}", None, Slot(nonce(), lease=lease)).done
        clock.forward(0.1)
    assert read(tier, "k0") is None
    assert read(tier, "k499") is not None
    assert len(tier._content.controls) < 50


def test_drop_keeps_intents_contended_and_clear_does_too(tier, clock):
    intent = Intent(nonce(), int(clock.wall * 1000) + 30_000)
    assert swap(tier, "k", None, Slot(nonce(), intents=(intent,))).done
    put(tier, clock, "e", 1)
    assert drive(tier.drop(THREADS, ["k", "e", "nothing"])) == [False, True, False]
    assert read(tier, "k").intents == (intent,)
    assert read(tier, "k").contended
    assert swap(tier, "k", read(tier, "k"), Slot(nonce(), intents=(intent,))).done
    put(tier, clock, "e", 1)
    lease = Slot(nonce(), lease=Lease(nonce(), int(clock.wall * 1000) + 5000, 5000))
    assert swap(tier, "l", None, lease).done
    drive(tier.clear(THREADS))
    assert read(tier, "e") is None
    assert read(tier, "l") is None
    assert read(tier, "k").contended


def test_store_beside_an_intent_acts_as_a_drop(tier, clock):
    intent = Intent(nonce(), int(clock.wall * 1000) + 30_000)
    assert swap(tier, "k", None, Slot(nonce(), intents=(intent,))).done
    assert drive(tier.store(THREADS, {"k": Slot(nonce(), entry=entry(clock, 1))})) == [False]
    assert read(tier, "k").entry is None
    assert read(tier, "k").contended


def test_expiry_is_by_the_monotonic_clock_when_the_wall_clock_is_set_back(tier, clock):
    put(tier, clock, "k", "v", ttl=10, stale=10)
    clock.mono += 11
    clock.wall -= 3600
    assert hit(tier, "k", clock) is DEAD
    seen = read(tier, "k")
    assert seen.entry.payload == "v"
    assert seen.entry.fresh_until <= clock.wall * 1000, "stale by the clock that counts, so stale in the slot"
    clock.mono += 10
    assert read(tier, "k") is None


def test_a_stale_entry_is_kept_until_its_life_ends(tier, clock):
    put(tier, clock, "k", "v", ttl=1, stale=5)
    clock.forward(2)
    assert hit(tier, "k", clock) is DEAD
    assert read(tier, "k").entry.payload == "v"
    clock.forward(5)
    assert read(tier, "k") is None
    assert "k" not in tier.table


def test_expired_entries_are_reclaimed_by_later_insertions(tier, clock):
    for n in range(40):
        put(tier, clock, f"old{n}", n, ttl=1)
    clock.forward(2)
    for n in range(50):
        put(tier, clock, f"new{n}", n)
    assert not any(key.startswith("old") for key in tier.table)
    assert tier.describe()["evictions"] == 0


def test_generations_kill_what_was_born_under_others(tier, clock):
    old = drive(tier.set_generations(THREADS, {"t": nonce()}, only_missing=True))["t"]
    assert drive(tier.set_generations(THREADS, {"t": nonce()}, only_missing=True))["t"] == old
    put(tier, clock, "k", "v", tags=(("t", old.mark),))
    put(tier, clock, "other", "w")
    new = drive(tier.set_generations(THREADS, {"t": nonce()}, only_missing=False))["t"]
    assert new.mark != old.mark
    assert hit(tier, "k", clock) is DEAD
    assert hit(tier, "other", clock) == "w"
    assert drive(tier.read(THREADS, [], ["t", "unknown"]))[1] == {"t": new}


def test_an_entry_born_under_an_old_generation_is_never_a_hit(tier, clock):
    old = drive(tier.set_generations(THREADS, {"t": nonce()}, only_missing=True))["t"]
    lease = Slot(nonce(), lease=Lease(nonce(), int(clock.wall * 1000) + 5000, 5000))
    assert swap(tier, "k", None, lease).done
    drive(tier.set_generations(THREADS, {"t": nonce()}, only_missing=False))
    assert swap(tier, "k", lease, Slot(nonce(), entry=entry(clock, "v", tags=(("t", old.mark),)))).done
    assert hit(tier, "k", clock) is DEAD
    assert read(tier, "k").entry.tags == (("t", old.mark),), "who reads the slot compares generations"


def test_forgotten_generations_are_bounded(clock):
    tier = MemoryTier(namespace="t", max_entries=10, monotonic=lambda: clock.mono, now=lambda: clock.wall)
    mark = nonce()
    drive(tier.set_generations(THREADS, {"kept": mark}, only_missing=True))
    put(tier, clock, "k", 1, ttl=None, tags=(("kept", mark),))
    for n in range(6000):
        drive(tier.set_generations(THREADS, {f"t{n}": nonce()}, only_missing=False))
    assert len(tier._content.generations) <= 4100
    assert drive(tier.read(THREADS, [], ["kept"]))[1]["kept"].mark == mark
    tier.check()


# --------------------------------------------------------------------------------------- as a local copy above


def fill(tier, clock, ticket, value, *, fresh_for=10.0, tags=()):
    return tier.fill(ticket, value, fresh_for=fresh_for, tags=tags, entry=entry(clock, b"raw"))


def test_a_fill_is_a_hit_until_its_time_is_over(tier, clock):
    node = fill(tier, clock, tier.ticket("k"), "v", fresh_for=2)
    assert node is tier.table["k"]
    assert node.entry.payload == "v", "the raw payload is not kept beside the object"
    assert hit(tier, "k", clock) == "v"
    clock.forward(2.1)
    assert hit(tier, "k", clock) is DEAD
    assert fill(tier, clock, tier.ticket("k"), "v", fresh_for=0) is None
    assert fill(tier, clock, tier.ticket("e"), "v", fresh_for=None).deadline == float("inf")


@pytest.mark.parametrize("kill", ["kill", "kill_tags", "kill_all", "clear", "close", "after_fork", "drop"])
def test_a_fill_is_refused_after_a_kill_that_came_since_its_ticket(tier, clock, kill):
    ticket = tier.ticket("k")
    other = tier.ticket("other")
    if kill in ("kill", "drop"):
        tier.kill(["k"]) if kill == "kill" else drive(tier.drop(THREADS, ["k"]))
    elif kill == "kill_tags":
        tier.kill_tags(["t"])
    elif kill == "clear":
        drive(tier.clear(THREADS))
    else:
        getattr(tier, kill)()
    assert fill(tier, clock, ticket, "old", tags=("t",)) is None
    everything = kill in ("kill_all", "clear", "close", "after_fork")
    assert (fill(tier, clock, other, "w") is None) == everything
    assert fill(tier, clock, tier.ticket("k"), "new", tags=("t",)) is not None, "a new ticket is good"


def test_a_ticket_is_used_up(tier, clock):
    ticket = tier.ticket("k")
    assert fill(tier, clock, ticket, 1) is not None
    assert fill(tier, clock, ticket, 2) is None
    given_up = tier.ticket("k")
    tier.done(given_up)
    assert fill(tier, clock, given_up, 3) is None


def test_forgotten_tickets_leave_nothing(tier):
    for n in range(1000):
        tier.ticket(f"k{n}")
    gc.collect()
    assert len(tier._pending) == 0


def test_a_ticket_older_than_the_remembered_tag_kills_is_refused_for_tagged_fills(tier, clock):
    tagged, untagged, late = tier.ticket("a"), tier.ticket("b"), None
    for n in range(TAG_KILLS + 5):
        if n == TAG_KILLS:
            late = tier.ticket("c")
        tier.kill_tags([f"t{n}"])
    assert fill(tier, clock, tagged, 1, tags=("never killed",)) is None
    assert fill(tier, clock, untagged, 1) is not None
    assert fill(tier, clock, late, 1, tags=("never killed",)) is not None
    late = tier.ticket("d")
    tier.kill_tags(["hit"])
    assert fill(tier, clock, late, 1, tags=("hit",)) is None


def test_kill_tags_touches_its_own_entries_only(tier, clock):
    nodes = [fill(tier, clock, tier.ticket(f"k{n}"), n, tags=(f"t{n % 2}", "all")) for n in range(10)]
    tier.kill_tags(["t0"])
    assert sorted(tier.table) == [f"k{n}" for n in range(1, 10, 2)]
    assert [node.value is DEAD for node in nodes] == [True, False] * 5
    tier.kill_tags(["all"])
    assert not tier.table


# ---------------------------------------------------------------------------------------------- dying in place


class Thing:
    pass


@pytest.mark.parametrize("death", ["drop", "replace", "kill", "clear", "evict", "close"])
def test_an_index_that_keeps_a_dead_node_sees_it_dead_and_keeps_no_value_alive(clock, death):
    tier = MemoryTier(namespace="t", max_entries=1, monotonic=lambda: clock.mono, now=lambda: clock.wall)
    thing = Thing()
    put(tier, clock, "k", thing, ttl=None)
    node = tier.table["k"]
    alive = weakref.ref(thing)
    del thing
    if death == "drop":
        drive(tier.drop(THREADS, ["k"]))
    elif death == "replace":
        put(tier, clock, "k", 2)
    elif death == "kill":
        tier.kill(["k"])
    elif death == "clear":
        drive(tier.clear(THREADS))
    elif death == "close":
        tier.close()
    else:
        put(tier, clock, "other", 2)
    assert node.deadline == float("-inf")
    assert node.value is DEAD
    assert alive() is None
    tier.check()


@pytest.mark.parametrize("death", ["kill", "kill_all"])
def test_the_deadline_goes_before_the_value(tier, clock, death):
    # CPython 3.11 never switches threads between two plain stores, so the race below cannot show the wrong order.
    order = []

    class Watched(Node):
        def __setattr__(self, name, value):
            order.append(name)
            super().__setattr__(name, value)

    kept = entry(clock, 1)
    tier._content.insert(
        Watched("k", 1, float("inf"), float("inf"), (), kept, Slot(nonce(), entry=kept)), 0.0, 0
    )
    order.clear()
    tier.kill(["k"]) if death == "kill" else tier.kill_all()
    assert order.index("deadline") < order.index("value")


def test_a_reader_is_never_handed_a_dead_value():
    tier = MemoryTier(namespace="t", max_entries=4)
    stop, bad, hits = threading.Event(), [], [0]
    index: dict[str, Any] = {}

    def reader():
        while not stop.is_set():
            for node in list(index.values()):
                value = node.value
                if node.deadline > tier._monotonic():
                    hits[0] += 1
                    if value is DEAD:
                        bad.append(node)

    threads = [threading.Thread(target=reader) for _ in range(3)]
    for thread in threads:
        thread.start()
    wall = Clock()
    for n in range(5_000):
        key = f"k{n % 6}"
        node = tier.fill(tier.ticket(key), n, fresh_for=60, tags=(), entry=entry(wall, b""))
        index[key] = node
        if n % 3 == 0:
            tier.kill([key])
    stop.set()
    for thread in threads:
        thread.join(30)
    assert hits[0]
    assert not bad


def test_a_value_whose_end_calls_the_cache_does_not_deadlock(tier, clock):
    class Meddler:
        def __del__(self):
            tier.kill(["k", "elsewhere"])
            put(tier, clock, "epilogue", 1)

    put(tier, clock, "k", Meddler())
    done = threading.Thread(target=lambda: drive(tier.drop(THREADS, ["k"])), daemon=True)
    done.start()
    done.join(10)
    assert not done.is_alive()
    assert hit(tier, "epilogue", clock) == 1


# --------------------------------------------------------------------------------------------------- the rest


def test_copy_shares_no_object_with_its_users(clock):
    tier = MemoryTier(namespace="t", copy=True, monotonic=lambda: clock.mono, now=lambda: clock.wall)
    value = [1]
    put(tier, clock, "k", value)
    value.append(2)
    seen = read(tier, "k")
    seen.entry.payload.append(3)
    assert read(tier, "k").entry.payload == [1]
    leased = Slot(nonce(), entry=seen.entry, lease=Lease(nonce(), int(clock.wall * 1000) + 5000, 5000))
    assert swap(tier, "k", seen, leased).done
    assert read(tier, "k").entry.payload == [1], "only control state changed; the entry is the one that stood"
    with pytest.raises(EncodeError, match="copy=False"):
        put(tier, clock, "lock", threading.Lock())


def test_max_entries_must_make_sense():
    with pytest.raises(ConfigurationError, match="max_entries=0"):
        MemoryTier(namespace="t", max_entries=0)


def test_a_forked_child_keeps_entries_and_intents_but_no_leases(tier, clock):
    put(tier, clock, "k", "v", stale=10)
    seen = read(tier, "k")
    deadline = int(clock.wall * 1000) + 5000
    assert swap(tier, "k", seen, Slot(nonce(), entry=seen.entry, lease=Lease(nonce(), deadline, 5000))).done
    assert swap(tier, "l", None, Slot(nonce(), lease=Lease(nonce(), deadline, 5000))).done
    assert swap(tier, "i", None, Slot(nonce(), intents=(Intent(nonce(), deadline),))).done
    child = os.fork()
    if child == 0:
        code = 1
        try:
            tier.after_fork()
            tier.check()
            good = hit(tier, "k", clock) == "v" and read(tier, "k").lease is None
            code = 0 if good and read(tier, "l") is None and read(tier, "i").intents else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_child_forked_while_another_thread_held_the_lock_starts_empty(tier, clock):
    put(tier, clock, "k", "v")
    node = tier.table["k"]
    with tier._held:
        tier.after_fork()
    assert not tier.table
    assert node.value is DEAD
    put(tier, clock, "k", "w")
    assert hit(tier, "k", clock) == "w"


def test_close_lets_go_and_a_later_call_starts_empty(tier, clock):
    put(tier, clock, "k", "v")
    tier.close()
    tier.close()
    assert tier.describe()["entries"] == 0
    put(tier, clock, "k", "w")
    assert hit(tier, "k", clock) == "w"
