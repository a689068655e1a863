"""The flusher: rounds, batches, back-off, dead letters, claims in flight, bounds, flush and close; on both runtimes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping

import pytest

from cachewright import events
from cachewright.behind.buffers.base import NewRecord
from cachewright.behind.flusher import find_flusher
from cachewright.behind.saving import Savers
from cachewright.behind.types import BehindOptions, Write
from cachewright.errors import BufferFull, BufferUnavailable, ConfigurationError, FlushTimeout, NotSaved
from cachewright.options import MISSING
from cachewright.runtime.aio import AIO
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS
from tests.unit.flusher_bench import Clock


def test_a_round_saves_drops_the_slot_and_then_removes(bench):
    desk = bench()
    order: list[object] = []
    desk.flusher._rounds._after_save = lambda rt, keys: _note(order, list(desk.origin), desk.stats().dirty)
    desk.put("a", "1")
    desk.put("b", None)
    assert desk.step() == 2
    assert order == [(["a"], 2)], "saved before the drop, dirty until after it"
    assert desk.saves == [("a", "1"), ("b", MISSING)]
    assert desk.stats().dirty == 0
    assert desk.step() == 0


async def _note(order, *what):
    order.append(what)


def test_a_write_during_a_save_is_saved_after_it(bench):
    desk = bench()

    def save(id, value):
        desk.saves.append((id, value))
        if value == "1":
            desk.put("a", "2")
            assert desk.step() == 0, "nobody else may save the key meanwhile"

    desk.flusher = desk.make(save=save)
    desk.put("a", "1")
    desk.step()
    assert desk.stats().dirty == 1, "the acknowledgement of 1 must not remove 2"
    desk.step()
    assert desk.saves == [("a", "1"), ("a", "2")]
    assert desk.stats().dirty == 0


def test_savers_that_ask_get_the_write(bench):
    got: list[Write] = []
    desk = bench(save=lambda _, value, write: got.append(write), delete=lambda _, *, write: got.append(write))
    first = desk.put("a", "1")
    desk.step()
    second = desk.put("a", None)
    desk.step()
    assert got == [Write("a", "1", first, 1), Write("a", MISSING, second, 1)]


def test_batches_go_to_the_savers_for_many(bench):
    saved: list[list[Write]] = []
    deleted: list[list[Write]] = []
    desk = bench(save_many=saved.append, delete_many=deleted.append, options={"batch_size": 3})
    for key in "abcd":
        desk.put(key, key.upper())
    desk.put("b", None)
    assert [desk.step(), desk.step(), desk.step()] == [3, 1, 0]
    assert [[(w.id, w.value) for w in batch] for batch in saved] == [[("a", "A"), ("c", "C")], [("d", "D")]]
    assert [[w.id for w in batch] for batch in deleted] == [["b"]]


def test_a_batch_may_fail_key_by_key(bench):
    def save_many(writes) -> Mapping[str, Exception]:
        desk.saves += [(w.id, w.value) for w in writes]
        return {w.id: NotSaved("no") for w in writes if w.id == "b"}

    clock = Clock()
    desk = bench(save_many=save_many, clock=clock)
    for key in "abc":
        desk.put(key)
    desk.step()
    (left,) = drive(desk.buffer.records(desk.rt))
    assert (left.key, left.tries, left.suspect, left.last_error) == ("b", 1, False, "NotSaved: no")
    assert len(desk.saves) == 3


def test_one_poison_record_delays_only_itself(bench):
    def save_many(writes):
        if any(w.id == "k7" for w in writes):
            raise NotSaved("poison in the batch")
        desk.saves.extend((w.id, w.value) for w in writes)

    desk = bench(save_many=save_many, options={"max_attempts": 3}, clock=(clock := Clock()))
    for n in range(20):
        desk.put(f"k{n}")
    desk.step()
    assert sorted(key for key, _ in desk.saves) == sorted(f"k{n}" for n in range(20) if n != 7)
    assert desk.stats().dirty == 1
    while desk.stats().dirty:
        clock.time += 1
        desk.step()
    (dead,) = drive(desk.buffer.records(desk.rt, dead=True))
    assert (dead.key, dead.tries, dead.last_error) == ("k7", 3, "NotSaved: poison in the batch")
    assert desk.told(events.DeadLetter) == [
        events.DeadLetter("user", "k7", "NotSaved: poison in the batch", 3)
    ]
    assert [event.attempt for event in desk.told(events.SaveFailed)] == [1, 2]


def test_a_batch_of_unknown_outcome_settles(bench):
    def save_many(writes):
        if len(writes) > 1:
            raise OSError("connection lost half-way")
        desk.saves.extend((w.id, w.value) for w in writes)

    clock = Clock()
    desk = bench(save_many=save_many, clock=clock)
    desk.put("a")
    desk.put("b")
    desk.step()
    assert (desk.stats().dirty, desk.stats().settling) == (2, 2)
    assert len(desk.saves) == 2
    clock.time += 5
    while desk.step():
        pass
    assert desk.stats().dirty == 0
    assert len(desk.saves) >= 4, "saved once more after the settle time"


@pytest.mark.parametrize(("error", "settles"), [(OSError("lost"), True), (NotSaved("no"), False)])
def test_only_a_save_of_unknown_outcome_is_repeated(bench, error, settles):
    def save(id, value):
        desk.saves.append((id, value))
        if len(desk.saves) == 1:
            raise error

    clock = Clock()
    desk = bench(save=save, clock=clock)
    desk.put("a")
    for _ in range(10):
        desk.step()
        clock.time += 3
    assert len(desk.saves) == (3 if settles else 2)
    assert desk.stats().dirty == 0


def test_an_ordered_saver_settles_nothing(bench):
    def save(id, value):
        desk.saves.append((id, value))
        if len(desk.saves) == 1:
            raise OSError("lost")

    clock = Clock()
    desk = bench(save=save, clock=clock, options={"ordered_saver": True})
    desk.put("a")
    for _ in range(10):
        desk.step()
        clock.time += 3
    assert len(desk.saves) == 2


def test_not_saved_errors_of_the_users_own(tmp_path):
    savers = Savers(decode=str, decode_id=str, not_saved=(KeyError,))
    assert not savers.is_unknown(KeyError())
    assert not savers.is_unknown(NotSaved())
    assert savers.is_unknown(LookupError())


def test_back_off_doubles_with_jitter_up_to_its_bound(bench):
    clock = Clock()

    def save(id, value):
        raise NotSaved("down")

    desk = bench(save=save, clock=clock, options={"backoff": 1, "backoff_max": 10, "max_attempts": 7})
    desk.put("a")
    pauses = []
    while desk.stats().dirty:
        assert desk.step() == 1
        due = drive(desk.buffer.next_due(desk.rt))
        if due is not None:
            pauses.append(due - clock.time)
            clock.time = due - 0.001
            assert desk.step() == 0, "not before it is due"
            clock.time = due
    for pause, least in zip(pauses, [1, 2, 4, 8, 10, 10], strict=True):
        assert least <= pause <= min(least + 1, 10)
    assert desk.stats().dead == 1


def test_a_record_that_kills_its_flushers_is_given_up_too(bench):
    clock = Clock()
    desk = bench(clock=clock, options={"max_attempts": 3})
    desk.put("a")
    for n in range(4):
        drive(desk.buffer.claim(desk.rt, 10, b"victim-%d" % n, 5))
        clock.time += 6
    assert desk.step() == 1
    assert desk.saves == []
    assert desk.stats().dead == 1
    (event,) = desk.told(events.DeadLetter)
    assert "died or paused" in event.error


def test_a_paused_flusher_cannot_bring_an_old_value_back_for_good(bench):
    """The first flusher hangs in its save of 1 past its claim; meanwhile 2 is put, saved and acknowledged."""
    clock = Clock()
    saving, go_on = threading.Event(), threading.Event()

    def slow(id, value):
        saving.set()
        assert go_on.wait(20)
        desk.origin[id] = value

    desk = bench(clock=clock)
    first = desk.make(save=slow)
    desk.put("a", "1")
    thread = threading.Thread(target=desk.step, args=(first,))
    thread.start()
    assert saving.wait(20)
    clock.time += 6  # the claim is over: this clock stood still for the heartbeat
    desk.put("a", "2")
    assert desk.step() == 1
    assert desk.origin == {"a": "2"}
    assert desk.stats().settling == 1, "a save that may still land: not clean yet"
    go_on.set()
    thread.join(20)
    assert desk.origin == {"a": "1"}, "the late save landed over the newer one"
    assert desk.stats().dirty == 1, "its acknowledgement removed nothing"
    clock.time += 5
    assert desk.step() == 1
    assert desk.origin == {"a": "2"}
    assert desk.stats().dirty == 0


def test_the_claim_is_renewed_while_a_long_save_runs(bench):
    desk = bench(options={"claim": 0.3})
    looks = []

    def save(id, value):
        started = THREADS.monotonic()
        while THREADS.monotonic() - started < 1.0:
            looks.append(drive(desk.buffer.claim(THREADS, 10, THREADS.new_id(), 5)))
            threading.Event().wait(0.05)

    desk.flusher = desk.make(save=save)
    desk.put("a")
    desk.step()
    assert looks
    assert not any(looks)
    assert desk.stats().dirty == 0


def test_a_round_ends_after_the_renewal_that_is_under_way(bench):
    """One that began after the buffer was closed would open its file anew."""
    desk = bench(options={"claim": 0.03})
    began, said = threading.Event(), []

    async def renew(rt, token, claim):
        began.set()
        threading.Event().wait(0.3)
        said.append("renewed")
        return 1

    desk.flusher = desk.make(save=lambda *_: began.wait(10))
    desk.flusher.buffer.renew = renew
    desk.put("a")
    desk.step()
    said.append("round ended")
    assert said == ["renewed", "round ended"]


def test_a_slot_that_could_not_be_dropped_keeps_the_record(bench):
    clock = Clock()
    desk = bench(clock=clock, options={"max_attempts": 2})

    async def broken(rt, keys):
        raise ConnectionError("tier down")

    working, desk.flusher._rounds._after_save = desk.flusher._rounds._after_save, broken
    desk.put("a")
    for _ in range(4):
        assert desk.step() == 1
        clock.time += 60
    assert (desk.stats().dirty, desk.stats().dead) == (1, 0), "it is saved: no dead letter"
    desk.flusher._rounds._after_save = working
    desk.step()
    assert desk.dropped == ["a"]
    assert desk.stats().dirty == 0


def test_full_raises(bench):
    desk = bench(options={"max_dirty": 1, "on_full": "raise"})
    desk.put("a")
    with pytest.raises(BufferFull):
        desk.put("b")
    desk.put("a", "again")


def test_full_blocks_until_there_is_room_or_the_time_is_over(bench):
    desk = bench(options={"max_dirty": 1, "full_timeout": 0.05})
    desk.put("a")
    with pytest.raises(BufferFull, match=r"waited 0\.05 s"):
        desk.put("b")
    desk.options = BehindOptions(max_dirty=1, full_timeout=30)
    desk.flusher = desk.make(save=desk.save)
    waiting = threading.Thread(target=desk.put, args=("b",))
    waiting.start()
    while not desk.flusher._watchers:
        threading.Event().wait(0.002)
    desk.step()
    waiting.join(20)
    assert [record.key for record in drive(desk.buffer.records(THREADS))] == ["b"]
    with pytest.raises(BufferFull):
        drive(desk.flusher.accept(THREADS, [NewRecord("x", b"", b""), NewRecord("y", b"", b"")]))


def test_full_saves_through_while_it_holds_the_key(bench):
    desk = bench(options={"max_dirty": 1, "on_full": "through"})
    desk.put("a", "1")

    def save(id, value):
        desk.saves.append((id, value))
        if value == "direct":
            assert desk.step() == 1, "the flusher gets only the other key"
            desk.put("b", "newer")
            assert desk.step() == 0

    desk.flusher = desk.make(save=save)
    desk.put("b", "direct")
    assert desk.saves == [("b", "direct"), ("a", "1")]
    desk.step()
    assert desk.saves[2:] == [("b", "newer")]
    assert desk.stats().dirty == 0


def test_a_failed_save_through_is_its_callers_and_leaves_no_claim(bench):
    errors: list[Exception] = [NotSaved("refused"), OSError("lost")]

    saved = {}

    def save(id, value):
        if errors:
            raise errors.pop(0)
        saved[id] = value

    clock = Clock()
    desk = bench(options={"max_dirty": 1, "on_full": "through", "full_timeout": 0}, clock=clock, save=save)
    drive(desk.buffer.append(desk.rt, [NewRecord("a", b"a", b"1")], delay=1000))
    with pytest.raises(NotSaved):
        desk.put("b")
    assert drive(desk.buffer.next_due(desk.rt)) == clock.time + 1000
    with pytest.raises(OSError, match="lost"):
        desk.put("b")
    # It may still land, also over a save through that is acknowledged now: nobody would repair that.
    with pytest.raises(BufferFull, match="might still land"):
        desk.put("b", "2")
    assert saved == {}
    desk.step(hurry=True)  # room
    desk.put("b", "3")
    assert drive(desk.buffer.read(desk.rt, ["b"]))["b"].suspect


def test_what_is_held_for_a_failed_save_settles_once(bench):
    clock = Clock()

    def save(id, value):
        raise OSError("lost")

    desk = bench(options={"max_dirty": 1, "on_full": "through", "settle": 5}, clock=clock, save=save)
    drive(desk.buffer.append(desk.rt, [NewRecord("a", b"a", b"1")], delay=1000))
    with pytest.raises(OSError, match="lost"):
        desk.put("b")
    assert desk.step(keys=["b"], hurry=True) == 0
    clock.time += 5
    assert desk.step(keys=["b"]) == 1
    assert desk.dropped == ["b"]
    assert drive(desk.buffer.next_due(desk.rt)) == clock.time + 995  # only a


def test_what_is_held_by_a_dead_writer_settles_after_its_claim(bench):
    clock = Clock()
    desk = bench(options={"settle": 5}, clock=clock)
    drive(desk.buffer.hold(desk.rt, "b", b"12345678", 1.0))
    clock.time += 2
    assert desk.step() == 1
    assert drive(desk.buffer.next_due(desk.rt)) == clock.time + 5
    clock.time += 5
    assert desk.step() == 1
    assert desk.dropped == ["b", "b"]
    assert drive(desk.buffer.next_due(desk.rt)) is None


def test_flush_complains_of_nothing_that_is_only_held(bench):
    desk = bench()
    drive(desk.buffer.hold(desk.rt, "b", b"12345678", 60.0))
    assert drive(desk.buffer.next_due(desk.rt)) is not None
    drive(desk.flusher.flush(desk.rt, 0))
    desk.put("a")
    with pytest.raises(FlushTimeout, match=r"1 key\(s\) still dirty"):
        drive(desk.flusher.flush(desk.rt, 0))


def test_the_background_thread_saves_by_itself(bench):
    desk = bench(where="background")
    for n in range(50):
        desk.put(f"k{n}", str(n))
    drive(desk.flusher.flush(THREADS, 20))
    assert desk.origin == {f"k{n}": str(n) for n in range(50)}
    stats = drive(desk.flusher.stats(THREADS))
    assert (stats.buffer.dirty, stats.failed, stats.lag) == (0, 0, 0)


def test_flush_does_not_wait_for_the_window(bench):
    desk = bench(where="background", options={"delay": 3600})
    desk.put("a")
    assert desk.saves == []
    drive(desk.flusher.flush(THREADS, 20))
    assert len(desk.saves) == 1


def test_flush_waits_for_a_buffer_that_is_away_until_its_deadline(bench, monkeypatch):
    clock = Clock()
    desk = bench(clock=clock)
    desk.put("a")
    real, asked = desk.buffer.next_due, []

    async def away(rt, **more):
        asked.append(clock.time)
        if len(asked) <= 3:
            raise BufferUnavailable("LOADING")
        return await real(rt, **more)

    async def sleep(seconds):
        clock.time += seconds

    monkeypatch.setattr(desk.rt, "sleep", sleep)
    monkeypatch.setattr(desk.buffer, "next_due", away)
    with pytest.raises(BufferUnavailable, match="LOADING"):
        drive(desk.flusher.flush(desk.rt))  # without a deadline there is nothing to wait for
    drive(desk.flusher.flush(desk.rt, 10))
    assert desk.origin == {"a": "v"}
    asked.clear()
    begun = clock.time
    with pytest.raises(BufferUnavailable, match="LOADING"):
        drive(desk.flusher.flush(desk.rt, 0.75))
    assert clock.time - begun == 0.75


def test_flush_sees_what_is_given_up_behind_a_thousand_older_ones(bench):
    def save(id, value):
        raise NotSaved("no")

    desk = bench(save=save, options={"max_attempts": 1, "batch_size": 500})
    for n in range(1_001):
        drive(desk.flusher.buffer.append(desk.rt, [NewRecord(f"k{n}", b"k", b"1")]))
    with pytest.raises(FlushTimeout, match="1001 record"):
        drive(desk.flusher.flush(desk.rt, 60))
    desk.put("last")
    with pytest.raises(FlushTimeout, match="1 record"):
        drive(desk.flusher.flush(desk.rt, 60))


@pytest.mark.parametrize(
    "answer",
    [
        lambda writes: {writes[0].id: ValueError},
        lambda writes: {"nobody": ValueError("no")},
        lambda writes: [ValueError("no")],
    ],
    ids=["a class", "no id of its own", "a list"],
)
def test_a_report_of_failures_that_is_not_understood_is_no_success(bench, answer):
    desk = bench(save_many=answer, options={"max_attempts": 1})
    desk.put("a")
    desk.put("b")
    with pytest.raises(FlushTimeout, match="a saver for many returned"):
        drive(desk.flusher.flush(desk.rt, 10))
    assert desk.stats().dead == 2


def test_flush_names_what_is_still_dirty(bench):
    def save(id, value):
        raise NotSaved("database down")

    desk = bench(where="background", save=save)
    desk.put("a")
    with pytest.raises(FlushTimeout, match="database down") as caught:
        drive(desk.flusher.flush(THREADS, 0.2))
    assert caught.value.dirty == ["a"]
    with pytest.raises(FlushTimeout):
        drive(desk.flusher.close(THREADS, 0.2))
    assert not [t for t in threading.enumerate() if "flusher of user" in t.name]


def test_flush_keeps_its_deadline_with_a_saver_that_hangs(bench):
    go_on = threading.Event()
    desk = bench(where="background", save=lambda _, value: go_on.wait(20))
    desk.put("a")
    started = THREADS.monotonic()
    with pytest.raises(FlushTimeout):
        drive(desk.flusher.flush(THREADS, 0.2))
    assert THREADS.monotonic() - started < 10
    go_on.set()
    drive(desk.flusher.close(THREADS, 10))


def test_flush_raises_where_a_record_was_given_up_meanwhile(bench):
    def save(id, value):
        raise NotSaved("poison")

    desk = bench(where="background", save=save, options={"max_attempts": 2, "backoff": 0.01})
    desk.put("a")
    with pytest.raises(FlushTimeout, match="dead letters now, the first: 'a'") as caught:
        drive(desk.flusher.flush(THREADS, 20))
    assert caught.value.dirty == ["a"]
    drive(desk.flusher.flush(THREADS, 1))


def test_records_of_an_earlier_process_are_saved_when_the_repository_is_made(bench):
    desk = bench()
    assert not desk.flusher.resume()
    desk.put("a", "left behind")
    later = desk.make("background", save=desk.save)
    assert later.resume()
    drive(later.flush(THREADS, 20))
    assert desk.origin == {"a": "left behind"}
    drive(later.close(THREADS))
    assert not desk.make("background", save=desk.save).resume()


def test_close_and_then_a_put_starts_it_again(bench):
    desk = bench(where="background")
    desk.put("a")
    drive(desk.flusher.close(THREADS, 10))
    desk.put("b")
    drive(desk.flusher.flush(THREADS, 10))
    assert set(desk.origin) == {"a", "b"}


def test_async_savers_run_on_the_loop(bench):
    loops = []

    async def save(id, value):
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        desk.origin[id] = value

    desk = bench(where="background", save=save)
    with pytest.raises(ConfigurationError, match="await aput"):
        desk.put("a")

    async def main(key):
        await desk.flusher.accept(AIO, [NewRecord(key, key.encode(), b"1")])
        await desk.flusher.flush(AIO, 20)
        assert loops[-1] is asyncio.get_running_loop()

    asyncio.run(main("a"))
    asyncio.run(main("b"))
    assert desk.origin == {"a": "1", "b": "1"}
    drive(desk.flusher.close(THREADS))


def test_who_leaves_async_saving_to_a_worker_may_block(bench):
    async def save(id, value):
        desk.origin[id] = value

    desk = bench(where="worker", save=save)
    desk.put("a")
    with pytest.raises(ConfigurationError, match="await aput"):
        drive(desk.flusher.step(THREADS))

    async def worker():
        await desk.flusher.step(AIO)

    waits = threading.Thread(target=lambda: drive(desk.flusher.flush(THREADS, 20)))
    waits.start()
    asyncio.run(worker())
    waits.join(20)
    assert (waits.is_alive(), desk.origin) == (False, {"a": "v"})

    full = bench(where="worker", save=save, options={"on_full": "through"})
    with pytest.raises(ConfigurationError, match="await aput"):  # it would be saved here
        full.put("b")


def test_closing_after_the_loop_is_gone_names_what_async_savers_left(bench):
    async def save(id, value):
        await asyncio.sleep(60)

    desk = bench(where="background", save=save)

    async def main():
        await desk.flusher.accept(AIO, [NewRecord("a", b"a", b"1")])
        await asyncio.sleep(0.05)

    asyncio.run(main())
    with pytest.raises(FlushTimeout) as caught:
        drive(desk.flusher.close(THREADS))
    assert caught.value.dirty == ["a"]


def test_the_blocking_face_may_close_while_another_threads_loop_saves(bench):
    async def save(id, value):
        await asyncio.sleep(0.05)
        desk.origin[id] = value

    desk = bench(where="background", save=save)
    closed = threading.Event()

    def close():
        drive(desk.flusher.close(THREADS, 20))
        closed.set()

    async def main():
        await desk.flusher.accept(AIO, [NewRecord("a", b"a", b"1")])
        thread = threading.Thread(target=close)
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0.01)

    asyncio.run(main())
    assert closed.is_set()
    assert desk.origin == {"a": "1"}


def test_sync_savers_serve_the_awaiting_face_from_the_thread(bench):
    desk = bench(where="background")

    async def main():
        await asyncio.gather(
            *(desk.flusher.accept(AIO, [NewRecord(f"k{n}", b"k%d" % n, b"1")]) for n in range(50))
        )
        await desk.flusher.flush(AIO, 20)
        await desk.flusher.close(AIO)

    asyncio.run(main())
    assert len(desk.origin) == 50


def test_a_broken_buffer_is_told_and_does_not_end_the_flusher(bench):
    desk = bench(where="background", options={"poll": 0.01})
    desk.put("a")
    drive(desk.flusher.flush(THREADS, 10))
    working, failed = desk.buffer.claim, threading.Event()

    async def claim(*args, **kwargs):
        failed.set()
        raise OSError("disk gone")

    desk.buffer.claim = claim
    desk.put("b")
    assert failed.wait(20)
    desk.buffer.claim = working
    drive(desk.flusher.flush(THREADS, 20))
    assert desk.told(events.BackgroundFailed)
    assert "b" in desk.origin


def test_elsewhere_means_that_flush_only_waits(bench):
    told: list[str] = []
    desk = bench(where="celery")
    desk.flusher = desk.make("celery", notify=told.extend, save=desk.save)
    desk.put("a")
    assert told == ["a"]
    with pytest.raises(FlushTimeout):
        drive(desk.flusher.flush(THREADS, 0.1))
    assert desk.saves == []
    found = find_flusher("shop", "user")
    assert found == desk.flusher
    desk.step(keys=["a"])
    drive(desk.flusher.flush(THREADS, 0.1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"on_full": "blok"},
        {"batch_size": 0},
        {"max_attempts": True},
        {"delay": -1},
        {"claim": 0},
        {"poll": "x"},
    ],
)
def test_wrong_options(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        BehindOptions(**wrong)
