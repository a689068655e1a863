"""``warm``: many keys loaded before anybody asks for them, a few at a time, those that are fresh left alone.

A key is warmed by an ordinary load: under its lease, so that a change meanwhile wins, and shared with whoever asks for
the key at that moment. What is fresh is skipped, so a second call goes on where the first one stopped, and a fleet that
warms together shares the work. Whether a key is warm afterwards is looked at, not believed.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from typing import Any

from cachewright.core.context import current_load
from cachewright.core.engine import Engine
from cachewright.core.read import fresh_entries
from cachewright.core.state import now_ms
from cachewright.keys import shorten
from cachewright.options import MISSING
from cachewright.runtime.base import Job, Runtime, Waiter
from cachewright.warm_plan import Progress, Unit, WarmPlan, WarmReport, check_warm, told

__all__ = ["Warming"]

LOOK_AGAIN = 0.25  # seconds: progress is told at least so often
GRACE = 5.0  # seconds that loads under way are given where the one who warms was interrupted
CHUNK = 100  # keys that one round trip looks at
TRACED = 100  # errors that keep their traceback, with all that its frames hold


class Warming:
    """One call of ``warm``."""

    def __init__(
        self,
        engine: Engine,
        rt: Runtime,
        plan: WarmPlan,
        items: Iterable[Any],
        parts: set[Any],
        *,
        concurrency: int,
        batch_size: int,
        progress: Progress | None,
    ) -> None:
        check_warm(concurrency, batch_size)
        self.report: WarmReport[Any] = WarmReport()
        self._engine, self._rt, self._plan, self._items = engine, rt, plan, items
        self._parts = parts  # what `Cache.close` ends
        self._concurrency, self._batch = concurrency, batch_size if plan.many is not None else 1
        self._chunk = batch_size if plan.many is not None else CHUNK
        self._progress = progress
        self._total = len(items) if isinstance(items, Sized) else None
        self._lock = threading.Lock()
        self._jobs: dict[int, Job | None] = {}
        self._numbers = itertools.count()
        self._bell: Waiter | None = None
        self._stopping = self._ended = False
        self._crash: BaseException | None = None
        self._thread = threading.get_ident()
        self._closings = engine.state.closings

    async def run(self) -> WarmReport[Any]:
        """Warms; returns when all that was begun has ended."""
        self._parts.add(self)
        try:
            for chunk in self._chunks():
                await self._warm(chunk)
            await self._room(0)
        except BaseException:
            self.stop()
            await self._settle()
            raise
        finally:
            self._ended = True
            self._parts.discard(self)
        return self.report

    def stop(self) -> None:
        """No further loads; those under way end."""
        self._stopping = True
        self._ring()

    async def close_part(self, rt: Runtime, timeout: float) -> None:
        """How `Cache.close` ends it."""
        self.stop()
        within = rt.name == "threads" and threading.get_ident() == self._thread
        if within or current_load() is not None:
            return  # called by the one who warms, or by a loader: it goes on when this returns
        ends = rt.monotonic() + timeout
        while not self._ended and rt.monotonic() < ends:
            await rt.sleep(0.005)

    # ------------------------------------------------------------------------------------ the one who warms

    def _is_over(self) -> bool:
        if self._engine.state.closings != self._closings:
            self._stopping = True
        return self._stopping or self._crash is not None

    def _chunks(self) -> Iterator[list[Any]]:
        items = iter(self._items)
        while chunk := list(itertools.islice(items, self._chunk)):
            if self._is_over():
                self.report.stopped = True
                return
            yield chunk

    async def _warm(self, chunk: Sequence[Any]) -> None:
        by_key: dict[str, Any] = {}
        for item in chunk:
            try:
                key = self._plan.key_of(item)
            except Exception as error:
                self._fail(_label(item), error)
                continue
            if key in by_key:
                with self._lock:
                    self.report.skipped += 1
            by_key[key] = item
        try:
            fresh, stale = await self._look(by_key)
        except Exception as error:  # nothing could be stored, so nothing is loaded
            for key, item in by_key.items():
                self._fail(self._plan.label_of(item, key), error)
            fresh, stale, by_key = set(), set(), {}
        with self._lock:
            self.report.skipped += len(fresh)
        for unit in self._units({key: item for key, item in by_key.items() if key not in fresh}, stale):
            await self._room(self._concurrency - 1)
            if self._is_over():
                self.report.stopped = True
                return
            self._start(unit)
        self._tell()

    def _units(self, items: Mapping[str, Any], stale: set[str]) -> Iterator[Unit]:
        for is_stale in (True, False):
            keys = [key for key in items if (key in stale) is is_stale]
            for start in range(0, len(keys), self._batch):
                yield Unit({key: items[key] for key in keys[start : start + self._batch]}, stale=is_stale)

    async def _look(self, items: Mapping[str, Any]) -> tuple[set[str], set[str]]:
        """Which keys have a fresh entry that can be read, and which a stale one."""
        if not items:
            return set(), set()
        state, rt = self._engine.state, self._rt
        authority = state.chain.authority
        standing, generations = await authority.read(rt, list(items), state.tags_of(()))
        entries = await fresh_entries(state, rt, standing, generations)
        fresh = set()
        for key, entry in entries.items():
            type_ = self._plan.options_of(items[key], key).type
            if state.value_of(key, entry, type_, authority.tier.name) is not MISSING:
                fresh.add(key)
        now = now_ms(rt)
        stale = {
            key
            for key, slot in standing.items()
            if slot.entry is not None and slot.entry.fresh_until <= now < slot.entry.ends
        }
        return fresh, stale

    async def _room(self, most: int) -> None:
        """Waits until at most so many units are under way."""
        while True:
            self._bell = bell = self._rt.waiter()
            with self._lock:
                # One that close called off before it began never says that it has ended.
                self._jobs = {n: job for n, job in self._jobs.items() if job is None or not job.done()}
                running = len(self._jobs)
            self._tell()
            if self._crash is not None:
                raise self._crash
            if running <= (0 if self._is_over() else most):
                return
            await self._rt.wait(bell, LOOK_AGAIN)

    async def _settle(self) -> None:
        """After an interruption: a task gives its lease back, a thread ends its load."""
        for job in list(self._jobs.values()):
            if job is not None:
                job.cancel()
        ends = self._rt.monotonic() + GRACE
        while self._jobs and self._rt.monotonic() < ends:
            self._bell = bell = self._rt.waiter()
            self._jobs = {n: job for n, job in self._jobs.items() if job is not None and not job.done()}
            if self._jobs:
                await self._rt.wait(bell, 0.02)

    def _tell(self) -> None:
        if self._progress is None or self._stopping:
            return
        if self._progress(self.report.done, self._total, len(self.report.failed)) is False:
            self._stopping = True

    # ------------------------------------------------------------------------------------------- one unit

    def _start(self, unit: Unit) -> None:
        number = next(self._numbers)
        self._jobs[number] = None

        async def work() -> None:
            try:
                await self._do(unit)
                if unit.exits is not None and not self._is_over():
                    self._crash = unit.exits
            except BaseException as error:
                if not self._is_over():
                    self._crash = error
                raise
            finally:
                with self._lock:
                    self._jobs.pop(number, None)
                self._ring()

        job = self._engine.state.spawn(self._rt, work, f"warming of {shorten(next(iter(unit.items)))}")
        with self._lock:
            if number in self._jobs:
                self._jobs[number] = job

    def _ring(self) -> None:
        bell = self._bell
        if bell is not None:
            bell.set()

    async def _do(self, unit: Unit) -> None:
        failure: Exception | None = None
        try:
            await self._load(unit)
        except Exception as error:
            failure = error
        fresh: set[str] = set()
        try:
            looked = {key: item for key, item in unit.items.items() if key not in unit.errors}
            fresh, _ = await self._look(looked)
        except Exception as error:
            failure = failure or error
        for key, item in unit.items.items():
            self._count(unit, key, item, key in fresh, failure)

    async def _load(self, unit: Unit) -> None:
        engine, rt, plan = self._engine, self._rt, self._plan
        first, item = next(iter(unit.items.items()))
        # Whoever warms waits for the load itself: a stale value is of no use to him.
        options = replace(plan.options_of(item, first), soft_timeout=None)
        if plan.many is not None:
            many, keys = told(rt, plan.many(rt, unit.items), unit), list(unit.items)
            await engine.load_many(rt, keys, many, options, implicit=plan.implicit, renew=unit.stale)
            return
        one = told(rt, plan.one(rt, item, first), unit, first)
        await engine.load(rt, first, one, options, implicit=plan.implicit, forced=unit.stale)

    def _count(self, unit: Unit, key: str, item: Any, fresh: bool, failure: Exception | None) -> None:
        error = unit.errors.get(key)
        if error is None and key in unit.absent:
            failure = None
        elif error is None and not fresh:
            error = failure
        if error is not None:
            self._fail(self._plan.label_of(item, key), error)
            return
        report = self.report
        with self._lock:
            if key in unit.absent and not fresh:
                report.absent += 1
            elif not fresh:
                report.unstored += 1
            elif key in unit.called:
                report.loaded += 1
            else:
                report.skipped += 1

    def _fail(self, label: Any, error: Exception) -> None:
        with self._lock:
            failed = self.report.failed
            failed[label] = error if len(failed) < TRACED else error.with_traceback(None)


def _label(item: Any) -> Any:
    try:
        hash(item)
    except TypeError:
        return repr(item)[:200]
    return item
