"""The rules that every buffer keeps: one record per key, claims on keys, acknowledgement by token and sequence, settling,
bounds. Every buffer, on both faces.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cachewright.behind.buffers import open_buffer
from cachewright.behind.buffers.base import Ack, Buffer, Ended, Failure, NewRecord
from cachewright.behind.buffers.holder import is_dead, this_process
from cachewright.behind.buffers.redis_urls import open_redis
from cachewright.errors import BufferFull, NotDirtyError
from cachewright.runtime.aio import AioRuntime
from cachewright.runtime.base import drive
from cachewright.runtime.threads import ThreadRuntime

KINDS = [
    "sqlite-threads", "sqlite-asyncio", "redis-threads", "redis-asyncio", "valkey-threads", "cluster-threads",
    "cluster-asyncio",
]  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.time = 1_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


class Desk:
    """A buffer, driven by hand on a clock that only the test moves; every `put` moves it by a millisecond."""

    def __init__(self, face: str, make: Callable[..., Buffer], **bounds: int) -> None:
        self.clock, self.face = Clock(), face
        self.loop = asyncio.new_event_loop() if face == "asyncio" else None
        self.rt: Any = AioRuntime(self.clock) if self.loop else ThreadRuntime(self.clock)
        self.make = make
        self.buffer = make("user", **bounds)

    def close(self) -> None:
        self.buffer.close()
        if self.loop:
            self.loop.close()

    def do(self, name: str, *args: Any, buffer: Buffer | None = None, **more: Any) -> Any:
        call = getattr(buffer or self.buffer, name)(self.rt, *args, **more)
        return self.loop.run_until_complete(call) if self.loop else drive(call)

    def put(self, key, value: bytes | None = b"v", **more) -> int:
        self.clock.time += 0.001
        return self.do("append", [NewRecord(key, key.encode(), value)], **more)[0]

    def claim(self, token: bytes = b"flusher1", limit: int = 100, life: float = 5.0, **more):
        return self.do("claim", limit, token, life, **more)

    def ack(self, record, token: bytes = b"flusher1", settle: float = 5.0, unsure: bool = False) -> int:
        return self.end(record, token, settle, unsure).removed

    def end(self, record, token: bytes, settle: float = 5.0, unsure: bool = False) -> Ended:
        return self.do("acknowledge", token, [Ack(record.key, record.sequence, unsure)], settle=settle)

    def fail(self, record, token: bytes = b"flusher1", wait: float = 1.0, settle: float = 5.0, **more):
        failure = Failure(record.key, record.sequence, "Boom: x", self.clock.time + wait, **more)
        return self.do("fail", token, [failure], settle=settle)

    def read(self, *keys):
        return self.do("read", keys)

    def stats(self):
        return self.do("stats")

    def next_due(self, **more):
        return self.do("next_due", **more)


@pytest.fixture(params=KINDS)
def make_desk(
    request: pytest.FixtureRequest, tmp_path: Path, namespace: str
) -> Iterator[Callable[..., Desk]]:
    kind, _, face = request.param.partition("-")
    fixtures = {"redis": "redis_server", "valkey": "valkey_server", "cluster": "redis_cluster"}
    url = (
        request.getfixturevalue(fixtures[kind]).url if kind != "sqlite" else f"sqlite:///{tmp_path}/buffer.db"
    )
    made: list[Desk] = []

    def make_buffer(name: str, **bounds: int) -> Buffer:
        scope = f"{namespace}/{name}"
        if kind == "sqlite":
            return open_buffer(url, scope, **bounds)
        # the bounds are exact in one partition only
        where = f"{url}?timeout=30" + ("&partitions=1" if bounds else "")
        most = {"max_dirty": 100_000, "max_dirty_bytes": 2**28, **bounds}
        return open_redis(where, scope, clock=lambda rt: rt.now(), **most)

    def make(**bounds: int) -> Desk:
        made.append(Desk(face, make_buffer, **bounds))
        return made[-1]

    yield make
    for desk in made:
        desk.close()


@pytest.fixture
def desk(make_desk):
    return make_desk()


def test_the_newest_state_of_a_key_wins_and_a_delete_is_a_state(desk):
    first = desk.put("a", b"1")
    second = desk.put("a", b"2")
    third = desk.put("a", None)
    assert first < second < third
    assert desk.read("a")["a"].state == "tombstone"
    (record,) = desk.claim()
    assert (record.state, record.payload, record.sequence) == ("tombstone", None, third)
    desk.put("b", b"")
    assert desk.read("b")["b"].payload == b""


def test_a_sequence_never_goes_back_not_even_after_a_delete_or_a_clock_set_back(desk):
    first = desk.put("a")
    (record,) = desk.claim()
    assert desk.ack(record) == 1
    desk.clock.time -= 3600
    assert desk.put("a") > first
    desk.clock.time += 7200
    assert desk.put("a") >= int(desk.clock.time * 1_000_000)


def test_an_acknowledgement_of_an_older_sequence_removes_nothing(desk):
    desk.put("a", b"1")
    (record,) = desk.claim()
    newer = desk.put("a", b"2")
    assert desk.ack(record) == 0
    assert desk.read("a")["a"].sequence == newer
    assert [r.payload for r in desk.claim(b"flusher2")] == [b"2"], "due at once, its claim released"


def test_a_key_that_is_written_while_it_is_saved_is_dirty_since_its_claim(desk):
    desk.put("a", b"1")
    desk.clock.time += 10
    (record,) = desk.claim()
    claimed = desk.clock.time
    desk.clock.time += 10
    desk.put("a", b"2")
    desk.ack(record)
    assert desk.read("a")["a"].first_dirty == pytest.approx(claimed, rel=0, abs=0.01)


def test_an_append_keeps_the_claim_so_that_nobody_saves_beside_the_one_who_saves(desk):
    desk.put("a", b"1")
    desk.claim(b"flusher1")
    desk.put("a", b"2")
    assert desk.claim(b"flusher2") == []


def test_who_lost_the_claim_can_neither_acknowledge_nor_fail_nor_renew(desk):
    desk.put("a", b"1")
    (mine,) = desk.claim(b"flusher1")
    desk.clock.time += 6
    (theirs,) = desk.claim(b"flusher2")
    assert theirs.suspect
    assert theirs.tries == 1
    assert desk.ack(mine, b"flusher1") == 0
    desk.fail(mine, b"flusher1", dead=True)
    assert desk.do("renew", b"flusher1", 5) == 0
    assert desk.read("a")["a"].token == b"flusher2"
    assert not desk.read("a")["a"].dead


def test_who_ends_a_save_without_its_claim_hears_of_it_and_makes_suspect_whoever_saves_the_key_now(desk):
    desk.put("a", b"1")
    (mine,) = desk.claim(b"flusher1")
    desk.clock.time += 6
    (theirs,) = desk.claim(b"flusher2")
    desk.ack(theirs, b"flusher2")
    assert desk.end(mine, b"flusher1") == Ended(lost={"a": True}), (
        "it settles: saved once more, after this save"
    )
    assert not desk.read("a")["a"].suspect
    desk.clock.time += 6
    (theirs,) = desk.claim(b"flusher2")
    desk.ack(theirs, b"flusher2")
    assert desk.end(mine, b"flusher1") == Ended(lost={"a": False})
    desk.put("a", b"2")
    (theirs,) = desk.claim(b"flusher3")
    assert not theirs.suspect
    assert desk.end(mine, b"flusher1", settle=0).lost == {"a": True}
    assert not desk.read("a")["a"].suspect, "a saver that refuses older sequences"
    assert desk.end(mine, b"flusher1").lost == {"a": True}
    assert desk.read("a")["a"].suspect
    assert desk.ack(theirs, b"flusher3") == 0, "the save of 1 may have landed after that of 2"
    assert desk.stats().settling == 1


def test_a_save_that_failed_without_its_claim_may_still_land(desk):
    desk.put("a", b"1")
    (mine,) = desk.claim(b"flusher1")
    assert desk.fail(mine, b"flusher2", unknown=False) == Ended()
    assert not desk.read("a")["a"].suspect
    desk.do("release", b"flusher1")
    assert desk.fail(mine, b"flusher1") == Ended(lost={"a": True})
    assert desk.read("a")["a"].suspect, "though nobody saves it now"
    (theirs,) = desk.claim(b"flusher2")
    assert desk.fail(theirs, b"flusher2", dead=True) == Ended(dead=("a",))
    assert desk.fail(mine, b"flusher1") == Ended(lost={"a": False}), "a dead letter is not saved again"
    assert desk.fail(mine, b"flusher1", settle=0).dead == ()


def test_a_renewed_claim_is_not_taken_over(desk):
    desk.put("a")
    desk.claim(b"flusher1")
    desk.clock.time += 4
    assert desk.do("renew", b"flusher1", 5) == 1
    desk.clock.time += 4
    assert desk.claim(b"flusher2") == []
    desk.clock.time += 1
    assert len(desk.claim(b"flusher2")) == 1


def test_a_suspect_key_settles_once_and_counts_as_dirty_until_then(desk):
    desk.put("a")
    (record,) = desk.claim()
    desk.fail(record)
    desk.clock.time += 1
    (record,) = desk.claim()
    assert record.suspect
    assert desk.ack(record) == 0
    assert desk.stats().settling == desk.stats().dirty == 1
    assert desk.claim() == [], "not before the settle time"
    desk.clock.time += 5
    (record,) = desk.claim()
    assert record.settling
    assert desk.ack(record) == 1
    assert desk.stats().dirty == 0


def test_suspicion_stays_with_the_key_across_appends(desk):
    desk.put("a", b"1")
    (record,) = desk.claim()
    desk.fail(record)
    desk.put("a", b"2")
    desk.clock.time += 1
    (record,) = desk.claim()
    assert desk.ack(record) == 0, "the save of 1 may still land over 2"
    desk.put("a", b"3")
    (record,) = desk.claim()
    assert (record.payload, record.suspect, record.settling) == (b"3", True, False)
    assert desk.ack(record) == 0
    desk.clock.time += 5
    (record,) = desk.claim()
    assert desk.ack(record) == 1


def test_a_settling_record_whose_claim_is_taken_over_settles_anew(desk):
    desk.put("a")
    (record,) = desk.claim()
    desk.ack(record, unsure=True)
    desk.clock.time += 5
    assert desk.claim()[0].settling
    desk.clock.time += 6
    (record,) = desk.claim(b"flusher2")
    assert (record.suspect, record.settling) == (True, False)
    assert desk.ack(record, b"flusher2") == 0


def test_a_saver_that_refuses_older_sequences_needs_no_settling(desk):
    desk.put("a")
    (record,) = desk.claim()
    desk.fail(record, settle=0)
    desk.clock.time += 1
    (record,) = desk.claim()
    assert not record.suspect
    assert desk.ack(record, settle=0, unsure=True) == 1


def test_a_failure_that_changed_nothing_makes_no_suspect(desk):
    desk.put("a")
    (record,) = desk.claim()
    desk.fail(record, unknown=False)
    desk.clock.time += 1
    (record,) = desk.claim()
    assert (record.tries, record.last_error, record.suspect) == (1, "Boom: x", False)
    assert desk.ack(record) == 1


def test_a_failed_record_waits_and_blocks_only_its_own_key(desk):
    desk.put("a")
    desk.put("b")
    poison, other = desk.claim()
    desk.fail(poison, wait=30)
    desk.ack(other)
    desk.put("c")
    assert [r.key for r in desk.claim()] == ["c"]
    assert desk.next_due() == pytest.approx(desk.clock.time + 5), "c's claim"
    desk.put("a", b"mended")
    desk.clock.time += 1
    assert [r.key for r in desk.claim(b"flusher2")] == ["a"], "a newer state waits a second at most"


def test_a_newer_state_is_not_given_up_for_the_older_ones_failures(desk):
    desk.put("a", b"1")
    (record,) = desk.claim()
    desk.put("a", b"2")
    assert desk.fail(record, dead=True).dead == ()
    found = desk.read("a")["a"]
    assert (found.dead, found.tries, found.payload) == (False, 0, b"2")


def test_a_dead_letter_is_read_replayed_replaced_and_discarded(desk):
    def die():
        desk.put("a", b"1")
        (record,) = desk.claim()
        assert desk.fail(record, dead=True, unknown=False).dead == ("a",)

    die()
    assert desk.read("a")["a"].dead
    assert desk.claim() == []
    assert desk.next_due() is None
    assert (desk.stats().dirty, desk.stats().dead) == (0, 1)
    assert [r.last_error for r in desk.do("records", dead=True)] == ["Boom: x"]
    desk.do("replay", "a")
    (record,) = desk.claim()
    assert (record.tries, record.dead) == (0, False)
    assert desk.ack(record) == 1
    with pytest.raises(NotDirtyError, match="'a'"):
        desk.do("replay", "a")

    die()
    desk.put("a", b"2")
    with pytest.raises(NotDirtyError):
        desk.do("replay", "a")
    with pytest.raises(NotDirtyError):
        desk.do("discard", "a")
    (record,) = desk.claim()
    assert (record.payload, record.dead) == (b"2", False)
    desk.ack(record)

    die()
    assert desk.do("discard", "a").payload == b"1"
    assert desk.read("a") == {}
    assert desk.stats().bytes == 0


def test_the_coalescing_window_runs_from_the_first_write(desk):
    desk.put("a", b"1", delay=10)
    desk.clock.time += 6
    desk.put("a", b"2", delay=10)
    assert desk.claim() == []
    assert desk.next_due() == pytest.approx(1_000_010)
    assert desk.next_due(hurry=True) == 0
    desk.clock.time += 4
    assert [r.payload for r in desk.claim()] == [b"2"]
    desk.put("b", delay=10)
    assert [r.key for r in desk.claim(b"flusher2", hurry=True)] == ["b"]


def test_hurry_skips_the_window_but_neither_back_off_nor_settling(desk):
    for key in ("failed", "settling"):
        desk.put(key)
    failed, settling = desk.claim()
    desk.fail(failed, unknown=False)
    desk.ack(settling, unsure=True)
    assert desk.claim(hurry=True) == []
    assert desk.next_due(hurry=True) == pytest.approx(desk.clock.time + 1)


@pytest.mark.parametrize("hurry", [False, True], ids=["", "hurried"])
def test_a_dirty_key_is_due_at_every_moment_of_its_claims(desk, hurry):
    """A flush that asks for what is free, and only then for what is claimed, misses what is released between: it ended."""
    desk.put("a")
    there, over = ThreadRuntime(desk.clock), threading.Event()

    def flush() -> None:
        while not over.is_set():
            drive(desk.buffer.claim(there, 1, b"flusher1", 5.0))
            drive(desk.buffer.release(there, b"flusher1"))

    flusher = threading.Thread(target=flush)
    flusher.start()
    try:
        found = [desk.next_due(hurry=hurry) for _ in range(1000)]
    finally:
        over.set()
        flusher.join()
    assert None not in found


def test_claims_of_chosen_keys(desk):
    for key in "abc":
        desk.put(key)
    assert [r.key for r in desk.claim(keys=["b", "x"])] == ["b"]
    assert [r.key for r in desk.claim(b"flusher2", limit=1)] == ["a"]
    desk.do("release", b"flusher2")
    assert [r.key for r in desk.claim(b"flusher3")] == ["a", "c"]
    assert not any(r.suspect for r in desk.claim(b"flusher4"))


def test_taken_over_records_come_alone(desk):
    for key in "abc":
        desk.put(key)
    desk.claim(b"flusher1")
    desk.clock.time += 6
    desk.put("d")
    seen = []
    for number in range(4):
        seen.append([r.key for r in desk.claim(b"flush-%d" % number)])
    assert seen == [["a"], ["b"], ["c"], ["d"]]


def test_bounds_in_records_and_bytes(make_desk):
    desk = make_desk(max_dirty=2, max_dirty_bytes=100)
    desk.put("a", b"x" * 10)
    desk.put("b", b"x" * 10)
    with pytest.raises(BufferFull, match="2 records of at most 2"):
        desk.put("c")
    desk.put("a", b"y" * 20)
    with pytest.raises(BufferFull, match="bytes"):
        desk.put("a", b"y" * 90)
    assert desk.read("a")["a"].payload == b"y" * 20
    desk.put("a", b"y" * 90, overflow=True)
    desk.put("a", b"")
    first = desk.claim()[0]
    desk.ack(first)
    desk.put("c")
    assert (desk.stats().dirty, desk.stats().bytes) == (2, 12 + 3)


def test_the_count_of_the_bounds_is_what_stands_in_the_file(make_desk):
    desk = make_desk(max_dirty=3)
    for _ in range(3):
        for key in "abc":
            desk.put(key)
            desk.put(key, b"longer than before")
        for record in desk.claim():
            desk.ack(record)
    token = b"through!"
    for _ in range(4):
        sequence = desk.do("hold", "h", token, 5)
        assert sequence is not None
        desk.do("acknowledge", token, [Ack("h", sequence)], settle=5)
    for key in "abc":
        desk.put(key, b"")
    with pytest.raises(BufferFull, match=r"3 records of at most 3, 6 bytes"):
        desk.put("d")


def test_repositories_share_a_place_and_nothing_else(desk):
    other = desk.make("order")
    desk.put("a", b"1")
    assert desk.do("read", ["a"], buffer=other) == {}
    assert desk.do("claim", 10, b"flusher9", 5, buffer=other) == []
    assert desk.do("next_due", buffer=other) is None
    desk.do("append", [NewRecord("a", b"a", b"theirs")], buffer=other)
    assert [r.payload for r in desk.claim()] == [b"1"]
    other.close()


def test_a_held_key_keeps_flushers_off_and_takes_an_append(desk):
    token = b"through!"
    sequence = desk.do("hold", "a", token, 5)
    assert sequence is not None
    assert desk.do("hold", "a", b"through2", 5) is None
    assert desk.read("a") == {}
    newer = desk.put("a", b"2")
    assert newer > sequence
    assert desk.claim() == []
    desk.do("acknowledge", token, [Ack("a", sequence)], settle=5)
    (record,) = desk.claim()
    assert (record.payload, record.sequence, record.suspect) == (b"2", newer, False)


def test_a_save_through_that_failed_opens_no_way_past_the_bound(make_desk):
    """The key that it leaves would count as dirty; put again, it would come in beside as many as there are keys."""
    desk = make_desk(max_dirty=1)
    desk.put("dirty")
    first = desk.do("hold", "a", b"through1", 5)
    failure = Failure("a", first, "Boom: x", desk.clock.time, unknown=True)
    desk.do("fail", b"through1", [failure], settle=5)
    with pytest.raises(BufferFull):
        desk.put("a")
    with pytest.raises(BufferFull):
        desk.put("a", overflow=True)
    # nor can it be saved through: the first try may still land, and over a state that nobody would save again
    assert desk.do("hold", "a", b"through2", 5) is None
    desk.clock.time += 5
    left, dirty = sorted(desk.claim(), key=lambda record: record.key)
    assert (left.key, left.state, dirty.key) == ("a", "held", "dirty")
    desk.ack(left)
    desk.ack(dirty)
    desk.clock.time += 5
    (left,) = desk.claim()  # settled: its slot is dropped once more
    desk.ack(left)
    assert desk.do("hold", "a", b"through2", 5) is not None


def test_a_held_key_of_a_dead_writer_settles_and_goes(desk):
    desk.do("hold", "a", b"through!", 5)
    desk.clock.time += 6
    (record,) = desk.claim()
    assert (record.state, record.suspect) == ("held", True)
    desk.ack(record)
    desk.clock.time += 5
    desk.put("b")
    assert {r.state for r in desk.claim()} == {"held", "value"}


def test_a_claim_of_a_dead_process_is_free_at_once(desk):
    code = (
        "from cachewright.behind.buffers.holder import this_process; import sys; print(this_process());"
        "sys.stdout.flush(); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    holder = child.stdout.readline().strip()
    assert not is_dead(holder)
    assert not is_dead(this_process())
    assert not is_dead(f"other-host/{child.pid}/1")
    reused = holder.rsplit("/", 1)[0] + "/1"
    assert is_dead(reused), "another process of the same id"
    child.communicate("")
    assert is_dead(holder)

    if desk.loop:
        return  # an event loop does not survive a fork
    desk.put("a")
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # a child that hangs must not outlive the test
        desk.claim(b"flusher0")
        os._exit(0)
    os.waitpid(pid, 0)
    (record,) = desk.claim(b"flusher1")
    assert record.suspect
    assert "died" in record.last_error
