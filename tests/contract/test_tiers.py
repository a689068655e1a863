"""What every tier promises, as `cachewright.tiers.base` words it. Races are in `test_tier_races`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cachewright.core.header import FORMAT_VERSION
from cachewright.core.slot import Blocked, Slot, Take, begin_load, renew_lease
from cachewright.tiers.base import Swap, Swapped

HOSTILE = [
    "with space",
    "line\r\nflush_all",
    "nul\0inside",
    "del\x7f",
    "é",
    "日本語",
    "x" * 251,
    "é" * 30_000,
    "{braces}",
    "a{b}c{d}",
    "100%",
    "%s%d",
    "*?[a-z]",
    "k:t:h",
    ":",
    " ",
]


def poll_until(condition: Callable[[], bool], seconds: float = 15.0) -> float:
    """Seconds until ``condition`` held."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "it never came true"
        time.sleep(0.01)
    return time.monotonic() - started


# Reading


def test_nothing_stands(kit: Any) -> None:
    assert kit.read([]) == ({}, {})
    assert kit.read(["a", "b"], ["t"]) == ({}, {})
    assert kit.drop([]) == []
    assert kit.swap([]) == []
    assert kit.store({}) == []
    assert kit.set_generations({}, only_missing=False) == {}


def test_a_slot_comes_back_as_it_was_put(kit: Any) -> None:
    entry = kit.entry(b"payload", tags=(("users", kit.new_id()), ("é", kit.new_id())))
    if kit.kind == "memory":  # memory compares generations where it stores
        kit.set_generations(dict(entry.tags), only_missing=False)
    states = {
        "entry": Slot(kit.new_id(), entry),
        "forever": kit.stored(life=None),
        "empty": kit.stored(b""),
        "lease": kit.leased(),
        "both": kit.leased(kit.entry()),
        "failed": msgspec.structs.replace(kit.stored(), retry_at=kit.now() + 1000),
        "intent": kit.intended(),
        "intents": kit.intended(5, contended=True),
    }
    assert kit.swap([Swap(key, None, slot) for key, slot in states.items()]) == [Swapped(True)] * len(states)
    found, _ = kit.read(list(states))
    for key, slot in states.items():
        assert found[key].header == slot.header, key
        assert found[key].payload == slot.payload, key
        assert (found[key].lease, found[key].intents, found[key].contended) == (
            slot.lease,
            slot.intents,
            slot.contended,
        )


def test_keys_and_tags_of_one_name_are_two_things(kit: Any) -> None:
    kit.put("same", kit.stored(b"slot"))
    mark = kit.new_id()
    kit.set_generations({"same": mark}, only_missing=False)
    slots, generations = kit.read(["same", "absent"], ["same", "missing"])
    assert {key: slot.payload for key, slot in slots.items()} == {"same": b"slot"}
    assert {tag: generation.mark for tag, generation in generations.items()} == {"same": mark}
    assert kit.drop(["same"]) == [True]
    assert kit.read([], ["same"])[1]["same"].mark == mark


def test_what_one_writes_another_process_reads(kit: Any) -> None:
    if kit.kind == "memory":
        pytest.skip("process memory belongs to one cache")
    other = kit.another()
    slot = kit.put("k", kit.stored())
    seen = kit.on(other, "read", ["k"])[0]["k"]
    assert seen.header == slot.header
    assert kit.on(other, "swap", [Swap("k", seen, None)]) == [Swapped(True)]
    assert kit.slot("k") is None


# Swap


def test_swap_needs_exactly_what_stands(kit: Any) -> None:
    first, second, third = kit.stored(b"1"), kit.stored(b"2"), kit.stored(b"3")
    assert kit.swap([Swap("k", None, first)]) == [Swapped(True)]
    refused = kit.swap([Swap("k", None, second)])[0]
    assert not refused.done
    assert (refused.current.header, refused.current.payload) == (first.header, b"1")
    assert kit.swap([Swap("k", first, second)]) == [Swapped(True)]
    refused = kit.swap([Swap("k", first, third)])[0]
    assert not refused.done
    assert refused.current.payload == b"2"
    assert kit.swap([Swap("k", refused.current, third)]) == [Swapped(True)], "a refusal can be swapped from"
    assert kit.slot("k").payload == b"3"


def test_absent_is_a_header_too(kit: Any) -> None:
    gone = kit.put("k", kit.stored())
    assert kit.drop(["k"]) == [True]
    assert kit.swap([Swap("k", gone, kit.stored(b"back"))]) == [Swapped(False, None)]
    assert kit.slot("k") is None
    assert kit.swap([Swap("k", None, None)]) == [Swapped(True)]
    slot = kit.put("k", kit.stored())
    assert not kit.swap([Swap("k", None, None)])[0].done
    assert kit.swap([Swap("k", slot, None)]) == [Swapped(True)]
    assert kit.slot("k") is None


def test_the_nonce_alone_tells_two_states_apart(kit: Any) -> None:
    """Without it two changes in one millisecond are one change."""
    entry = kit.entry(b"same")
    first, second = Slot(bytes(7) + b"\1", entry), Slot(bytes(7) + b"\2", entry)
    kit.put("k", first)
    assert not kit.swap([Swap("k", second, kit.stored(b"new"))])[0].done
    assert kit.swap([Swap("k", first, second)])[0].done
    assert not kit.swap([Swap("k", first, kit.stored(b"new"))])[0].done


def test_a_longer_header_is_another_header(kit: Any) -> None:
    one = kit.intended(1)
    two = Slot(one.nonce, intents=(*one.intents, kit.intent()))
    kit.put("k", two)
    if kit.kind != "memory":  # memory compares nonces, and no two headers share one
        assert not kit.swap([Swap("k", one, None)])[0].done
    assert kit.slot("k").intents == two.intents


@pytest.mark.parametrize("size", [5, 40 * 1024, 200_000])
def test_a_change_of_the_header_keeps_the_payload(kit: Any, size: int) -> None:
    before = kit.put("k", kit.leased(kit.entry(b"x" * size)))
    after = renew_lease(before, before.lease.token, now=kit.now() + 5000, nonce=kit.new_id())
    assert after is not None
    assert kit.swap([Swap("k", before, after)]) == [Swapped(True)]
    found = kit.slot("k")
    assert found.header == after.header
    assert found.payload == b"x" * size
    assert not kit.swap([Swap("k", before, None)])[0].done
    # The one that was read serves as well as the one that was written.
    again = renew_lease(found, before.lease.token, now=kit.now() + 9000, nonce=kit.new_id())
    assert kit.swap([Swap("k", found, again)]) == [Swapped(True)]
    assert kit.slot("k").payload == b"x" * size


def test_each_swap_of_a_call_stands_for_itself(kit: Any) -> None:
    standing = kit.put("b", kit.stored(b"old"))
    slots = [kit.stored(b"%d" % n) for n in range(4)]
    done = kit.swap(
        [
            Swap("a", None, slots[0]),
            Swap("b", None, slots[1]),
            Swap("c", standing, slots[2]),
            Swap("d", None, slots[3]),
        ]
    )
    assert [one.done for one in done] == [True, False, False, True]
    assert done[1].current.payload == b"old"
    assert done[2].current is None
    assert set(kit.read(["a", "b", "c", "d"])[0]) == {"a", "b", "d"}


def test_a_lost_lease_can_neither_be_committed_nor_renewed(kit: Any) -> None:
    lease = kit.put("k", kit.leased())
    kit.drop(["k"])
    renewed = renew_lease(lease, lease.lease.token, now=kit.now(), nonce=kit.new_id())
    assert kit.swap([Swap("k", lease, renewed)]) == [Swapped(False, None)]
    assert kit.swap([Swap("k", lease, kit.stored(b"old"))]) == [Swapped(False, None)]
    assert kit.slot("k") is None


# Drop and store


def test_drop_takes_entry_and_lease(kit: Any) -> None:
    kit.put("entry", kit.stored())
    kit.put("lease", kit.leased())
    kit.put("both", kit.leased(kit.entry()))
    kit.put("kept", kit.stored())
    assert kit.drop(["entry", "absent", "lease", "both"]) == [True, False, False, True]
    assert set(kit.read(["entry", "absent", "lease", "both", "kept"])[0]) == {"kept"}


def test_drop_leaves_intents_contended(kit: Any) -> None:
    """A write under way must learn that the key changed, and loads must go on storing nothing."""
    before = kit.put("k", kit.intended(3))
    assert kit.drop(["k"]) == [False]
    after = kit.slot("k")
    assert after.intents == before.intents
    assert after.contended
    assert after.entry is None
    assert after.lease is None
    assert after.nonce != before.nonce
    assert not kit.swap([Swap("k", before, None)])[0].done


def test_store_replaces_whatever_is_no_intent(kit: Any) -> None:
    kit.put("entry", kit.stored(b"old"))
    kit.put("lease", kit.leased())
    new = {key: kit.stored(key.encode()) for key in ("absent", "entry", "lease")}
    assert kit.store(new) == [True] * 3
    found, _ = kit.read(list(new))
    for key in new:
        assert found[key].payload == key.encode()
        assert found[key].lease is None


def test_store_beside_intents_is_a_drop(kit: Any) -> None:
    before = kit.put("k", kit.intended(2))
    assert kit.store({"other": kit.stored(), "k": kit.stored(b"set")}) == [True, False]
    after = kit.slot("k")
    assert after.intents == before.intents
    assert after.contended
    assert after.entry is None
    assert kit.slot("other").payload == b"value"


# Life


def quick(kit: Any) -> None:
    """Memcached counts whole seconds, whatever the face and the number of servers: wait for one of them only."""
    if kit.kind == "memcached3" or (kit.kind == "memcached" and kit.face == "asyncio"):
        pytest.skip("the one-server tier on the blocking face has waited for it")


def test_a_slot_ends_with_its_life_and_not_before(kit: Any) -> None:
    quick(kit)
    lives = {"entry": kit.stored(life=300), "lease": kit.leased(life=300), "intent": kit.intended(life=300)}
    lives["beside"] = kit.leased(kit.entry(life=10), life=300)
    started = time.monotonic()
    kit.swap([Swap(key, None, slot) for key, slot in lives.items()])
    kit.put("long", kit.stored(life=60_000))
    kit.put("forever", kit.stored(life=None))
    found = set(kit.read(list(lives))[0])
    if time.monotonic() - started < 0.25:
        assert found == set(lives), "none may go early"
    poll_until(lambda: kit.read(list(lives))[0] == {})
    assert time.monotonic() - started > 0.28
    assert set(kit.read(["long", "forever"])[0]) == {"long", "forever"}


def test_a_swap_sets_the_life_anew(kit: Any) -> None:
    quick(kit)
    short = kit.put("longer", kit.leased(life=400))
    longer = renew_lease(short, short.lease.token, now=kit.now() + 20_000, nonce=kit.new_id())
    kit.swap([Swap("longer", short, longer)])
    beside = kit.put("header", kit.leased(kit.entry(life=400), life=300))
    kit.swap(
        [Swap("header", beside, msgspec.structs.replace(beside, nonce=kit.new_id(), lease=kit.lease(20_000)))]
    )
    kit.put("shorter", kit.stored(life=None))
    kit.swap([Swap("shorter", kit.slot("shorter"), kit.stored(life=200))])
    kit.put("stored", kit.stored(life=None))
    kit.store({"stored": kit.stored(life=200)})
    poll_until(lambda: kit.read(["shorter", "stored"])[0] == {})
    time.sleep(0.3)  # well past the first life of the two others
    assert set(kit.read(["longer", "header"])[0]) == {"longer", "header"}


def test_spared_intents_keep_their_life(kit: Any) -> None:
    quick(kit)
    kit.put("k", kit.intended(life=300))
    kit.drop(["k"])
    assert kit.slot("k").intents
    poll_until(lambda: kit.slot("k") is None)


# Foreign and newer bytes

FOREIGN = [b"x", b"pickled by somebody else" * 20, bytes(200), b"\0\0\0\x58" + b"\1" * 40]


@pytest.mark.parametrize("raw", FOREIGN)
def test_foreign_bytes_are_a_miss_that_may_be_replaced(
    kit: Any, write_raw: Callable[[str, bytes], None], raw: bytes
) -> None:
    for key in ("load", "swap", "drop", "store", "changed"):
        write_raw(key, raw)
    slot = kit.slot("load")
    assert slot.foreign is not None
    assert slot.entry is None
    taken = begin_load(slot, now=kit.now(), lease_life=5000, nonce=kit.new_id(), token=kit.new_id())
    assert isinstance(taken, Take)
    assert kit.swap([Swap("load", slot, taken.slot)]) == [Swapped(True)]
    assert kit.slot("load").lease is not None
    refused = kit.swap([Swap("swap", None, kit.stored())])[0]
    assert refused.current.foreign is not None
    assert kit.swap([Swap("swap", refused.current, kit.stored())])[0].done
    changed = kit.slot("changed")
    write_raw("changed", raw + b"!")
    assert not kit.swap([Swap("changed", changed, None)])[0].done, "all foreign bytes are compared"
    assert kit.drop(["drop"]) == [False]
    assert kit.slot("drop") is None
    assert kit.store({"store": kit.stored(b"mine")}) == [True]
    assert kit.slot("store").payload == b"mine"


def test_a_newer_format_is_left_alone_by_loads_and_ended_by_drops(
    kit: Any, write_raw: Callable[[str, bytes], None]
) -> None:
    header = bytearray(kit.stored(b"").header)
    header[4] = FORMAT_VERSION + 1
    for key in ("k", "store"):
        write_raw(key, bytes(header) + b"payload of the future")
    slot = kit.slot("k")
    assert slot.newer
    verdict = begin_load(slot, now=kit.now(), lease_life=5000, nonce=kit.new_id(), token=kit.new_id())
    assert isinstance(verdict, Blocked)
    assert not kit.swap([Swap("k", None, kit.leased())])[0].done
    kit.drop(["k"])
    assert kit.slot("k") is None
    assert kit.store({"store": kit.stored(b"mine")}) == [True]
    assert kit.slot("store").payload == b"mine"


# Sizes and keys


@pytest.mark.parametrize("size", [40 * 1024, 1_000_000])
def test_large_values(kit: Any, size: int) -> None:
    first, second = kit.stored(b"a" * size), kit.stored(b"b" * size)
    kit.put("k", kit.leased())
    assert kit.swap([Swap("k", kit.slot("k"), first)]) == [Swapped(True)]
    assert kit.slot("k").payload == b"a" * size
    refused = kit.swap([Swap("k", None, second)])[0]
    assert refused.current.payload == b"a" * size
    assert kit.store({"k": second}) == [True]
    assert kit.slot("k").payload == b"b" * size
    assert kit.swap([Swap("k", second, kit.intended())]) == [Swapped(True)]
    assert kit.slot("k").payload == b""
    assert kit.drop(["k"]) == [False]
    assert kit.slot("k").contended


def test_many_keys_in_one_call(kit: Any) -> None:
    names = [f"k{n}" for n in range(600)]
    tags = [f"t{n}" for n in range(50)]
    marks = {tag: kit.new_id() for tag in tags}
    swapped = kit.swap(
        [Swap(key, None, kit.stored(key.encode() * (n % 40 + 1))) for n, key in enumerate(names)]
    )
    assert all(one.done for one in swapped)
    kit.set_generations(marks, only_missing=False)
    slots, generations = kit.read(names[::-1], tags)
    assert {key: slot.payload for key, slot in slots.items()} == {
        key: key.encode() * (n % 40 + 1) for n, key in enumerate(names)
    }
    assert {tag: generation.mark for tag, generation in generations.items()} == marks
    assert kit.store({key: kit.stored(b"new " + key.encode()) for key in names[::2]}) == [True] * 300
    assert kit.drop([*names[1::2], "absent"]) == [True] * 300 + [False]
    assert {key: slot.payload for key, slot in kit.read(names)[0].items()} == {
        key: b"new " + key.encode() for key in names[::2]
    }


def test_hostile_keys_and_tags_are_like_any_other(kit: Any) -> None:
    assert all(one.done for one in kit.swap([Swap(key, None, kit.stored(key.encode())) for key in HOSTILE]))
    tags = [tag for tag in HOSTILE if len(tag.encode()) <= 1024]
    marks = {tag: kit.new_id() for tag in tags}
    kit.set_generations(marks, only_missing=False)
    slots, generations = kit.read(HOSTILE, tags)
    assert {key: slot.payload for key, slot in slots.items()} == {key: key.encode() for key in HOSTILE}
    assert {tag: generation.mark for tag, generation in generations.items()} == marks
    assert kit.store({key: kit.stored(b"2") for key in HOSTILE}) == [True] * len(HOSTILE)
    for key in HOSTILE:
        seen = kit.slot(key)
        assert kit.swap([Swap(key, seen, kit.stored(b"3"))]) == [Swapped(True)], key
    assert kit.drop(HOSTILE) == [True] * len(HOSTILE)
    assert kit.read(HOSTILE)[0] == {}


# Generations


def test_generations(kit: Any) -> None:
    one, two, three = kit.new_id(), kit.new_id(), kit.new_id()
    before = kit.now()
    standing = kit.set_generations({"a": one, "b": one}, only_missing=True)
    assert {tag: g.mark for tag, g in standing.items()} == {"a": one, "b": one}
    assert abs(standing["a"].changed - before) < 10_000
    standing = kit.set_generations({"a": two, "c": two}, only_missing=True)
    assert {tag: g.mark for tag, g in standing.items()} == {"a": one, "c": two}
    standing = kit.set_generations({"a": three, "d": three}, only_missing=False)
    assert {tag: g.mark for tag, g in standing.items()} == {"a": three, "d": three}
    _, found = kit.read([], ["a", "b", "c", "d", "e"])
    assert {tag: g.mark for tag, g in found.items()} == {"a": three, "b": one, "c": two, "d": three}
    assert found["a"] == standing["a"]


def test_changed_tells_when_a_generation_was_set(kit: Any) -> None:
    first = kit.set_generations({"t": kit.new_id()}, only_missing=False)["t"]
    time.sleep(0.02)
    kept = kit.set_generations({"t": kit.new_id()}, only_missing=True)["t"]
    assert kept == first
    later = kit.set_generations({"t": kit.new_id()}, only_missing=False)["t"]
    assert 15 <= later.changed - first.changed < 10_000


def test_of_racing_creators_of_a_generation_all_get_one(kit: Any) -> None:
    marks = [kit.new_id() for _ in range(8)]

    def create(mark: bytes) -> Callable[..., Any]:
        return lambda rt: kit.tier.set_generations(rt, {"t": mark}, only_missing=True)

    standing = {result["t"].mark for result in kit.at_once([create(mark) for mark in marks])}
    assert standing == {kit.read([], ["t"])[1]["t"].mark}


# Clear, and the ends of a tier


def test_clear_takes_every_slot_of_its_namespace_and_nothing_else(kit: Any) -> None:
    neighbour = kit.another(f"{kit.tier.namespace}-2") if kit.kind != "memory" else None
    mark = kit.new_id()
    kit.swap([Swap(f"k{n}", None, kit.stored()) for n in range(300)])
    kit.put("lease", kit.leased())
    intended = kit.put("intent", kit.intended())
    kit.set_generations({"t": mark}, only_missing=False)
    if neighbour is not None:
        kit.on(neighbour, "swap", [Swap("k1", None, kit.stored(b"theirs"))])
    kit.clear()
    slots, generations = kit.read([*(f"k{n}" for n in range(300)), "lease", "intent"], ["t"])
    assert generations["t"].mark == mark
    if neighbour is not None:
        assert kit.on(neighbour, "read", ["k1"])[0]["k1"].payload == b"theirs"
    if not kit.tier.scannable:
        assert len(slots) == 302  # the core's tag of the namespace ends them
        return
    assert set(slots) == {"intent"}
    assert slots["intent"].contended
    assert slots["intent"].intents == intended.intents


def test_close_may_come_twice_and_a_later_call_opens_anew(kit: Any) -> None:
    kit.connect()
    kit.put("k", kit.stored())
    kit.tier.close()
    kit.tier.close()
    found = kit.slot("k")
    assert (found is None) == (kit.kind == "memory")
    kit.aclose()
    kit.put("k2", kit.stored())


def test_facts_hold_no_secrets(kit: Any) -> None:
    kit.connect()
    text = repr((kit.tier.describe(), kit.tier.name, kit.tier))
    url = getattr(kit.tier, "url", None)
    if url and "@" in url:
        assert url.rpartition("@")[0].rpartition(":")[2] not in text
    assert isinstance(kit.tier.describe(), dict)
    assert isinstance(kit.tier.kind, str)
