"""The buffer in Redis when answers get lost, the server hangs, evicts, is full or dies, and clocks differ."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from cachewright.behind.buffers import open_buffer, redis_partitions
from cachewright.behind.buffers.base import Failure, NewRecord
from cachewright.errors import (
    BufferUnavailable,
    BufferUnconfirmed,
    ConfigurationError,
)
from cachewright.runtime.base import drive
from cachewright.runtime.process import free_port, wait_until
from cachewright.runtime.threads import SYSTEM_CLOCK, THREADS, ThreadRuntime
from cachewright.testing.servers import RedisServer
from cachewright.tiers.redis_scripts import _SOURCES
from tests.faults.lossy import TOKEN, Face, Lossy

OTHER = b"flusher2"


@pytest.fixture
def buffer(opened: Callable[..., Face], redis_server: RedisServer) -> Face:
    return opened(redis_server.url)


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Lossy]:
    with Lossy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def far(opened: Callable[..., Face], proxy: Lossy, redis_server: RedisServer) -> Face:
    """The same records as `buffer`, through the proxy."""
    for source in _SOURCES.values():  # so that no answer says only that the script is not known
        redis_server.ask("SCRIPT", "LOAD", source)
    found = opened(f"redis://127.0.0.1:{proxy.port}/0?timeout=20")
    found.put("warm")  # connected, looked at
    found.ack(*found.take(b"warming!"), token=b"warming!")
    return found


# Lost answers


def test_an_append_whose_answer_was_lost_is_unconfirmed_and_there(
    buffer: Face, far: Face, proxy: Lossy
) -> None:
    proxy.lose_next_reply()
    with pytest.raises(BufferUnconfirmed, match="nobody knows"):
        far.put("a", value=b"1")
    assert buffer.read(["a"])["a"].payload == b"1"


def test_an_append_that_was_never_sent_is_refused_for_certain(
    opened: Callable[..., Face], redis_server: RedisServer
) -> None:
    away = opened(f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(BufferUnavailable, match="nothing was changed"):
        away.put("a")
    with pytest.raises(BufferUnavailable):
        away.read(["a"])
    with pytest.raises(BufferUnavailable, match="nothing was changed"):
        away.hold("a", TOKEN, 5)


def test_a_claim_whose_answer_was_lost_is_given_back_unharmed(buffer: Face, far: Face, proxy: Lossy) -> None:
    for n in range(10):
        buffer.put("a")
        proxy.lose_next_reply()
        with pytest.raises(BufferUnconfirmed):
            far.take(b"lost-%03d" % n)
        assert buffer.take(b"none-%03d" % n) == [], "it stands, though nobody heard of it"
        (record,) = far.take(b"next-%03d" % n)
        assert (record.tries, record.suspect) == (0, False), "no lost answer leads towards a dead letter"
        far.release(record.token)


def test_a_hold_whose_answer_was_lost_is_given_back(buffer: Face, far: Face, proxy: Lossy) -> None:
    proxy.lose_next_reply()
    with pytest.raises(BufferUnconfirmed):
        far.hold("a", TOKEN, 60)
    assert buffer.hold("a", OTHER, 60) is None
    assert far.take(OTHER) == []
    assert buffer.hold("a", OTHER, 60) is not None


def test_acknowledgements_and_failures_are_sent_again_where_the_answer_was_lost(
    buffer: Face, far: Face, proxy: Lossy
) -> None:
    buffer.put("saved", "failed")
    failed, saved = sorted(far.take(), key=lambda record: record.key)
    proxy.lose_next_reply()
    assert far.renew(TOKEN, 60) == 2
    proxy.lose_next_reply()
    assert far.ack(saved) == 1
    proxy.lose_next_reply()
    assert far.give_up(failed) == ("failed",), "the dead letter is told though its answer was lost"
    assert (buffer.stats().dirty, buffer.stats().dead) == (0, 1)
    buffer.put("held up")
    far.take(OTHER)
    proxy.lose_next_reply()
    far.release(OTHER)
    assert len(buffer.take(b"flusher3")) == 1


def test_who_cannot_ask_again_after_a_lost_answer_knows_nothing(
    buffer: Face, far: Face, proxy: Lossy
) -> None:
    buffer.put("a")
    (record,) = far.take()
    proxy.lose_next_reply()
    proxy.refuse()
    with pytest.raises(BufferUnconfirmed, match=r"an answer was lost; then: .*Errno.*nobody knows"):
        far.ack(record)
    assert buffer.read(["a"]) == {}


def test_what_its_caller_gave_up_never_lands_later(
    opened: Callable[..., Face], buffer: Face, proxy: Lossy
) -> None:
    """The request stays in the network for longer than its caller waits: it must not land over a newer state."""
    late = opened(f"redis://127.0.0.1:{proxy.port}/0?timeout=0.5")
    late.put("a", value=b"0")
    proxy.hold()
    with pytest.raises(BufferUnconfirmed):
        late.put("a", value=b"old")
    buffer.put("a", value=b"new")
    proxy.let_go()
    late.stats()  # connected again
    proxy.hold()
    with pytest.raises(BufferUnconfirmed):
        late.take(b"too late")
    proxy.let_go()
    assert late.stats().dirty == 1, "through the proxy, behind what it held"
    assert buffer.read(["a"])["a"].payload == b"new"
    assert len(buffer.take()) == 1, "a claim for nobody did not land either"


def test_a_hung_server_leaves_it_open_and_lands_nothing(
    opened: Callable[..., Face], own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis()
    face = opened(f"{server.url}?timeout=0.5")
    face.put("a", value=b"0")
    server.pause()
    with pytest.raises(BufferUnconfirmed):
        face.put("a", value=b"old")
    server.resume()
    assert wait_until(lambda: server.ready(), 10)
    face.put("b")
    assert face.read(["a"])["a"].payload == b"0"


def test_a_server_whose_clock_was_set_is_believed_at_once(buffer: Face) -> None:
    buffer.put("a")
    buffer.buffer._at._ahead = dict.fromkeys(buffer.buffer._at._ahead, 0.0)  # as if by years
    assert buffer.put("a") > [0]


# Concurrency


def test_threads_that_write_the_same_keys_get_sequences_in_the_order_of_states(
    redis_server: RedisServer, namespace: str
) -> None:
    buffer = open_buffer(redis_server.url, f"{namespace}/user")
    keys, gate = ["a", "b", "c"], threading.Barrier(8)
    taken: list[tuple[str, int, bytes | None]] = []

    def write(who: int) -> None:
        gate.wait(20)
        for n in range(50):
            states = [NewRecord(key, b"id", b"%d.%d" % (who, n)) for key in keys]
            given = drive(buffer.append(THREADS, states))
            taken.extend(
                (key, sequence, state.payload)
                for key, sequence, state in zip(keys, given, states, strict=True)
            )

    _in_threads([partial(write, who) for who in range(8)])
    assert len({sequence for _, sequence, _ in taken}) == 8 * 50 * 3
    found = drive(buffer.read(THREADS, keys))
    for key in keys:
        newest = max((sequence, payload) for name, sequence, payload in taken if name == key)
        assert (found[key].sequence, found[key].payload) == newest
    stats = drive(buffer.stats(THREADS))
    assert (stats.dirty, stats.bytes) == (3, sum(1 + 2 + len(r.payload or b"") for r in found.values()))
    buffer.close()


@pytest.mark.parametrize("where", ["redis_server", "redis_cluster"])
def test_no_two_claimers_ever_hold_one_key(
    where: str, request: pytest.FixtureRequest, namespace: str
) -> None:
    buffer = open_buffer(f"{request.getfixturevalue(where).url}?timeout=20", f"{namespace}/user")
    keys = [f"k{n}" for n in range(60)]
    drive(buffer.append(THREADS, [NewRecord(key, b"id", b"v") for key in keys]))
    held: set[str] = set()
    lock, gate, rounds = threading.Lock(), threading.Barrier(4), itertools.count()
    wrong: list[str] = []

    def claim() -> None:
        gate.wait(20)
        for _ in range(25):
            token = b"%08d" % next(rounds)
            records = drive(buffer.claim(THREADS, 7, token, 60))
            mine = {record.key for record in records}
            with lock:
                wrong.extend(held & mine)
                wrong.extend(["too many"] if len(records) > 7 else [])
                held.update(mine)
            with lock:
                held.difference_update(mine)
            drive(buffer.release(THREADS, token))

    _in_threads([claim] * 4)
    assert wrong == []
    buffer.close()


def _in_threads(works: list[Callable[[], None]]) -> None:
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []


# Clocks


class Ahead:
    """A host whose clock is wrong."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def now(self) -> float:
        return SYSTEM_CLOCK.now() + self.seconds

    def monotonic(self) -> float:
        return SYSTEM_CLOCK.monotonic()


def test_hosts_whose_clocks_differ_agree_on_claims_and_due_times(buffer: Face) -> None:
    here, there = buffer.buffer, ThreadRuntime(Ahead(7200))
    buffer.put("a")
    (mine,) = buffer.take(life=60)
    assert drive(here.claim(there, 10, OTHER, 60)) == [], "two hours ahead, the claim would be over"
    told = drive(here.read(there, ["a"]))["a"]
    assert told.deadline - there.now() == pytest.approx(60, abs=10)
    assert told.first_dirty - there.now() == pytest.approx(0, abs=10)
    later = Failure("a", mine.sequence, "Boom", there.now() + 1000)
    drive(here.fail(there, TOKEN, [later], settle=5))
    assert buffer.next_due() - buffer.rt.now() == pytest.approx(1000, abs=10)
    due = drive(here.next_due(there))
    assert due is not None
    assert due - there.now() == pytest.approx(1000, abs=10)


# What the server is set to


def test_a_server_that_would_evict_records_is_refused_but_drained(
    opened: Callable[..., Face], own_redis: Callable[..., RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = own_redis(options={"maxmemory": "100mb"})
    face = opened(server.url)
    face.put("a")
    server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    monkeypatch.setattr(redis_partitions, "LOOK_AGAIN", 0.0)  # it is looked at again after a while
    with pytest.raises(ConfigurationError, match=r"allkeys-lru.*noeviction"):
        face.put("a", value=b"2")
    with pytest.raises(ConfigurationError, match="allkeys-lru"):
        face.hold("b", OTHER, 5)
    assert face.ack(*face.take()) == 1
    server.ask("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    face.put("a", value=b"3")


def test_a_full_server_takes_nothing_and_is_drained(
    opened: Callable[..., Face], own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis(options={"maxmemory": "6mb"})
    face = opened(server.url)
    taken = 0
    with pytest.raises(BufferUnavailable, match=r"OOM.*nothing was changed"):
        for n in range(200):
            face.put(f"{n}.0", f"{n}.1", value=b"x" * 50_000)
            taken += 2
    assert face.stats().dirty == taken, "neither of the two"
    with pytest.raises(BufferUnavailable, match="OOM"):
        face.put("0.0", value=b"x" * 50_000)
    (lost,) = face.take(b"released", limit=1)
    face.release(b"released")
    (failed,) = face.take(limit=1)
    face.renew(TOKEN, 60)
    assert face.give_up(failed) == (lost.key,)
    assert face.discard(failed.key).key == failed.key
    while records := face.take(OTHER, limit=10):
        face.ack(*records, token=OTHER)
    face.put("again", value=b"x" * 50_000)


def test_a_server_without_a_log_on_disk_is_warned_of_once(
    opened: Callable[..., Face], redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    face = opened(redis_server.url)
    with caplog.at_level(logging.WARNING, "cachewright"):
        face.put("a")
        face.put("b")
    assert [("append-only" in line, "appendonly yes" in line) for line in caplog.messages] == [(True, True)]


def test_a_killed_server_with_a_synchronous_log_keeps_what_it_took(
    opened: Callable[..., Face],
    own_redis: Callable[..., RedisServer],
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = own_redis(options={"appendonly": "yes", "appendfsync": "always"})
    face = opened(server.url)
    given = [face.put(f"k{n}", value=b"%d" % n)[0] for n in range(50)]
    face.ack(*face.take(limit=10))
    assert face.take(OTHER, limit=5)
    server.kill()
    with pytest.raises(BufferUnavailable):
        face.put("k0")
    server.start()
    found = face.read([f"k{n}" for n in range(50)])
    assert [found[f"k{n}"].sequence for n in range(10, 50)] == given[10:]
    assert face.stats().dirty == 40
    assert sum(1 for record in found.values() if record.token == OTHER) == 5
    assert face.put("k0")[0] > max(given)
    assert not caplog.messages, "it keeps its log"


def test_a_server_that_lost_everything_gives_no_old_sequence_again(
    opened: Callable[..., Face], own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis()
    face = opened(server.url)
    last = max(face.put(f"k{n}")[0] for n in range(20))
    server.kill()
    server.start()
    assert face.put("a")[0] > last
