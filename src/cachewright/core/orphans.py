"""Leases and intents that may stand although nobody holds them: what placed them, or was to end them, was sent and never
answered.

Everybody would wait for a lease, or store nothing under an intent, for their whole life. So callers of this process take
such a lease over where they meet it, and all are given back as soon as their tier answers again.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable

from cachewright.runtime.base import Job, Runtime

__all__ = ["Orphans"]

EVERY_SECONDS = 0.5
MOST = 10_000  # those beyond it die by their life

GiveBack = Callable[[Runtime], Awaitable[bool]]


class Orphans:
    """Those of one cache in this process. Each is forgotten when its life is over."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the collector may end a coroutine of ours inside of it
        self._swept = 0.0
        self._until: dict[bytes, float] = {}  # by token; in monotonic seconds
        self._to_give: dict[bytes, GiveBack] = {}
        self._job: Job | None = None

    def __contains__(self, token: object) -> bool:
        return token in self._until

    def add(self, rt: Runtime, token: bytes, life: float, give_back: GiveBack) -> None:
        """One whose holder sends nothing under it any more.

        Args:
            rt: where it is given back.
            token: the lease's, or the intent's id.
            life: seconds for which it may stand from now on.
            give_back: takes it away where it still stands; False: the tier did not answer.
        """
        with self._lock:
            now = rt.monotonic()
            if not self._to_give or (len(self._until) >= MOST and now >= self._swept + EVERY_SECONDS):
                self._swept = now
                self._until = {one: until for one, until in self._until.items() if until > now}
            if len(self._until) >= MOST:
                return
            self._until[token] = now + life
            self._to_give[token] = give_back
            if self._job is None or not self._job.goes_on():
                if self._job is not None:
                    self._job.cancel()  # it is on a loop that was stopped
                self._job = rt.every(
                    EVERY_SECONDS, lambda: self._give_back(rt), "leases to give back", errand=True
                )

    async def _give_back(self, rt: Runtime) -> float | None:
        # All, for some may be a node's that answers; where none does, a breaker soon makes that quick.
        for token, give_back in list(self._to_give.items()):
            if token not in self._to_give:
                continue  # the cache was closed
            if rt.monotonic() >= self._until.get(token, 0) or await give_back(rt):
                self._to_give.pop(token, None)
        with self._lock:
            if not self._to_give:
                self._job = None
            return EVERY_SECONDS if self._job is not None else None

    def end(self) -> None:
        """The cache is closed: what still stands dies by its life."""
        with self._lock:
            job, self._job = self._job, None
            self._to_give.clear()
        if job is not None:
            job.cancel()
