"""What ends a flusher and what does not: savers that are cancelled or exit, cancelled tasks, signals, loops that stop."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from cachewright import events
from cachewright.behind.backoff import pause_after
from cachewright.behind.buffers.base import NewRecord
from cachewright.errors import WouldDeadlockError
from cachewright.runtime.aio import AIO
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS
from tests.unit.flusher_bench import Clock

QUICK = {"backoff": 0.001, "settle": 0.001, "poll": 0.05}


class Leaves(BaseException):
    """As the exits of other libraries: gevent's, pytest's."""


async def append(desk, *keys):
    await desk.flusher.accept(AIO, [NewRecord(key, key.encode(), b"v") for key in keys])


async def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


def record_of(desk, key):
    return drive(desk.buffer.read(desk.rt, [key]))[key]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), Leaves()])
def test_a_saver_that_exits_is_a_failure_of_its_record_and_the_thread_goes_on(bench, error):
    ends, threads = [error], set()

    def save(id, value):
        threads.add(threading.get_ident())
        if id == "a" and ends:
            raise ends.pop()
        desk.save(id, value)

    desk = bench(where="background", save=save, options=QUICK)
    desk.put("a")
    desk.put("b")
    drive(desk.flusher.flush(THREADS, 20))
    assert desk.origin == {"a": "v", "b": "v"}
    assert desk.saves.count(("a", "v")) == 2  # of unknown outcome: it settled
    assert len(threads) == 1
    (failed,) = desk.told(events.SaveFailed)
    assert (failed.key, failed.error, failed.attempt) == ("a", error, 1)
    told = [event.error for event in desk.told(events.BackgroundFailed)]
    assert told == ([] if isinstance(error, asyncio.CancelledError) else [error])


def test_a_saver_that_always_exits_makes_a_dead_letter(bench):
    def save(id, value):
        raise SystemExit("not here")

    desk = bench(where="background", save=save, options={**QUICK, "max_attempts": 2})
    desk.put("a")
    deadline = time.monotonic() + 20
    while not desk.stats().dead:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert record_of(desk, "a").last_error == "SystemExit: not here"
    assert desk.flusher.is_running()


def test_a_batch_that_exits_is_saved_singly(bench):
    def save_many(writes):
        if len(writes) > 1:
            raise Leaves
        desk.save(writes[0].id, writes[0].value)

    desk = bench(save_many=save_many, options=QUICK)
    desk.put("a")
    desk.put("b")
    assert desk.step() == 2
    assert desk.origin == {"a": "v", "b": "v"}


def test_a_cancellation_inside_of_an_async_saver_is_its_records_failure(bench):
    tries = []

    async def save(id, value):
        tries.append(id)
        if len(tries) == 1:
            query = asyncio.ensure_future(asyncio.sleep(60))
            query.cancel()
            await query
        desk.save(id, value)

    desk = bench(where="background", save=save, options=QUICK)

    async def main():
        await append(desk, "a")
        await until(lambda: desk.told(events.SaveFailed))
        assert desk.flusher.is_running()
        await desk.flusher.close(AIO, 20)

    asyncio.run(main())
    assert desk.origin == {"a": "v"}
    assert isinstance(desk.told(events.SaveFailed)[0].error, asyncio.CancelledError)


def test_a_plain_saver_that_exits_in_a_pools_thread_does_not_stop_the_event_loop(bench):
    def save(id, value):
        if not desk.saves:
            desk.saves.append((id, None))
            raise SystemExit(3)
        desk.save(id, value)

    desk = bench(save=save, options={"backoff": 60})

    async def main():
        await append(desk, "a")
        return await desk.flusher.step(AIO)

    assert asyncio.run(main()) == 1
    assert record_of(desk, "a").last_error == "SystemExit: 3"


def test_who_is_cancelled_in_a_save_gives_its_claim_back(bench):
    saving = []

    async def save(id, value):
        saving.append(id)
        await asyncio.sleep(60)

    desk = bench(where="background", save=save, options={"claim": 60.0})

    async def main():
        await append(desk, "a")
        await until(lambda: saving)

    asyncio.run(main())  # its end cancels the flusher
    assert not desk.flusher.is_running()
    record = record_of(desk, "a")
    assert (record.token, record.suspect, record.tries) == (None, True, 0)
    assert "ended by CancelledError" in record.last_error


@pytest.mark.parametrize("swallowed", [0, 1])
def test_a_task_that_was_cancelled_before_tells_its_own_end_from_a_savers(bench, swallowed):
    async def save(id, value):
        query = asyncio.ensure_future(asyncio.sleep(60))
        query.cancel()
        await query

    desk = bench(save=save, options={"backoff": 60})

    async def main():
        for _ in range(swallowed):
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                pass
        await append(desk, "a")
        return await desk.flusher.step(AIO)

    assert asyncio.run(main()) == 1
    assert record_of(desk, "a").tries == 1


def test_who_is_cancelled_while_it_claims_gives_back_what_it_may_have_got(bench):
    desk = bench(options={"claim": 60.0})
    desk.put("a")
    claim, got = desk.buffer.claim, asyncio.Event()

    async def slow(*args, **kwargs):
        await claim(*args, **kwargs)
        got.set()
        await asyncio.sleep(60)

    async def main():
        desk.buffer.claim = slow
        task = asyncio.create_task(desk.flusher.step(AIO))
        await got.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()

    asyncio.run(main())
    record = record_of(desk, "a")
    assert (record.token, record.suspect) == (None, False)


def test_an_exit_on_the_main_thread_ends_the_call_and_gives_the_claim_back(bench):
    def save(id, value):
        raise KeyboardInterrupt

    clock = Clock()
    desk = bench(save=save, clock=clock, options={"claim": 60.0, "backoff": 1})
    desk.put("a")
    with pytest.raises(KeyboardInterrupt):
        desk.step()
    record = record_of(desk, "a")
    assert (record.token, record.tries) == (None, 1)  # it may be the record that does it
    assert clock.time + 1 <= record.not_before <= clock.time + 2


def test_who_is_cancelled_while_it_saves_through_leaves_the_key_to_settle(bench):
    saving = []

    async def save(id, value):
        saving.append(id)
        await asyncio.sleep(60)

    desk = bench(
        save=save, options={"max_dirty": 1, "on_full": "through", "claim": 60.0, "ordered_saver": True}
    )

    async def main():
        await append(desk, "a")
        task = asyncio.create_task(append(desk, "b"))
        await until(lambda: saving)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await desk.flusher.step(AIO, keys=["b"], hurry=True) == 0  # it may still land

    asyncio.run(main())
    ask = "SELECT token, suspect FROM record WHERE state = 2"
    assert drive(desk.buffer._file.read(THREADS, lambda db: db.execute(ask).fetchall())) == [(None, 1)]


def test_it_starts_anew_where_its_loop_stands_still(bench):
    loops = []

    async def save(id, value):
        loops.append(asyncio.get_running_loop())
        desk.save(id, value)

    desk = bench(where="background", save=save, options={"delay": 0.05})
    first = asyncio.new_event_loop()
    try:
        first.run_until_complete(append(desk, "a"))
        assert not desk.flusher.is_running()

        async def second(key):
            await append(desk, key)
            await until(lambda: set(desk.origin) >= {"a", key})
            assert set(loops) == {asyncio.get_running_loop()}

        asyncio.run(second("b"))
        loops.clear()
        # the one that was left on the first loop has ended, and a new one works there
        first.run_until_complete(append(desk, "c"))
        first.run_until_complete(until(lambda: "c" in desk.origin))
        flushers = [task for task in asyncio.all_tasks(first) if "flusher of" in task.get_name()]
        assert (set(loops), len(flushers)) == ({first}, 1)
        first.run_until_complete(desk.flusher.close(AIO))
    finally:
        first.close()


def test_flush_starts_it_where_its_loop_stands_still(bench):
    async def save(id, value):
        desk.save(id, value)

    desk = bench(where="background", save=save, options={"delay": 60})
    first = asyncio.new_event_loop()
    try:
        first.run_until_complete(append(desk, "a"))

        async def second():
            await desk.flusher.flush(AIO, 20)
            await desk.flusher.close(AIO, 20)

        asyncio.run(second())
        assert desk.origin == {"a": "v"}
        first.run_until_complete(asyncio.sleep(0.01))
    finally:
        first.close()


def test_a_blocking_call_that_holds_up_the_loop_that_saves_is_refused(bench, monkeypatch):
    async def save(id, value):
        desk.save(id, value)

    desk = bench(where="background", save=save, options={"delay": 60})

    async def main():
        await append(desk, "a")
        with pytest.raises(WouldDeadlockError, match="await aflush"):
            drive(desk.flusher.flush(THREADS, 20))
        with pytest.raises(WouldDeadlockError, match="await aclose"):
            drive(desk.flusher.close(THREADS, 20))
        assert not desk.flusher.is_running()
        await desk.flusher.flush(AIO, 20)
        assert desk.origin == {"a": "v"}
        assert desk.flusher.is_running()
        with pytest.raises(WouldDeadlockError, match="await aflush"):  # not only where something is dirty
            drive(desk.flusher.flush(THREADS, 20))
        monkeypatch.setattr(THREADS, "sleep", None)
        drive(desk.flusher.close(THREADS, 20))  # nothing to wait for, and not for its end
        assert not desk.flusher.is_running()

    asyncio.run(main())


def test_an_outage_of_any_length_has_a_pause():
    assert pause_after(1, 0.5, 2.0, 1.0) == 1.0
    assert pause_after(100_000, 0.5, 2.0, 0.0) == 1.0
