"""The Memcached tier's operations, key by key, on real servers; sizes, keys, lives and options."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from cachewright.core.slot import Slot
from cachewright.errors import ConfigurationError, TierProtocolError
from cachewright.runtime.base import drive
from cachewright.runtime.process import wait_until
from cachewright.runtime.threads import THREADS
from cachewright.tiers.base import Swap, Swapped
from cachewright.tiers.memcached import MemcachedTier
from cachewright.tiers.memcached_steps import Seen
from tests.slots import ID, intents, lease, now_ms, slot

# ------------------------------------------------------------------------------------------------- slots


def test_round_trip_and_refusals(tier: MemcachedTier, face: Any):
    first, second = slot(b"one"), slot(b"two")
    assert face(tier.read, ["a"]) == ({}, {})
    assert face(tier.swap, [Swap("a", None, first)]) == [Swapped(True)]
    got = face(tier.read, ["a", "b"])[0]
    assert list(got) == ["a"]
    assert got["a"].header == first.header
    assert got["a"].entry == first.entry
    assert isinstance(got["a"].handle, Seen)
    # absent is a header too
    refused = face(tier.swap, [Swap("a", None, second)])[0]
    assert not refused.done
    assert refused.current.header == first.header
    # a slot that never stood
    refused = face(tier.swap, [Swap("a", slot(b"one"), second)])[0]
    assert not refused.done
    assert refused.current.entry.payload == b"one"
    # without a handle, as from another process
    bare = Slot(first.nonce, entry=first.entry)
    assert face(tier.swap, [Swap("a", bare, second)])[0].done
    assert face(tier.swap, [Swap("a", second, None), Swap("b", None, None)]) == [Swapped(True), Swapped(True)]
    assert face(tier.read, ["a"])[0] == {}
    assert face(tier.swap, [Swap("a", second, None)]) == [Swapped(False, None)]


def test_a_handle_of_an_old_state_is_refused_with_what_stands(tier: MemcachedTier, face: Any):
    face(tier.swap, [Swap("a", None, slot(b"one"))])
    old = face(tier.read, ["a"])[0]["a"]
    newer = slot(b"two")
    assert face(tier.swap, [Swap("a", old, newer)])[0].done
    for new in (slot(b"three"), None):
        refused = face(tier.swap, [Swap("a", old, new)])[0]
        assert not refused.done
        assert refused.current.header == newer.header


def test_values_of_all_sizes_up_to_the_servers_limit(tier: MemcachedTier, face: Any):
    for size in (0, 1, 900, 1000, 65_536, 1_000_000):
        value = os.urandom(size)
        key = f"size{size}"
        assert face(tier.store, {key: slot(value)}) == [True]
        assert face(tier.read, [key])[0][key].payload == value


def test_the_largest_item_that_fits_is_taken_and_one_byte_more_is_not(tier: MemcachedTier, face: Any):
    probe = slot(b"")
    _, wire = tier.locate("edge")
    room = (1 << 20) - 59 - len(wire) - len(probe.header)
    assert face(tier.store, {"edge": slot(b"x" * room)}) == [True]
    assert len(face(tier.read, ["edge"])[0]["edge"].payload) == room
    with pytest.raises(TierProtocolError, match=r"item limit of 1,048,576.* -I"):
        face(tier.store, {"edge": slot(b"x" * (room + 1)), "beside": slot(b"kept")})
    # emptied, as after an eviction; the rest of the batch was carried out, the connection still serves
    assert face(tier.read, ["edge", "beside"])[0].keys() == {"beside"}
    assert tier.describe()["too_large"] == 1


def test_an_item_too_large_never_takes_other_peoples_intents_away(tier: MemcachedTier, face: Any):
    """The server deletes what stands when it refuses an item for its size, whatever CAS was named."""
    mine, theirs = lease(), intents()
    face(tier.swap, [Swap("a", None, mine)])
    held = face(tier.read, ["a"])[0]["a"]
    other = MemcachedTier(servers=[_address(tier)], namespace=tier.namespace, timeout=5)
    assert drive(other.swap(THREADS, [Swap("a", mine, theirs)]))[0].done
    other.close()
    with pytest.raises(TierProtocolError):
        face(tier.swap, [Swap("a", held, slot(b"x" * 2_000_000))])
    assert face(tier.read, ["a"])[0]["a"].intents == theirs.intents


def _address(tier: MemcachedTier) -> tuple[str, int]:
    host, port = tier.describe()["servers"][0].rsplit(":", 1)
    return host, int(port)


def test_a_servers_own_smaller_limit_is_found_out(own_memcached, make_tier, face: Any):
    tier = make_tier(own_memcached(arguments=("-I", "8k", "-o", "slab_chunk_max=4096")))
    assert face(tier.store, {"a": slot(b"x" * 7000)}) == [True]
    with pytest.raises(TierProtocolError, match="8,192"):
        face(tier.store, {"a": slot(b"x" * 9000)})


def test_a_server_without_cas_numbers_is_refused(own_memcached, make_tier, face: Any):
    tier = make_tier(own_memcached(arguments=("-C",)))
    face(tier.swap, [Swap("a", None, lease())])
    for call in (
        lambda: face(tier.read, ["a"]),
        lambda: face(tier.drop, ["a"]),
        lambda: face(tier.store, {"a": slot()}),
    ):
        with pytest.raises(TierProtocolError, match="without -C"):
            call()


@pytest.mark.parametrize(
    "key",
    [
        "a b",
        "a\r\nflush_all\r\n",
        "nul\0",
        "del\x7f",
        "tab\t",
        "é",
        "k" * 251,
        "k" * 65_536,
        "\u2028",
        "h:k",
        ":",
        "x" * 230,
    ],
    ids=lambda key: repr(key[:12]),
)
def test_hostile_keys(tier: MemcachedTier, face: Any, key: str):
    face(tier.store, {"bystander": slot(b"here")})
    assert face(tier.store, {key: slot(b"mine")}) == [True]
    got = face(tier.read, [key, "bystander"])[0]
    assert got[key].payload == b"mine"
    assert got["bystander"].payload == b"here"
    _, wire = tier.locate(key)
    assert len(wire) <= 250
    assert face(tier.drop, [key]) == [True]
    assert face(tier.read, [key])[0] == {}


def test_foreign_bytes_are_a_slot_that_may_be_replaced(tier: MemcachedTier, memcached_server, face: Any, raw):
    _, wire = tier.locate("a")
    raw(memcached_server.port, b"ms %b 5\r\nhello\r\n" % wire)
    seen = face(tier.read, ["a"])[0]["a"]
    assert seen.foreign == b"hello"
    assert face(tier.swap, [Swap("a", seen, slot(b"ours"))])[0].done
    raw(memcached_server.port, b"ms %b 5\r\nhello\r\n" % wire)
    face(tier.drop, ["a"])
    assert face(tier.read, ["a"])[0] == {}


def test_lives_end_at_the_server_too_but_never_early(tier: MemcachedTier, memcached_server, face: Any, raw):
    born = time.monotonic()
    face(tier.swap, [Swap("lease", None, lease(1000)), Swap("never", None, slot(life=None))])
    face(tier.swap, [Swap("long", None, slot(life=40 * 86_400_000))])
    expiry = {}
    for key in ("never", "long"):
        _, wire = tier.locate(key)
        expiry[key] = int(raw(memcached_server.port, b"mg %b t\r\n" % wire).split(b" t")[1])
    assert expiry["never"] == -1
    assert (
        40 * 86_400 - 1 <= expiry["long"] <= 40 * 86_400 + 30
    )  # a busy machine asks late; what counts is never early
    while time.monotonic() - born < 0.95:
        assert "lease" in face(tier.read, ["lease"])[0]
    assert wait_until(lambda: not face(tier.read, ["lease"])[0], 3)


# ------------------------------------------------------------------------------------- drop, store, generations


def test_drop(tier: MemcachedTier, face: Any):
    standing = intents(2)
    face(tier.store, {"entry": slot()})
    face(tier.swap, [Swap("lease", None, lease()), Swap("intents", None, standing)])
    assert face(tier.drop, ["entry", "lease", "intents", "absent"]) == [True, False, False, False]
    left = face(tier.read, ["entry", "lease", "intents", "absent"])[0]
    assert left.keys() == {"intents"}
    assert left["intents"].intents == standing.intents
    assert left["intents"].contended
    assert left["intents"].nonce != standing.nonce  # a commit of before must not pass


def test_store_gives_way_to_intents_and_keeps_the_callers_ids(tier: MemcachedTier, face: Any):
    standing, wanted = intents(), slot(b"new")
    face(tier.swap, [Swap("busy", None, standing), Swap("held", None, lease())])
    face(tier.store, {"old": slot(b"old")})
    assert face(tier.store, {"busy": wanted, "held": wanted, "old": wanted, "none": wanted}) == [
        False,
        True,
        True,
        True,
    ]
    got = face(tier.read, ["busy", "held", "old", "none"])[0]
    assert got["busy"].entry is None
    assert got["busy"].contended
    assert got["busy"].intents == standing.intents
    assert all(got[key].header == wanted.header for key in ("held", "old", "none"))


def test_an_entry_is_never_added_where_nothing_stands(tier: MemcachedTier):
    """A late add of an entry would undo a delete that was acknowledged in between; so the tier adds a lease first."""
    for operation in (
        lambda: tier.store(THREADS, {"a": slot()}),
        lambda: tier.swap(THREADS, [Swap("b", None, slot())]),
    ):
        sent: list[bytes] = []
        exchange = tier._blocking.exchange

        async def spy(batches, deadline, exchange=exchange, sent=sent):
            sent.extend(r.wire for requests in batches.values() for r in requests)
            return await exchange(batches, deadline)

        tier._blocking.exchange = spy  # type: ignore[method-assign]
        drive(operation())
        tier._blocking.exchange = exchange  # type: ignore[method-assign]
        stores = [wire for wire in sent if wire.startswith(b"ms ")]
        assert len(stores) == 2
        assert b" ME " in stores[0]
        assert b"value" not in stores[0]
        assert b" C" in stores[1]
        assert b" ME " not in stores[1]


def test_generations(tier: MemcachedTier, memcached_server, face: Any, raw):
    one, two = ID(), ID()
    assert face(tier.read, [], ["users"])[1] == {}
    first = face(tier.set_generations, {"users": one}, only_missing=True)
    assert first["users"].mark == one
    assert abs(first["users"].changed - now_ms()) < 5000
    assert face(tier.set_generations, {"users": two}, only_missing=True) == first
    assert face(tier.read, ["users"], ["users"]) == ({}, first)
    later = face(tier.set_generations, {"users": two}, only_missing=False)
    assert later["users"].mark == two
    # damaged is missing
    wire = tier._place("t", "users")[0]
    raw(memcached_server.port, b"ms %b 3\r\nbad\r\n" % wire)
    assert face(tier.read, [], ["users"])[1] == {}
    assert face(tier.set_generations, {"users": one}, only_missing=True)["users"].mark == one
    assert face(tier.read, [], ["users"])[1]["users"].mark == one
    assert tier.server_time is False


def test_round_trips(tier: MemcachedTier, face: Any):
    """A swap of what was just read or written over a standing connection is one trip."""
    driver = tier._driver(face.rt)
    trips = 0
    exchange = driver.exchange

    async def count(batches, deadline):
        nonlocal trips
        trips += 1
        return await exchange(batches, deadline)

    driver.exchange = count  # type: ignore[method-assign]

    def spent(*call: Any) -> int:
        nonlocal trips
        trips = 0
        face(*call)
        return trips

    held, stored = lease(), slot()
    assert spent(tier.read, ["a", "b"], ["t"]) == 1
    assert spent(tier.swap, [Swap("a", None, held), Swap("b", None, lease())]) == 1
    assert spent(tier.swap, [Swap("a", held, stored)]) == 1
    seen = face(tier.read, ["a"])[0]["a"]
    assert spent(tier.swap, [Swap("a", seen, slot())]) == 1
    assert spent(tier.swap, [Swap("a", seen, slot())]) == 2  # refused, and what stands
    assert spent(tier.drop, ["a", "b", "c"]) == 2
    assert spent(tier.store, {f"n{n}": slot() for n in range(10)}) == 3


# ---------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"servers": []}, "at least one"),
        ({"servers": "127.0.0.1:11211"}, "give a list"),
        ({"servers": ["127.0.0.1:11211"]}, "absolute path"),
        ({"servers": [("h", 0)]}, "1 to 65535"),
        ({"servers": [("h", "11211")]}, "1 to 65535"),
        ({"servers": [("x" * 80, 1)]}, "host name"),
        ({"servers": [("h", 1), ("h", 1)]}, "twice"),
        ({"timeout": 0}, "above 0"),
        ({"timeout": float("nan")}, "above 0"),
        ({"timeout": True}, "above 0"),
        ({"namespace": "a:b"}, "namespace"),
    ],
)
def test_wrong_options(options: dict[str, Any], says: str):
    with pytest.raises(ConfigurationError, match=says):
        MemcachedTier(**{"servers": [("h", 1)], "namespace": "n", **options})


def test_repr_and_describe():
    tier = MemcachedTier(servers=[("::1", 11211), ("h", 2)], namespace="n")
    assert repr(tier) == "<MemcachedTier 'memcached' of [::1]:11211, h:2, namespace 'n'>"
    assert tier.describe()["servers"] == ["[::1]:11211", "h:2"]
    assert (tier.kind, tier.shared, tier.scannable) == ("memcached", True, False)
