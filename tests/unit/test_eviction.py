"""S3-FIFO: who stays, who goes, and that its accounts agree whatever happens."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from cachewright.tiers.eviction import MAX_MARK, S3FIFO


class Entry:
    def __init__(self, key):
        self.key = key
        self.mark = 0
        self.home = 0

    def __repr__(self):
        return self.key


def hit(entry):
    if entry.mark < MAX_MARK:
        entry.mark += 1


def run(policy, keys):
    """The policy driven as the memory tier drives it; returns the hits and what is held."""
    table: dict[str, Entry] = {}
    hits = 0
    for key in keys:
        entry = table.get(key)
        if entry is not None:
            hits += 1
            hit(entry)
            continue
        entry = table[key] = Entry(key)
        for gone in policy.admit(entry):
            del table[gone.key]
        policy.check()
        assert {e.key for e in policy} == table.keys()
    return hits, table


def test_a_scan_does_not_push_out_what_is_used():
    policy: S3FIFO[Entry] = S3FIFO(100)
    loved = [f"loved{n}" for n in range(20)]
    _, table = run(policy, loved * 3 + [f"scan{n}" for n in range(10_000)])
    assert all(key in table for key in loved)


def test_one_who_comes_back_soon_after_leaving_is_admitted_to_main():
    policy: S3FIFO[Entry] = S3FIFO(10)
    for n in range(11):
        policy.admit(Entry(f"k{n}"))
    assert "k0" not in {e.key for e in policy}
    back = Entry("k0")
    policy.admit(back)
    assert list(policy)[-1] is back, "main is iterated last"
    for n in range(100, 140):
        policy.admit(Entry(f"k{n}"))
    assert back in list(policy), "newcomers pass through the small queue without touching main"


def test_an_unused_main_entry_leaves_and_a_used_one_gets_another_turn():
    policy: S3FIFO[Entry] = S3FIFO(10)
    entries = [Entry(f"k{n}") for n in range(10)]
    for entry in entries:
        policy.admit(entry)
        entry.mark = 2
    assert policy.admit(Entry("x")) == entries[:1], "all ten moved to main, whose oldest then had to go"
    assert [e.key for e in policy.admit(Entry("y"))] == ["x"]
    assert [e.key for e in policy.admit(Entry("x"))] == ["y"], "back through its ghost, into main"
    hit(entries[1])
    assert policy.admit(Entry("y")) == entries[2:3]
    assert entries[1] in list(policy)
    assert entries[1].mark == 0, "its turn cost it the mark"


def test_expired_entries_leave_whatever_their_marks():
    over: set[str] = set()
    policy: S3FIFO[Entry] = S3FIFO(10, lambda e: e.key in over)
    entries = [Entry(f"k{n}") for n in range(10)]
    for entry in entries:
        policy.admit(entry)
        entry.mark = MAX_MARK
    over.update(e.key for e in entries[:5])
    gone = [key for n in range(5) for key in policy.admit(Entry(f"new{n}"))]
    assert gone == entries[:5]


def test_a_replaced_entry_keeps_its_turn_and_its_standing():
    policy: S3FIFO[Entry] = S3FIFO(10)
    entries = [Entry(f"k{n}") for n in range(10)]
    for entry in entries:
        policy.admit(entry)
    entries[0].mark = 1
    again = Entry("k0")
    policy.replace(entries[0], again)
    assert again.mark == 2
    assert next(iter(policy)) is again
    policy.remove(entries[0])
    assert again in list(policy), "the old one is not held any more, so removing it is harmless"
    policy.check()


def test_room_for_one():
    policy: S3FIFO[Entry] = S3FIFO(1)
    first, second = Entry("a"), Entry("b")
    assert policy.admit(first) == []
    first.mark = 3
    assert policy.admit(second) == [first], "with room for one, even the marked must go"
    assert list(policy) == [second]


@given(st.integers(1, 30), st.lists(st.tuples(st.sampled_from("gggrx"), st.integers(0, 40)), max_size=300))
def test_accounts_agree_after_anything(capacity, steps):
    policy: S3FIFO[Entry] = S3FIFO(capacity)
    table: dict[str, Entry] = {}
    for what, n in steps:
        key = f"k{n}"
        entry = table.get(key)
        if what == "g" and entry is not None:
            hit(entry)
        elif what == "g":
            entry = table[key] = Entry(key)
            for gone in policy.admit(entry):
                assert table.pop(gone.key) is gone
        elif entry is not None and what == "x":
            policy.remove(table.pop(key))
        elif entry is not None:
            table[key] = Entry(key)
            policy.replace(entry, table[key])
        policy.check()
        assert {e.key: e for e in policy} == table


def test_it_beats_lru_on_skewed_traffic_with_scans():
    chance = random.Random(7)
    keys, scan = [], 0
    for _ in range(300):
        keys += [f"z{int(chance.paretovariate(0.9))}" for _ in range(100)]
        keys += [f"scan{scan + n}" for n in range(60)]
        scan += 60
    hits, _ = run(S3FIFO(50), keys)
    order: dict[str, None] = {}
    lru = 0
    for key in keys:
        if key in order:
            lru += 1
            del order[key]
        elif len(order) >= 50:
            del order[next(iter(order))]
        order[key] = None
    assert hits > lru * 1.03
