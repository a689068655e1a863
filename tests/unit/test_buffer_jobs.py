"""Who is woken when a shared transaction has ended: tasks at once, threads each by the one before."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from cachewright.behind.buffers import open_buffer
from cachewright.behind.buffers.base import NewRecord
from cachewright.behind.buffers.sqlite_jobs import Job, end_all
from cachewright.runtime.base import drive
from cachewright.runtime.process import wait_until
from cachewright.runtime.threads import THREADS, Bell, ThreadRuntime


def waiting_job(*, thread: bool = True) -> Job:
    job = Job(0, None, passes_on=thread)
    job.bell = Bell()
    return job


def rung(*jobs: Job) -> list[bool]:
    return [job.bell is not None and job.bell.is_set() for job in jobs]


def end(*jobs: Job) -> None:
    end_all(jobs, [(n, None) for n in range(len(jobs))])
    assert [job.result for job in jobs] == list(range(len(jobs)))
    assert all(job.ended for job in jobs)


def test_each_thread_wakes_the_next_and_tasks_are_woken_at_once() -> None:
    first, task, second, third = (
        waiting_job(),
        waiting_job(thread=False),
        waiting_job(),
        waiting_job(),
    )
    end(first, task, second, third)
    assert rung(first, task, second, third) == [True, True, False, False]
    first.leave()
    assert rung(second, third) == [True, False]
    second.leave()
    assert rung(third) == [True]
    third.leave()


def test_one_that_saw_the_end_before_it_waited_wakes_the_next_all_the_same() -> None:
    first, second = Job(0, None, passes_on=True), waiting_job()
    end(first, second)
    assert rung(second) == [False]
    first.leave()
    assert rung(second) == [True]


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_who_has_left_before_the_end_is_passed_over(gone: int) -> None:
    jobs = [waiting_job() for _ in range(3)]
    jobs[gone].leave()
    end(*jobs)
    there = [job for n, job in enumerate(jobs) if n != gone]
    assert rung(*there) == [True, False]
    there[0].leave()
    assert rung(*there) == [True, True]


def test_who_leaves_while_the_others_are_ended_wakes_the_next() -> None:
    first, second = waiting_job(), waiting_job()

    class Leaves(Job):
        """Interrupted between the looks of `end_all` at it."""

        @property
        def left(self) -> bool:
            return self.gone

        @left.setter
        def left(self, value: bool) -> None:
            self.gone = value

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "next" and value is not None:
                self.leave()

    middle = Leaves(0, None, passes_on=True)
    end_all([first, middle, second], [(None, None)] * 3)
    assert rung(first, second) == [True, True]


class Patient(ThreadRuntime):
    """Waits for its bell alone: a look now and then would hide that nobody has rung it."""

    async def wait(self, waiter: Any, timeout: float | None) -> bool:
        return await super().wait(waiter, 60.0)


class Interrupted(ThreadRuntime):
    async def wait(self, waiter: Any, timeout: float | None) -> bool:
        raise KeyboardInterrupt


def test_a_thread_that_is_interrupted_while_it_waits_keeps_nobody_waiting(tmp_path: Path) -> None:
    buffer: Any = open_buffer(f"sqlite:///{tmp_path}/x.db", "s")
    taken: list[str] = []

    def put(key: str, rt: ThreadRuntime) -> None:
        try:
            drive(buffer.append(rt, [NewRecord(key, key.encode(), b"v")]))
        except KeyboardInterrupt:
            return
        taken.append(key)

    put("first", THREADS)
    callers: dict[str, ThreadRuntime] = {"a": Patient(), "b": Interrupted(), "c": Patient(), "d": Patient()}
    threads = []
    with buffer._file._turn:
        for key, rt in callers.items():
            threads.append(threading.Thread(target=put, args=(key, rt)))
            threads[-1].start()
            assert wait_until(lambda: len(buffer._file._queue) == len(threads), 10)
        threads[1].join(10)
    put("last", THREADS)  # takes those along that are queued
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert sorted(taken) == ["a", "c", "d", "first", "last"]
    assert drive(buffer.stats(THREADS)).dirty == 6, (
        "what was interrupted may have been taken, and here it was"
    )
    buffer.close()
