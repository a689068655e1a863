"""Several Memcached nodes, and nodes that die, hang and come back with their CAS numbers starting over."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cachewright.errors import TierTimeout, TierUnavailable
from cachewright.runtime.base import drive
from cachewright.runtime.process import wait_until
from cachewright.runtime.threads import THREADS
from cachewright.tiers.base import Swap
from tests.slots import ID, intents, lease, slot

# ------------------------------------------------------------------------------------------- several nodes


def test_keys_live_on_the_node_that_was_chosen(make_tier, memcached_servers, face: Any, raw):
    tier = make_tier(*memcached_servers)
    turned = make_tier(*memcached_servers[::-1])
    keys = [f"key{n}" for n in range(60)]
    assert face(tier.store, {key: slot(key.encode()) for key in keys}) == [True] * 60
    got = face(turned.read, keys)[0]
    assert {key: got[key].payload for key in keys} == {key: key.encode() for key in keys}
    by_name = {f"127.0.0.1:{s.port}": s.port for s in memcached_servers}
    homes = set()
    for key in keys:
        home, wire = tier.locate(key)
        homes.add(home)
        for name, port in by_name.items():
            answer = raw(port, b"mg %b v\r\n" % wire)
            assert answer.startswith(b"VA") == (name == home)
    assert len(homes) == 3
    assert face(tier.drop, keys) == [True] * 60


def test_a_dead_node_takes_only_its_own_keys_along(own_memcached, make_tier, face: Any):
    servers = [own_memcached() for _ in range(3)]
    tier = make_tier(*servers)
    keys = [f"key{n}" for n in range(30)]
    face(tier.store, {key: slot() for key in keys})
    dead = f"127.0.0.1:{servers[1].port}"
    lost = [key for key in keys if tier.locate(key)[0] == dead]
    kept = [key for key in keys if key not in lost]
    assert lost
    servers[1].kill()
    assert face(tier.read, keys)[0].keys() == set(kept)
    with pytest.raises(TierUnavailable):
        face(tier.read, lost)
    with pytest.raises(TierUnavailable):
        face(tier.drop, keys)  # an invalidation that did not reach a node must not look like one that did
    assert face(tier.read, kept)[0] == {}  # … but the others were carried out
    with pytest.raises(TierUnavailable):
        face(tier.connect)
    servers[1].restart()
    assert face(tier.store, {key: slot() for key in keys}) == [True] * 30


def test_a_hung_node_is_waited_for_once(own_memcached, make_tier, face: Any):
    servers = [own_memcached() for _ in range(2)]
    tier = make_tier(*servers, timeout=0.3)
    keys = [f"key{n}" for n in range(20)]
    assert wait_until(lambda: face.stored(tier, keys), 10)
    hung = f"127.0.0.1:{servers[0].port}"
    kept = {key for key in keys if tier.locate(key)[0] != hung}
    servers[0].pause()
    try:
        assert face(tier.read, keys)[0].keys() <= kept
        assert tier.describe()["paused"] == [hung]
        with pytest.raises(TierUnavailable, match="left alone"):
            face(tier.drop, sorted(set(keys) - kept)[:1])
    finally:
        servers[0].resume()
    assert wait_until(lambda: face.stored(tier, keys), 10)
    assert tier.describe()["paused"] == []


# ------------------------------------------------------------------------------------------------ outages


def test_a_hung_server_ends_every_call_at_its_deadline(own_memcached, make_tier, face: Any):
    server = own_memcached()
    tier = make_tier(server, timeout=0.3)
    assert wait_until(lambda: face.stored(tier, ["a"]), 10)
    held = face(tier.read, ["a"])[0]["a"]
    server.pause()
    try:
        for call in (
            lambda: face(tier.read, ["a"]),
            lambda: face(tier.swap, [Swap("a", held, slot(b"late"))]),
            lambda: face(tier.drop, ["a"]),
            lambda: face(tier.store, {"b": slot(b"late")}),
            lambda: face(tier.set_generations, {"t": ID()}, only_missing=False),
            lambda: face(tier.connect),
        ):
            began = time.monotonic()
            with pytest.raises(TierTimeout):
                call()
            assert time.monotonic() - began < 1.5
            assert tier.describe()["connections"] == 0  # closed before anything else is sent
    finally:
        server.resume()
    assert wait_until(lambda: face.works(tier.connect), 10)
    # whatever landed late: no entry that a delete has not seen
    assert wait_until(lambda: face.works(tier.drop, ["a", "b"]), 10)
    assert all(s.entry is None for s in face(tier.read, ["a", "b"])[0].values())


def test_a_swap_that_lands_late_finds_its_state_gone(own_memcached, make_tier, face: Any):
    """The bytes of a swap that timed out stay in the hung server's socket; another client changes the slot first."""
    server = own_memcached(arguments=("-t", "1"))
    tier, other = make_tier(server, timeout=0.3), make_tier(server)
    assert wait_until(lambda: face.stored(tier, ["a"]), 10)
    held = face(tier.read, ["a"])[0]["a"]
    server.pause()
    try:
        with pytest.raises(TierTimeout):
            face(tier.swap, [Swap("a", held, slot(b"late"))])
    finally:
        server.resume()
    # Lands now or has landed; after an acknowledged drop it may not be there, nor come back.
    drive(other.drop(THREADS, ["a"]))
    assert drive(other.read(THREADS, ["a"]))[0] == {}
    assert not wait_until(lambda: bool(drive(other.read(THREADS, ["a"]))[0]), 0.2)


def test_cas_numbers_of_a_restarted_server_are_never_mixed_up(own_memcached, make_tier, face: Any, raw):
    """After a restart the same number may stand for another state; the header decides, on the new connection."""
    server = own_memcached()
    tier = make_tier(server)
    face(tier.swap, [Swap("a", None, lease())])
    held = face(tier.read, ["a"])[0]["a"]
    server.kill()
    server.restart()
    _, wire = tier.locate("a")
    theirs = intents()
    value = theirs.header
    cas = 0
    # Bring the very CAS unique back that the handle names.
    for _ in range(1000):
        cas = int(raw(server.port, b"ms %b %d c\r\n%b\r\n" % (wire, len(value), value)).split(b" c")[1])
        if cas >= held.handle.cas:
            break
    assert cas == held.handle.cas
    result = face(tier.swap, [Swap("a", held, slot(b"wrong"))])[0]
    assert not result.done
    assert result.current.header == theirs.header
    result = face(tier.swap, [Swap("a", held, None)])[0]
    assert not result.done
    assert face(tier.read, ["a"])[0]["a"].intents == theirs.intents


def test_a_restart_between_two_calls_is_not_noticed_by_the_caller(own_memcached, make_tier, face: Any):
    server = own_memcached()
    tier = make_tier(server)
    face(tier.store, {"a": slot()})
    server.kill()
    server.restart()
    assert face(tier.read, ["a"])[0] == {}
    server.kill()
    server.restart()
    assert face(tier.store, {"a": slot()}) == [True]
    server.kill()
    with pytest.raises(TierUnavailable) as caught:
        face(tier.read, ["a"])
    assert not isinstance(caught.value, TierTimeout)
