"""The Memcached tier on real servers: what is special to its wire, its CAS numbers, its nodes and its connections."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from cachewright.core.slot import NEVER, Intent, Lease, Slot, StoredEntry
from cachewright.errors import (
    ConfigurationError,
    TierProtocolError,
    TierTimeout,
    TierUnavailable,
)
from cachewright.runtime.aio import AIO
from cachewright.runtime.base import Runtime, drive
from cachewright.runtime.process import wait_until
from cachewright.runtime.threads import THREADS
from cachewright.tiers.base import Swap, Swapped
from cachewright.tiers.memcached import MemcachedTier
from cachewright.tiers.memcached_steps import Seen

ID = THREADS.new_id


def now_ms() -> int:
    return int(time.time() * 1000)


def entry(payload: bytes = b"value", life: int | None = 60_000) -> StoredEntry:
    now = now_ms()
    ends = NEVER if life is None else now + life
    return StoredEntry(payload, now, ends, ends, ends)


def slot(payload: bytes = b"value", life: int | None = 60_000) -> Slot:
    return Slot(ID(), entry=entry(payload, life))


def lease(life: int = 5000) -> Slot:
    return Slot(ID(), lease=Lease(ID(), now_ms() + life, life))


def intents(n: int = 1) -> Slot:
    return Slot(ID(), intents=tuple(Intent(ID(), now_ms() + 30_000) for _ in range(n)), contended=n > 1)


class Face:
    """Calls a tier's methods under one runtime; the asyncio one keeps a loop."""

    def __init__(self, rt: Runtime, runner: asyncio.Runner | None) -> None:
        self.rt, self._runner = rt, runner

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return drive(coroutine) if self._runner is None else self._runner.run(coroutine)

    def __call__(self, method: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **kwargs: Any) -> Any:
        return self.run(method(self.rt, *args, **kwargs))


@pytest.fixture(params=["threads", "asyncio"])
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    if request.param == "threads":
        yield Face(THREADS, None)
        return
    with asyncio.Runner() as runner:
        yield Face(AIO, runner)


@pytest.fixture
def make_tier(namespace: str) -> Iterator[Callable[..., MemcachedTier]]:
    with contextlib.ExitStack() as stack:

        def make(*servers: Any, **options: Any) -> MemcachedTier:
            pairs = [("127.0.0.1", s.port) if hasattr(s, "port") else s for s in servers]
            # Generous by default: a busy machine must not fail a test that is not about time.
            options = {"timeout": 5.0, "namespace": namespace, **options}
            tier = MemcachedTier(servers=pairs, **options)
            stack.callback(tier.close)
            return tier

        yield make


@pytest.fixture
def tier(make_tier, memcached_server) -> MemcachedTier:
    return make_tier(memcached_server)


def raw(server_port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server_port), timeout=5) as sock:
        sock.sendall(request + b"mn\r\n")
        got = b""
        while not got.endswith(b"MN\r\n"):
            got += sock.recv(65536)
    return got[:-4]


# ------------------------------------------------------------------------------------------------- slots


def test_round_trip_and_refusals(tier: MemcachedTier, face: Face):
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


def test_a_handle_of_an_old_state_is_refused_with_what_stands(tier: MemcachedTier, face: Face):
    face(tier.swap, [Swap("a", None, slot(b"one"))])
    old = face(tier.read, ["a"])[0]["a"]
    newer = slot(b"two")
    assert face(tier.swap, [Swap("a", old, newer)])[0].done
    for new in (slot(b"three"), None):
        refused = face(tier.swap, [Swap("a", old, new)])[0]
        assert not refused.done
        assert refused.current.header == newer.header


def test_values_of_all_sizes_up_to_the_servers_limit(tier: MemcachedTier, face: Face):
    for size in (0, 1, 900, 1000, 65_536, 1_000_000):
        value = os.urandom(size)
        key = f"size{size}"
        assert face(tier.store, {key: slot(value)}) == [True]
        assert face(tier.read, [key])[0][key].payload == value


def test_the_largest_item_that_fits_is_taken_and_one_byte_more_is_not(tier: MemcachedTier, face: Face):
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


def test_an_item_too_large_never_takes_other_peoples_intents_away(tier: MemcachedTier, face: Face):
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


def test_a_servers_own_smaller_limit_is_found_out(own_memcached, make_tier, face: Face):
    tier = make_tier(own_memcached(arguments=("-I", "8k", "-o", "slab_chunk_max=4096")))
    assert face(tier.store, {"a": slot(b"x" * 7000)}) == [True]
    with pytest.raises(TierProtocolError, match="8,192"):
        face(tier.store, {"a": slot(b"x" * 9000)})


def test_a_server_without_cas_numbers_is_refused(own_memcached, make_tier, face: Face):
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
def test_hostile_keys(tier: MemcachedTier, face: Face, key: str):
    face(tier.store, {"bystander": slot(b"here")})
    assert face(tier.store, {key: slot(b"mine")}) == [True]
    got = face(tier.read, [key, "bystander"])[0]
    assert got[key].payload == b"mine"
    assert got["bystander"].payload == b"here"
    _, wire = tier.locate(key)
    assert len(wire) <= 250
    assert face(tier.drop, [key]) == [True]
    assert face(tier.read, [key])[0] == {}


def test_foreign_bytes_are_a_slot_that_may_be_replaced(tier: MemcachedTier, memcached_server, face: Face):
    _, wire = tier.locate("a")
    raw(memcached_server.port, b"ms %b 5\r\nhello\r\n" % wire)
    seen = face(tier.read, ["a"])[0]["a"]
    assert seen.foreign == b"hello"
    assert face(tier.swap, [Swap("a", seen, slot(b"ours"))])[0].done
    raw(memcached_server.port, b"ms %b 5\r\nhello\r\n" % wire)
    face(tier.drop, ["a"])
    assert face(tier.read, ["a"])[0] == {}


def test_lives_end_at_the_server_too_but_never_early(tier: MemcachedTier, memcached_server, face: Face):
    born = time.monotonic()
    face(tier.swap, [Swap("lease", None, lease(1000)), Swap("never", None, slot(life=None))])
    face(tier.swap, [Swap("long", None, slot(life=40 * 86_400_000))])
    expiry = {}
    for key in ("never", "long"):
        _, wire = tier.locate(key)
        expiry[key] = int(raw(memcached_server.port, b"mg %b t\r\n" % wire).split(b" t")[1])
    assert expiry["never"] == -1
    assert 40 * 86_400 - 1 <= expiry["long"] <= 40 * 86_400 + 3
    while time.monotonic() - born < 0.95:
        assert "lease" in face(tier.read, ["lease"])[0]
    assert wait_until(lambda: not face(tier.read, ["lease"])[0], 3)


# ------------------------------------------------------------------------------------- drop, store, generations


def test_drop(tier: MemcachedTier, face: Face):
    standing = intents(2)
    face(tier.store, {"entry": slot()})
    face(tier.swap, [Swap("lease", None, lease()), Swap("intents", None, standing)])
    assert face(tier.drop, ["entry", "lease", "intents", "absent"]) == [True, False, False, False]
    left = face(tier.read, ["entry", "lease", "intents", "absent"])[0]
    assert left.keys() == {"intents"}
    assert left["intents"].intents == standing.intents
    assert left["intents"].contended
    assert left["intents"].nonce != standing.nonce  # a commit of before must not pass


def test_store_gives_way_to_intents_and_keeps_the_callers_ids(tier: MemcachedTier, face: Face):
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


def test_generations(tier: MemcachedTier, memcached_server, face: Face):
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


def test_round_trips(tier: MemcachedTier, face: Face):
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


# ------------------------------------------------------------------------------------------------- races


def test_one_winner_of_eight_threads(tier: MemcachedTier):
    for _ in range(20):
        start = threading.Barrier(8)
        done: list[tuple[Swapped, Slot]] = []
        seen: dict[str, Slot] = {}

        def contend(start=start, done=done, seen=seen):
            mine = slot()
            expected = seen.get("a")
            start.wait()
            done.append((drive(tier.swap(THREADS, [Swap("a", expected, mine)]))[0], mine))

        for round_ in range(2):  # from absent, then from what stands
            done.clear()
            if round_:
                seen.update(drive(tier.read(THREADS, ["a"]))[0])
            _together(8, contend)
            winners = [mine for result, mine in done if result.done]
            assert len(winners) == 1
            standing = drive(tier.read(THREADS, ["a"]))[0]["a"]
            assert standing.header == winners[0].header
        drive(tier.drop(THREADS, ["a"]))


def _together(n: int, work: Callable[[], Any]) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures, failures


def test_no_intent_is_lost_among_drops_stores_and_writers(tier: MemcachedTier):
    """Eight threads add an intent each by swap while others drop and store: at the end all eight stand."""
    added: list[bytes] = []
    start, over = threading.Barrier(10), threading.Event()
    left = threading.Semaphore(0)

    def write() -> None:
        mine = Intent(ID(), now_ms() + 30_000)
        start.wait()
        expected = None
        while True:
            others = expected.intents if expected else ()
            new = Slot(ID(), intents=(*others, mine), contended=bool(others))
            result = drive(tier.swap(THREADS, [Swap("a", expected, new)]))[0]
            if result.done:
                added.append(mine.id)
                left.release()
                return
            expected = result.current

    def disturb(operation: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        start.wait()
        while not over.is_set():
            drive(operation())

    def end() -> None:
        for _ in range(8):
            assert left.acquire(timeout=20)
        over.set()

    work = iter(
        [write] * 8
        + [
            lambda: disturb(lambda: tier.drop(THREADS, ["a"])),
            lambda: disturb(lambda: tier.store(THREADS, {"a": slot()})),
        ]
        + [end]
    )
    lock = threading.Lock()

    def one() -> None:
        with lock:
            mine = next(work)
        mine()

    _together(11, one)
    standing = drive(tier.read(THREADS, ["a"]))[0]["a"]
    assert {i.id for i in standing.intents} == set(added)
    assert len(added) == 8
    assert standing.entry is None


def test_both_faces_at_once(tier: MemcachedTier):
    count = 40

    async def amain(tag: int) -> None:
        async def one(n: int) -> None:
            key = f"{tag}:{n}"
            await tier.store(AIO, {key: slot(key.encode())})
            got = (await tier.read(AIO, [key, "absent"]))[0]
            assert got[key].payload == key.encode()
            assert got.keys() == {key}

        await asyncio.gather(*(one(n) for n in range(count)))

    def sync(tag: int) -> None:
        for n in range(count):
            key = f"{tag}:{n}"
            drive(tier.store(THREADS, {key: slot(key.encode())}))
            assert drive(tier.read(THREADS, [key]))[0][key].payload == key.encode()

    work = iter(
        [lambda: asyncio.run(amain(1)), lambda: asyncio.run(amain(2)), lambda: sync(3), lambda: sync(4)]
    )
    _together(4, lambda: next(work)())


# ------------------------------------------------------------------------------------------- several nodes


def test_keys_live_on_the_node_that_was_chosen(make_tier, memcached_servers, face: Face):
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


def test_a_dead_node_takes_only_its_own_keys_along(own_memcached, make_tier, face: Face):
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


def test_a_hung_node_is_waited_for_once(own_memcached, make_tier, face: Face):
    servers = [own_memcached() for _ in range(2)]
    tier = make_tier(*servers, timeout=0.3)
    keys = [f"key{n}" for n in range(20)]
    assert wait_until(lambda: _stored(face, tier, keys), 10)
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
    assert wait_until(lambda: _stored(face, tier, keys), 10)
    assert tier.describe()["paused"] == []


def _stored(face: Face, tier: MemcachedTier, keys: list[str]) -> bool:
    try:
        return all(face(tier.store, {key: slot() for key in keys}))
    except TierUnavailable:
        return False


# ------------------------------------------------------------------------------------------------ outages


def test_a_hung_server_ends_every_call_at_its_deadline(own_memcached, make_tier, face: Face):
    server = own_memcached()
    tier = make_tier(server, timeout=0.3)
    assert wait_until(lambda: _stored(face, tier, ["a"]), 10)
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
    assert wait_until(lambda: _reachable(face, tier), 10)
    # whatever landed late: no entry that a delete has not seen
    assert wait_until(lambda: _dropped(face, tier, ["a", "b"]), 10)
    assert all(s.entry is None for s in face(tier.read, ["a", "b"])[0].values())


def _reachable(face: Face, tier: MemcachedTier) -> bool:
    try:
        face(tier.connect)
    except TierUnavailable:
        return False
    return True


def _dropped(face: Face, tier: MemcachedTier, keys: list[str]) -> bool:
    try:
        face(tier.drop, keys)
    except TierUnavailable:
        return False
    return True


def test_a_swap_that_lands_late_finds_its_state_gone(own_memcached, make_tier, face: Face):
    """The bytes of a swap that timed out stay in the hung server's socket; another client changes the slot first."""
    server = own_memcached(arguments=("-t", "1"))
    tier, other = make_tier(server, timeout=0.3), make_tier(server)
    assert wait_until(lambda: _stored(face, tier, ["a"]), 10)
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


def test_cas_numbers_of_a_restarted_server_are_never_mixed_up(own_memcached, make_tier, face: Face):
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


def test_a_restart_between_two_calls_is_not_noticed_by_the_caller(own_memcached, make_tier, face: Face):
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


# ----------------------------------------------------------------------------------------- lying servers


@contextlib.contextmanager
def lying(*answers: bytes, wait: bool = True) -> Iterator[int]:
    """A server that gives each connection one of the answers, whatever it is asked, and then says nothing more."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def serve() -> None:
        for answer in [*answers, *[b""] * 20]:
            try:
                conn, _ = listener.accept()
            except OSError:
                return
            held.append(conn)
            try:
                if wait:
                    conn.recv(65536)
                conn.sendall(answer)
            except OSError:
                continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        for conn in held:
            conn.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"ERROR\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"VA 5 c1 kother:k:a\r\nhello\r\n",
        b"VA 5 c1\r\nhello\r\n",
        b"VA 99999999999 c1 kx\r\n",
        b"HD\r\n",
        b"EN\r\nEN\r\n",
        b"EN\r\nVA 5 c1 ",
        b"\0" * 5000,
    ],
)
def test_nonsense_closes_the_connection(make_tier, face: Face, answer: bytes):
    with lying(answer) as port:
        tier = make_tier(("127.0.0.1", port))
        with pytest.raises(TierProtocolError):
            face(tier.read, ["a"])
        assert tier.describe()["connections"] == 0


def test_an_announced_value_that_never_comes_ends_at_the_deadline(make_tier, face: Face, namespace: str):
    with lying(b"VA 67108864 c1 k%b:k:a\r\nabc" % namespace.encode()) as port:
        tier = make_tier(("127.0.0.1", port), timeout=0.3)
        with pytest.raises(TierTimeout):
            face(tier.read, ["a"])


def test_too_many_connections_is_an_outage(make_tier, face: Face):
    with lying(b"ERROR Too many open connections\r\n") as port:
        tier = make_tier(("127.0.0.1", port))
        with pytest.raises(TierUnavailable, match="Too many open connections"):
            face(tier.read, ["a"])


# --------------------------------------------------------------------------------------------- connections


def test_large_batches_do_not_lock_up(tier: MemcachedTier, face: Face):
    """3,000 keys of 240 bytes asked for at once, 30 MB of answers: a sender that does not receive would stand still."""
    keys = [f"{n:04}{'k' * 200}" for n in range(3000)]
    for at in range(0, 3000, 500):
        assert all(face(tier.store, {key: slot(b"v" * 10_000) for key in keys[at : at + 500]}))
    got = face(tier.read, keys)[0]
    assert len(got) == 3000
    assert all(s.payload == b"v" * 10_000 for s in got.values())
    face(tier.drop, keys)


def test_one_connection_per_thread_and_it_goes_with_the_thread(tier: MemcachedTier):
    drive(tier.connect(THREADS))
    assert tier.describe()["connections"] == 1
    inside = threading.Barrier(5)

    def use() -> None:
        drive(tier.read(THREADS, ["a"]))
        drive(tier.read(THREADS, ["b"]))
        inside.wait(10)
        inside.wait(10)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    inside.wait(10)
    assert tier.describe()["connections"] == 5
    inside.wait(10)
    for thread in threads:
        thread.join()
    assert wait_until(lambda: tier.describe()["connections"] == 1, 5)
    tier.close()
    assert tier.describe()["connections"] == 0
    drive(tier.read(THREADS, ["a"]))
    assert tier.describe()["connections"] == 1


def test_close_lets_a_call_under_way_end_and_then_closes_its_connection(own_memcached, make_tier):
    server = own_memcached()
    tier = make_tier(server)
    drive(tier.store(THREADS, {"a": slot()}))
    server.pause()
    got: list[Any] = []
    over = threading.Event()

    def use() -> None:
        got.append(drive(tier.read(THREADS, ["a"]))[0])
        got.append(tier.describe()["connections"])
        over.wait(10)

    thread = threading.Thread(target=use)
    thread.start()
    assert wait_until(lambda: tier.describe()["connections"] == 2, 5)
    tier.close()
    server.resume()
    assert wait_until(lambda: len(got) == 2, 5)
    over.set()
    thread.join()
    assert got[0].keys() == {"a"}
    assert got[1] == 0


def test_a_tick_of_the_loop_is_one_connection_and_one_write(tier: MemcachedTier, monkeypatch):
    writes: list[int] = []
    from cachewright.tiers import memcached_driver_aio as aio

    class Spy(socket.socket):
        def send(self, data: Any, *args: Any) -> int:
            writes.append(len(data))
            return super().send(data, *args)

    def open_spy(family: int) -> socket.socket:
        sock = Spy(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        return sock

    monkeypatch.setattr(aio, "open_socket", open_spy)

    async def main() -> None:
        await tier.connect(AIO)
        writes.clear()
        await asyncio.gather(*(tier.read(AIO, [f"k{n}"]) for n in range(100)))

    asyncio.run(main())
    assert len(writes) == 1
    tier.close()


def test_a_cancelled_caller_disturbs_nobody(own_memcached, make_tier):
    server = own_memcached()
    tier = make_tier(server)

    async def main() -> None:
        await tier.store(AIO, {f"k{n}": slot(b"%d" % n) for n in range(20)})
        server.pause()
        tasks = [asyncio.create_task(tier.read(AIO, [f"k{n}"])) for n in range(20)]
        await asyncio.sleep(0.05)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.sleep(0)
        server.resume()
        for n, task in enumerate(tasks):
            if n % 2:
                assert (await task)[0][f"k{n}"].payload == b"%d" % n
            else:
                with pytest.raises(asyncio.CancelledError):
                    await task
        assert tier.describe()["connections"] == 1

    asyncio.run(main())


def test_a_caller_cancelled_while_connecting_disturbs_nobody(tier: MemcachedTier):
    async def main() -> None:
        tasks = [asyncio.create_task(tier.read(AIO, ["a"])) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        assert await tasks[1] == ({}, {})
        assert await tasks[2] == ({}, {})

    asyncio.run(main())


def test_timeout_after_a_cancelled_caller_still_ends_the_connection(own_memcached, make_tier):
    server = own_memcached()
    tier = make_tier(server, timeout=0.3)

    async def main() -> None:
        await tier.connect(AIO)
        server.pause()
        task = asyncio.create_task(tier.read(AIO, ["a"]))
        await asyncio.sleep(0)
        task.cancel()
        deadline = time.monotonic() + 5
        while tier.describe()["connections"]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    try:
        asyncio.run(main())
    finally:
        server.resume()


def test_second_run_and_close_after_the_loop_leave_nothing_open(tier: MemcachedTier, recwarn):
    for _ in range(3):
        asyncio.run(tier.read(AIO, ["a"]))
        assert tier.describe()["connections"] == 1
    closer = threading.Thread(target=tier.close)
    closer.start()
    closer.join()
    assert tier.describe()["connections"] == 0
    gc.collect()
    assert [w for w in recwarn if issubclass(w.category, ResourceWarning)] == []


def test_a_tier_that_is_forgotten_warns_nobody(make_tier, memcached_server, namespace, recwarn):
    tier = MemcachedTier(servers=[("127.0.0.1", memcached_server.port)], namespace=namespace)
    drive(tier.read(THREADS, ["a"]))
    asyncio.run(tier.read(AIO, ["a"]))
    del tier
    gc.collect()
    assert [w for w in recwarn if issubclass(w.category, ResourceWarning)] == []


def test_close_from_another_thread_while_the_loop_runs(tier: MemcachedTier):
    async def main() -> None:
        await tier.read(AIO, ["a"])
        await asyncio.to_thread(tier.close)
        await asyncio.sleep(0)
        assert tier.describe()["connections"] == 0
        assert await tier.read(AIO, ["a"]) == ({}, {})
        tier.close()
        assert tier.describe()["connections"] == 0

    asyncio.run(main())


def test_a_forked_child_has_connections_of_its_own(tier: MemcachedTier):
    drive(tier.store(THREADS, {"a": slot(b"parent")}))

    async def main() -> None:
        await tier.read(AIO, ["a"])
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                tier.after_fork()
                if tier.describe()["connections"] == 0:
                    drive(tier.store(THREADS, {"child": slot(b"child")}))
                    code = 0 if drive(tier.read(THREADS, ["a"]))[0]["a"].payload == b"parent" else 2
            finally:
                os._exit(code)
        assert await asyncio.to_thread(os.waitpid, pid, 0) == (pid, 0)
        got = (await tier.read(AIO, ["a", "child"]))[0]  # the parent's connections still stand
        assert {key: s.payload for key, s in got.items()} == {"a": b"parent", "child": b"child"}

    asyncio.run(main())
    assert drive(tier.read(THREADS, ["child"]))[0]["child"].payload == b"child"
    assert tier.describe()["connections"] == 2


def test_a_unix_socket(own_memcached, make_tier, face: Face, tmp_path, namespace):
    import subprocess

    path = str(tmp_path / "m.sock")
    process = subprocess.Popen(["memcached", "-s", path, "-u", "root" if os.geteuid() == 0 else "nobody"])
    try:
        assert wait_until(lambda: os.path.exists(path), 10)
        tier = make_tier(path)
        assert wait_until(lambda: _stored(face, tier, ["a"]), 5)
        assert face(tier.read, ["a"])[0]["a"].payload == b"value"
        assert tier.describe()["servers"] == [path]
    finally:
        process.kill()
        process.wait()
    with pytest.raises(TierUnavailable):
        face(tier.read, ["a"])


def test_localhost_is_tried_on_all_its_addresses(make_tier, memcached_server, face: Face, monkeypatch):
    """The first address refuses, the second answers."""
    real = socket.getaddrinfo

    def both(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        found = real("127.0.0.1", port, *args, **kwargs)
        family, kind, proto, name, _ = found[0]
        return [(family, kind, proto, name, ("127.0.0.1", 1)), *found]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    tier = make_tier(("localhost", memcached_server.port))
    assert face(tier.read, ["a"]) == ({}, {})


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
