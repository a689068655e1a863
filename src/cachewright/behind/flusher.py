"""The flusher: claims due records, saves them in batches, acknowledges what was saved, backs off from what was not.

One round is `Flusher.step`, written once for threads and asyncio. In the background it runs on a daemon thread, or as a
task where the savers are async. Celery tasks and separate workers drive the same `step`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from cachewright.behind.background import Background
from cachewright.behind.buffers.base import Buffer, BufferStats, NewRecord, Record
from cachewright.behind.intake import Intake
from cachewright.behind.rounds import AfterSave, Rounds
from cachewright.behind.saving import Savers
from cachewright.behind.types import BehindOptions
from cachewright.errors import (
    BufferError,
    BufferUnavailable,
    ConfigurationError,
    FlushTimeout,
    WouldDeadlockError,
)
from cachewright.events import Hub
from cachewright.options import seconds
from cachewright.runtime.base import Runtime, Waiter, drive
from cachewright.runtime.threads import THREADS

__all__ = ["Flusher", "FlusherStats", "Where", "find_flusher", "known_flushers"]

T = TypeVar("T")
Ask = Callable[[], Awaitable[T]]
Where = Literal["background", "none", "worker", "celery"]


@dataclass(frozen=True, slots=True)
class FlusherStats:
    """What stands in the buffer, and what this process did since it started.

    Attributes:
        buffer: counts of the buffer.
        lag: age of the oldest dirty key in seconds; 0 when nothing is dirty.
        saved: records saved, settling repeats included.
        failed: failed saves.
        dead_letters: records given up.
    """

    buffer: BufferStats
    lag: float
    saved: int
    failed: int
    dead_letters: int


class Flusher:
    """One repository's flusher in this process.

    Args:
        buffer: the records.
        savers: how one record is saved.
        namespace: the cache's.
        repository: its name.
        after_save: drops in all tiers the slots of keys that were saved or given up: a `put` that died before its own drop is
            healed here.
        options: see `BehindOptions`.
        events: where failures are told.
        where: ``"background"``: in this process by itself; ``"none"``: only by `flush` and `step`; ``"worker"``,
            ``"celery"``: in other processes, this one only waits.
        notify: told the keys of every accepted write (Celery hints); must neither block nor raise.
        on_close: called at the end of `close`; it may block for a few seconds.
    """

    def __init__(
        self,
        buffer: Buffer,
        savers: Savers,
        *,
        namespace: str,
        repository: str,
        after_save: AfterSave,
        options: BehindOptions,
        events: Hub,
        where: Where = "background",
        notify: Callable[[Sequence[str]], None] | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        if where == "celery" and savers.is_async:
            raise ConfigurationError(
                f"the savers of {repository!r} are async, and Celery's workers run plain functions: give those, "
                f"or leave the flusher in the background"
            )
        self.buffer, self.savers = buffer, savers
        self.namespace, self.repository = namespace, repository
        self.options, self.events, self.where = options, events, where
        self._notify, self._on_close = notify, on_close
        self._rounds = Rounds(buffer, savers, repository, after_save, options, events)
        self._intake = Intake(buffer, options)
        name, is_async = f"flusher of {repository}", savers.is_async
        self._background = Background(
            name, self.step, self._hurries, buffer, options, events, is_async=is_async
        )
        self._reset()
        with _known_lock:
            _known[namespace, repository] = self

    def _reset(self) -> None:
        """What a forked child must have anew: locks that others may have held, waiters of threads that are gone."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._watchers: set[Waiter] = set()
        self._flushing = 0
        self._background.forget()
        self._rounds.endings.forget()

    def _own_process(self) -> None:
        if self._pid != os.getpid():
            self._reset()

    # -- taking writes ------------------------------------------------------------------------------------------

    async def accept(self, rt: Runtime, records: Sequence[NewRecord]) -> list[int]:
        """Takes writes; when it returns they are durable in the buffer, or saved (``on_full="through"``).

        Drop the keys' slots after it, and only then return to the caller.

        Returns:
            The sequence of each.

        Raises:
            BufferFull: as ``on_full`` says.
            BufferUnavailable: nothing was accepted.
        """
        if self._saves_here:
            self.check_face(rt)
        self.start(rt)
        sequences = await self._intake.append(rt, records, self._room, self._through)
        self.ring()
        if self._notify is not None:
            self._notify([record.key for record in records])
        return sequences

    async def _room(self, rt: Runtime, timeout: float) -> None:
        """Waits for a round to end, here or (by polling) elsewhere."""
        self.ring()
        await self._watch(rt, min(timeout, 0.25))

    async def _through(self, rt: Runtime, record: Record, token: bytes) -> None:
        try:
            await self._rounds.through(rt, record, token)
        finally:
            self._tell_watchers()

    async def step(self, rt: Runtime, *, keys: Sequence[str] | None = None, hurry: bool = False) -> int:
        """Claims, saves and acknowledges one batch.

        Args:
            rt: the runtime to save under.
            keys: only these.
            hurry: do not wait for the coalescing window.

        Returns:
            How many records it dealt with; 0 when none was due.
        """
        self.check_face(rt)
        self._own_process()
        done = await self._rounds.run(rt, keys, hurry)
        if done:
            self._tell_watchers()
        return done

    # -- in the background --------------------------------------------------------------------------------------

    def start(self, rt: Runtime) -> None:
        """Has the background work running, where it belongs to this process; harmless when it runs."""
        self._own_process()
        if self.where == "background":
            self._background.start(rt)

    def is_running(self) -> bool:
        """Whether the background work of this process is alive: not where its event loop stands still."""
        return self._background.is_running()

    def _hurries(self) -> bool:
        return self._flushing > 0

    def resume(self) -> bool:
        """At a repository's creation: starts the flusher if records of an earlier process are there, or may be."""
        if self.where != "background" or not self.buffer.exists:
            return False
        with suppress(BufferUnavailable):  # it may have some; a program that only reads can go on without it
            if drive(self.buffer.next_due(THREADS)) is None:
                return False
        self.start(THREADS)
        return True

    def ring(self) -> None:
        """Wakes the background work of this process."""
        self._background.ring()

    # -- flushing and closing -----------------------------------------------------------------------------------

    async def flush(self, rt: Runtime, timeout: float | None = None) -> None:
        """Returns when nothing is dirty (settling records are dirty; dead letters are not).

        A timeout is seconds, 0 or more; None: for as long as it takes.

        It waits for no coalescing window, but for back-offs. With ``where="none"`` it looks at the deadline after each batch.

        Raises:
            FlushTimeout: dirty keys remained, or records became dead letters meanwhile; it names them.
            WouldDeadlockError: this blocking call would hold up the event loop that is to save.
            BufferUnavailable: the buffer is away, and still was when the time was over.
        """
        timeout = seconds("timeout", timeout, none=True, zero=True)
        self._own_process()
        if self._background.is_held_up_by(rt):
            raise self._would_wait_for_itself("aflush")
        if not self.buffer.exists:
            return
        if self._saves_here and not self.is_running():  # else others do the work, and this one only waits
            self.check_face(rt)
        self.start(rt)
        deadline = None if timeout is None else rt.monotonic() + timeout
        dead = {record.key for record in await self._dead(rt, deadline)}
        look = partial(self.buffer.next_due, rt, hurry=True)
        with self._lock:
            self._flushing += 1
        try:
            while (due := await self._patiently(rt, deadline, look)) is not None:
                left = 0.05 if deadline is None else deadline - rt.monotonic()
                if left <= 0:
                    await self._too_late(rt, timeout)
                    break
                if self.where == "none" and await self.step(rt, hurry=True):
                    continue
                if self.where in ("worker", "celery"):  # rounds do, but those are other processes'
                    with suppress(BufferError):
                        await self._rounds.endings.catch_up(rt)
                self.start(rt)  # it may have been cancelled, or stand still with its loop
                if self._saves_here and not self.is_running():
                    self.check_face(rt)
                self.ring()
                await self._watch(rt, min(left, 0.05, max(0.002, due - rt.now())))
        finally:
            with self._lock:
                self._flushing -= 1
        died = [record for record in await self._dead(rt, deadline) if record.key not in dead]
        if died:
            raise FlushTimeout(
                f"{self.repository}: {len(died)} record(s) were given up and are dead letters now, the first: "
                f"{died[0].key!r} ({died[0].last_error})",
                [record.key for record in died],
            )

    async def _dead(self, rt: Runtime, deadline: float | None) -> list[Record]:
        most = self.options.max_dirty
        return await self._patiently(rt, deadline, lambda: self.buffer.records(rt, most, dead=True))

    async def _patiently(self, rt: Runtime, deadline: float | None, ask: Callable[[], Awaitable[T]]) -> T:
        """Asks a buffer that is away again until the deadline: a server that was restarted is back in a moment."""
        while True:
            try:
                return await ask()
            except BufferUnavailable:
                if deadline is None or rt.monotonic() >= deadline:
                    raise
            await rt.sleep(min(self.options.poll, max(0.001, deadline - rt.monotonic())))

    async def _too_late(self, rt: Runtime, timeout: float | None) -> None:
        """Raises `FlushTimeout`, but where nothing is dirty: what is due is only held for a save through that failed."""
        dirty = await self.buffer.records(rt)
        if not dirty:
            return
        errors = [f"{r.key!r}: {r.last_error}" for r in dirty if r.last_error]
        last = f"; last error of {errors[0]}" if errors else ""
        stats = await self.buffer.stats(rt)
        raise FlushTimeout(
            f"{self.repository}: {max(stats.dirty, len(dirty))} key(s) still dirty after {timeout} s{last}; "
            f"they stay in {self.buffer.url} and are saved by the next process that opens it",
            [record.key for record in dirty],
        )

    async def close(self, rt: Runtime, timeout: float | None = 10.0) -> None:
        """Saves what is dirty within ``timeout``, where that is this process's work, and stops.

        Raises:
            FlushTimeout: dirty keys remained; they stay in the buffer.
            WouldDeadlockError: the same, as this blocking call would hold up the event loop that is to save them.
        """
        timeout = seconds("timeout", timeout, none=True, zero=True)
        self._own_process()
        try:
            if self.where in ("background", "none") and self.buffer.exists:
                if self._background.is_held_up_by(rt):
                    if await self.buffer.records(rt, 1):
                        raise self._would_wait_for_itself("aclose")
                elif self.savers.is_async and rt.name == "threads" and not self.is_running():
                    if await self.buffer.next_due(rt) is not None:
                        await self._too_late(rt, 0)
                else:
                    await self.flush(rt, timeout)
        finally:
            await self._stop(rt)

    def _would_wait_for_itself(self, instead: str) -> WouldDeadlockError:
        return WouldDeadlockError(
            f"the savers of {self.repository!r} run on this thread's event loop, which this blocking call would hold up: "
            f"await {instead} instead"
        )

    async def _stop(self, rt: Runtime) -> None:
        await self._background.stop(rt)
        await rt.offload(self.buffer.close)
        if self._on_close is not None:
            await rt.offload(self._on_close)

    # -- small things -------------------------------------------------------------------------------------------

    @property
    def _saves_here(self) -> bool:
        """Whether a write may have to be saved by this process."""
        return self.where in ("background", "none") or self.options.on_full == "through"

    def check_face(self, rt: Runtime) -> None:
        """Async savers cannot run under the blocking face.

        Raises:
            ConfigurationError: they would have to.
        """
        if self.savers.is_async and rt.name == "threads":
            raise ConfigurationError(
                f"the savers of {self.repository!r} are async: await aput, adelete, aflush and aclose, "
                f"or give plain functions"
            )

    async def stats(self, rt: Runtime) -> FlusherStats:
        """Depth, age and counters."""
        found = await self.buffer.stats(rt) if self.buffer.exists else BufferStats()
        lag = 0.0 if found.oldest is None else max(0.0, rt.now() - found.oldest)
        ended = self._rounds.endings
        return FlusherStats(found, lag, ended.saved, ended.failed, ended.dead)

    async def _watch(self, rt: Runtime, timeout: float) -> None:
        waiter = rt.waiter()
        with self._lock:
            self._watchers.add(waiter)
        try:
            await rt.wait(waiter, timeout)
        finally:
            with self._lock:
                self._watchers.discard(waiter)

    def _tell_watchers(self) -> None:
        for waiter in tuple(self._watchers):  # copied in one step
            waiter.set()


_known: weakref.WeakValueDictionary[tuple[str, str], Flusher] = weakref.WeakValueDictionary()
_known_lock = threading.Lock()


def _renew_known_lock() -> None:
    global _known_lock
    _known_lock = threading.Lock()  # another thread of the parent may have held it at the fork


os.register_at_fork(after_in_child=_renew_known_lock)


def find_flusher(namespace: str, repository: str) -> Flusher | None:
    """The flusher of that repository, if this process made it (a Celery worker: if it imported the module that does)."""
    with _known_lock:
        return _known.get((namespace, repository))


def known_flushers() -> list[Flusher]:
    """All flushers of this process."""
    with _known_lock:
        return list(_known.values())
