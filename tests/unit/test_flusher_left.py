"""What a round's end leaves behind: a buffer that was away when a save ended, and claims that were gone by then."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from cachewright import events
from cachewright.behind.buffers.base import NewRecord, Record
from cachewright.errors import BufferUnavailable, BufferUnconfirmed, NotSaved
from cachewright.runtime.aio import AIO
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS
from tests.unit.flusher_bench import Clock


class Faulty:
    """Fails calls of a buffer's method: before it did what it was asked, or after."""

    def __init__(self, buffer, name) -> None:
        self.real, self.times, self.done, self.calls = getattr(buffer, name), 0, False, 0
        setattr(buffer, name, self.call)

    async def call(self, rt, *args, **more):
        self.calls += 1
        if not self.times:
            return await self.real(rt, *args, **more)
        self.times -= 1
        if self.done:
            await self.real(rt, *args, **more)
            raise BufferUnconfirmed("the answer was lost")
        raise BufferUnavailable("away")


@pytest.mark.parametrize("outage", [0.5, 60.0])
@pytest.mark.parametrize("done", [False, True])
def test_an_acknowledgement_that_failed_is_repeated_and_nothing_is_saved_again(bench, outage, done):
    clock = Clock()
    desk = bench(clock=clock)
    away = Faulty(desk.buffer, "acknowledge")
    away.times, away.done = 2, done
    desk.put("a")
    with pytest.raises((BufferUnavailable, BufferUnconfirmed)):
        desk.step()
    clock.time += outage
    with pytest.raises((BufferUnavailable, BufferUnconfirmed)):
        desk.step()  # it claims nothing, or it would take over what it has saved itself
    assert desk.step() == 1
    assert desk.saves == [("a", "v")]
    assert desk.stats().dirty == 0
    assert drive(desk.flusher.stats(desk.rt)).saved == 1
    assert desk.step() == 0
    assert away.calls == 3
    assert desk.events == []


def test_nobody_waits_for_a_claim_that_nobody_holds(bench):
    failing = threading.Event()

    class Away(Faulty):
        async def call(self, rt, *args, **more):
            failing.set()
            return await super().call(rt, *args, **more)

    desk = bench(where="background", options={"claim": 600.0, "poll": 0.01})
    Away(desk.buffer, "acknowledge").times = 3
    desk.put("a")
    assert failing.wait(20)
    drive(desk.flusher.flush(THREADS, 60))
    assert desk.saves == [("a", "v")]


def test_a_newer_state_that_came_during_the_outage_is_saved_at_once(bench):
    clock = Clock()
    desk = bench(clock=clock)
    Faulty(desk.buffer, "acknowledge").times = 1
    desk.put("a", "1")
    with pytest.raises(BufferUnavailable):
        desk.step()
    desk.put("a", "2")
    desk.step()
    assert desk.saves == [("a", "1"), ("a", "2")]
    assert desk.stats().dirty == 0


@pytest.mark.parametrize("done", [False, True])
def test_a_failure_that_could_not_be_noted_is_noted_and_told_later(bench, done):
    def save(id, value):
        desk.saves.append((id, value))
        raise NotSaved("no")

    clock = Clock()
    desk = bench(save=save, clock=clock, options={"max_attempts": 2, "backoff": 1.0})
    away = Faulty(desk.buffer, "fail")
    desk.put("a")
    for told in (events.SaveFailed, events.DeadLetter):
        away.times, away.done = 1, done
        with pytest.raises((BufferUnavailable, BufferUnconfirmed)):
            desk.step()
        assert desk.told(told) == []
        assert desk.step() == 1
        assert len(desk.told(told)) == 1
        clock.time += 10
    assert len(desk.saves) == 2
    assert len(desk.events) == 2
    assert desk.stats().dead == 1


def test_another_process_that_took_the_claim_over_is_not_disturbed_by_the_late_end(bench, caplog):
    clock = Clock()
    desk = bench(clock=clock)
    Faulty(desk.buffer, "acknowledge").times = 1
    desk.put("a")
    with pytest.raises(BufferUnavailable):
        desk.step()
    clock.time += 6
    (record,) = drive(desk.buffer.claim(desk.rt, 10, b"another!", 5.0))
    with caplog.at_level(logging.WARNING):
        assert desk.step() == 1
    assert drive(desk.buffer.read(desk.rt, ["a"]))["a"].token == record.token
    assert desk.told(events.ClaimLost) == [events.ClaimLost("user", "a", True)]
    assert "user: the save of 'a' took longer than its claim lived" in caplog.text
    assert "its newest state is saved once more" in caplog.text


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_a_save_that_outlived_its_claim_is_told(bench, newer, ordered):
    """Its process stands still for 6 seconds; another one takes over and saves, before or after a newer write."""

    def save(id, value):
        desk.saves.append((id, value))
        if len(desk.saves) == 1:
            if newer:
                desk.put("a", "2")
            clock.time += 6
            assert desk.step(other) == 1
            clock.time += 6
            desk.step(other)  # it settled
        desk.origin[id] = value

    clock = Clock()
    desk = bench(save=save, clock=clock, options={"ordered_saver": ordered})
    other = desk.make(save=save)
    desk.put("a", "1")
    assert desk.step() == 1
    assert desk.origin == {"a": "1"}, "the older state landed over it"
    told = desk.told(events.ClaimLost)
    assert told == ([] if ordered else [events.ClaimLost("user", "a", False)])
    for one in told:
        assert "may be overwritten: look at the origin" in str(one)
        assert "ordered_saver=True" in str(one)
        assert "longer claim" in str(one)


def test_who_saves_when_the_older_save_lands_saves_once_more(bench):
    def save(id, value):
        desk.saves.append((id, value))
        if value == "1":
            clock.time += 6
            desk.step(other)  # takes it over
            clock.time += 6
            desk.step(other)  # it settled
            desk.put("a", "2")
            held.extend(drive(desk.buffer.claim(desk.rt, 1, b"another!", 5.0)))
        desk.origin[id] = value

    clock = Clock()
    held: list[Record] = []
    desk = bench(save=save, clock=clock)
    other = desk.make(save=lambda *_: None)
    desk.put("a", "1")
    desk.step()
    assert not held[0].suspect
    assert desk.told(events.ClaimLost) == [events.ClaimLost("user", "a", True)]
    assert drive(desk.buffer.read(desk.rt, ["a"]))["a"].suspect


async def leave(saving) -> None:
    """A saver that is cancelled in its first save."""
    saving.append(1)
    if len(saving) == 1:
        await asyncio.sleep(60)


def test_what_could_not_be_given_back_is_given_back_later(bench):
    saving: list[int] = []

    async def save(id, value):
        desk.save(id, value)
        await leave(saving)

    desk = bench(save=save, options={"claim": 600.0, "settle": 0.001})

    async def main():
        await desk.flusher.accept(AIO, [NewRecord("a", b"a", b"v")])
        Faulty(desk.buffer, "fail").times = 1
        task = asyncio.create_task(desk.flusher.step(AIO))
        while not saving:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (told,) = desk.told(events.BackgroundFailed)
        assert told.where == "giving back a claim of user"
        await desk.flusher.flush(AIO, 60)

    asyncio.run(main())
    assert desk.stats().dirty == 0


def test_who_is_cancelled_in_an_acknowledgement_repeats_that(bench):
    async def save(id, value):
        desk.save(id, value)

    desk = bench(save=save, options={"claim": 600.0})

    class Cancelled(Faulty):
        async def call(self, rt, *args, **more):
            if self.times:
                self.times -= 1
                raise asyncio.CancelledError
            return await super().call(rt, *args, **more)

    async def main():
        await desk.flusher.accept(AIO, [NewRecord("a", b"a", b"v")])
        Cancelled(desk.buffer, "acknowledge").times = 1
        with pytest.raises(asyncio.CancelledError):
            await desk.flusher.step(AIO)

    asyncio.run(main())
    assert (desk.saves, desk.stats().dirty) == ([("a", "v")], 0), "it is known to be saved"


def test_a_save_through_whose_end_failed_keeps_nobody_from_the_key(bench):
    clock = Clock()
    desk = bench(clock=clock, options={"max_dirty": 1, "on_full": "through", "claim": 600.0, "settle": 0.0})
    desk.put("a")
    away = Faulty(desk.buffer, "acknowledge")
    away.times = 1
    with pytest.raises(BufferUnavailable):
        desk.put("b", "1")
    desk.put("c")  # through, and catches up
    desk.put("b", "2")
    assert desk.origin == {"b": "2", "c": "v"}
    assert away.calls == 4


def test_a_forked_child_leaves_its_parents_ends_alone(bench):
    desk = bench(clock=Clock())
    Faulty(desk.buffer, "acknowledge").times = 1
    desk.put("a")
    with pytest.raises(BufferUnavailable):
        desk.step()
    desk.flusher._pid -= 1
    assert desk.step() == 0
    assert desk.stats().dirty == 1
