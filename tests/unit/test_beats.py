"""Heartbeats on both runtimes: they go on, end when told or when they fail, and say so."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from cachewright.runtime.aio import AIO
from cachewright.runtime.base import Job, next_renewal
from cachewright.runtime.process import wait_until
from cachewright.runtime.threads import THREADS
from cachewright.runtime.workers import TIMER


def beaten(face: str, tick: Callable[[int], bool], until: Callable[[Job, list[int]], bool]) -> list[int]:
    """The numbers of the beats of a job whose ``tick`` is given them; the job has ended or been cancelled."""
    seen: list[int] = []

    async def beat() -> float | None:
        seen.append(len(seen) + 1)
        return 0.001 if tick(seen[-1]) else None

    async def main() -> None:
        job = AIO.every(0.001, beat, "test")
        async with asyncio.timeout(20):
            while not until(job, seen):
                await asyncio.sleep(0.001)
        job.cancel()

    if face == "asyncio":
        asyncio.run(main())
    else:
        job = THREADS.every(0.001, beat, "test")
        assert wait_until(lambda: until(job, seen), 20)
        job.cancel()
        assert TIMER.scheduled == []
    return seen


@pytest.mark.parametrize("face", ["threads", "asyncio"])
def test_a_beat_goes_on_until_it_says_no(face: str) -> None:
    assert beaten(face, lambda n: n < 3, lambda job, _: job.done()) == [1, 2, 3]


@pytest.mark.parametrize("face", ["threads", "asyncio"])
def test_a_beat_goes_on_until_it_is_cancelled(face: str) -> None:
    assert len(beaten(face, lambda n: True, lambda _, seen: len(seen) >= 3)) >= 3


@pytest.mark.parametrize("face", ["threads", "asyncio"])
def test_a_beat_that_fails_is_done(face: str, caplog: pytest.LogCaptureFixture) -> None:
    """Who asks whether it still goes on, to start it anew, must not hear yes for ever."""

    def fail(n: int) -> bool:
        raise RuntimeError("the beat failed")

    with caplog.at_level(logging.CRITICAL, logger="cachewright"):
        assert beaten(face, fail, lambda job, _: job.done()) == [1]


def test_renewals_count_from_their_start_and_are_soon_repeated_where_nobody_answered() -> None:
    class Standing:
        time = 100.0

        def monotonic(self) -> float:
            return self.time

    rt: Any = Standing()
    assert next_renewal(rt, 100.0, 1.5, True) == 1.5
    rt.time = 101.0
    assert next_renewal(rt, 100.0, 1.5, True) == 0.5
    rt.time = 102.0
    assert next_renewal(rt, 100.0, 1.5, True) == 0
    assert next_renewal(rt, 100.0, 1.5, False) == 0.2
    assert next_renewal(rt, 100.0, 0.2, False) == 0.05


def test_an_errand_that_hangs_holds_up_no_heartbeat() -> None:
    go_on, beats = threading.Event(), threading.Event()

    async def hang() -> None:
        go_on.wait(20)

    async def beat() -> None:
        beats.set()

    jobs = [THREADS.every(0, hang, "hangs", errand=True) for _ in range(20)]
    job = THREADS.every(0, beat, "beats")
    try:
        assert beats.wait(10)
    finally:
        go_on.set()
    assert wait_until(lambda: all(one.done() for one in [*jobs, job]), 20)
