"""200 threads and 200 tasks on one cold key, whose leader is taken away twice."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from cachewright import Cache
from cachewright.testing.servers import RedisServer

CROWD = 200
PATIENCE = 30.0


class Taken(BaseException):
    """What a signal handler raises in a thread: a thread cannot be cancelled otherwise."""


class Crowd:
    """A loader that is interrupted in its first two callers, whatever they are, and then succeeds."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.lock = threading.Lock()
        self.begun: list[tuple[str, Any]] = []
        self.outcomes: list[tuple[Any, Any]] = []  # the caller, and what it got
        self.together = threading.Barrier(CROWD + 1)

    def begins(self, caller: Any) -> int:
        with self.lock:
            self.begun.append((type(caller).__name__, caller))
            return len(self.begun)

    def waiting(self) -> int:
        flight = self.cache.engine.state.flights._open.get(("cold", False))
        return len(flight.waiters) if flight is not None else 0

    def got(self, caller: Any, outcome: Any) -> None:
        with self.lock:
            self.outcomes.append((caller, outcome))

    # As a thread

    def load(self) -> str:
        number = self.begins(threading.current_thread())
        self.wait_for_the_others(number)
        if number <= 2:
            raise Taken
        return "value"

    def wait_for_the_others(self, number: int) -> None:
        """Until all others wait for this load: so the next one leads in front of them all."""
        gone = threading.Event()
        for _ in range(int(PATIENCE / 0.002)):
            if self.waiting() >= 2 * CROWD - number:
                return
            gone.wait(0.002)
        raise AssertionError(f"only {self.waiting()} wait for load {number}")

    def call(self) -> None:
        me = threading.current_thread()
        self.together.wait(PATIENCE)
        try:
            self.got(me, self.cache.get_or_set("cold", self.load, lease=60))
        except BaseException as error:
            self.got(me, error)

    # As a task

    async def aload(self) -> str:
        me = asyncio.current_task()
        assert me is not None
        number = self.begins(me)
        for _ in range(int(PATIENCE / 0.002)):
            if self.waiting() >= 2 * CROWD - number:
                break
            await asyncio.sleep(0.002)
        if number <= 2:
            me.cancel()
            await asyncio.sleep(PATIENCE)
        return "value"

    async def acall(self) -> None:
        me = asyncio.current_task()
        try:
            self.got(me, await self.cache.aget_or_set("cold", self.aload, lease=60))
        except asyncio.CancelledError as error:
            self.got(me, error)

    async def tasks(self) -> None:
        tasks = [asyncio.create_task(self.acall()) for _ in range(CROWD)]
        await asyncio.to_thread(self.together.wait, PATIENCE)
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("chain", ["memory", "redis", "memory > redis"])
def test_the_leader_of_a_crowd_is_taken_away_twice(
    chain: str, redis_server: RedisServer, namespace: str
) -> None:
    urls = {"memory": "memory://", "redis": redis_server.url}
    with Cache(*(urls[tier] for tier in chain.split(" > ")), namespace=namespace) as cache:
        crowd = Crowd(cache)
        threads = [threading.Thread(target=crowd.call, daemon=True) for _ in range(CROWD)]
        for thread in threads:
            thread.start()
        asyncio.run(crowd.tasks())
        for thread in threads:
            thread.join(PATIENCE)
        assert len(crowd.outcomes) == 2 * CROWD, "somebody hangs"
        taken = [caller for _, caller in crowd.begun[:2]]
        for caller, outcome in crowd.outcomes:
            if caller in taken:
                assert isinstance(outcome, Taken | asyncio.CancelledError), "its own fate"
            else:
                assert outcome == "value", f"{caller} got another's fate: {outcome!r}"
        assert len(crowd.begun) == 3, "two were taken away, one succeeded"
        assert cache.stats()["loads"] == 1
        assert cache.get("cold") == "value"
