"""Many keys at once: what they are led by is in `leading_many`; `get_or_load_many` is the way in.

How long the caller waits is decided here, as `load` does for one key. Keys that somebody else is at, in this process or
another, and keys under a write take the way of a single load afterwards, each for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from cachewright.core.context import outside
from cachewright.core.flight import ABSENT
from cachewright.core.leading import Plan
from cachewright.core.leading_many import LeadingMany
from cachewright.core.load import LOOK_AGAIN, follow, get_or_load
from cachewright.core.loading_many import LoaderMany, as_mapping
from cachewright.core.stale import served_stale, stale_now
from cachewright.core.state import State
from cachewright.errors import LoadTimeout
from cachewright.events import RefreshFailed
from cachewright.options import MISSING, Options
from cachewright.runtime.base import Runtime

__all__ = ["get_or_load_many"]

MAX_TURNS = 3  # of waiting for others, for all keys that are left, before one after the other
# Turns in which nothing came of reading all that are left: reading them again and again is quadratic.
MAX_IDLE = 2


async def get_or_load_many(
    state: State,
    rt: Runtime,
    keys: Sequence[str],
    loader: LoaderMany,
    options: Options,
    tags: tuple[str, ...],
    renew: bool = False,
) -> dict[str, Any]:
    """The values of these keys; those that the loader left out are left out.

    With ``renew`` a stale value answers neither at once nor for an error.

    Raises:
        LoadTimeout: ``load_timeout`` passed, and not every key that is still missing has a stale value.
        Exception: what the loader raised as a whole, or the first exception that it gave as a key's value, after the
            other keys were stored.
    """
    asked = _Asked(state, rt, loader, options, tags, renew)
    keys = rest = list(dict.fromkeys(keys))
    idle = 0
    for turn in count():
        before = len(rest)
        rest = await asked.together(rest)
        idle += len(rest) == before
        # One who joined a load and cannot use its result goes round again; another process's is waited for.
        if rest and (turn >= MAX_TURNS or not asked.followed):
            await asked.alone(rest.pop(0))
        while rest and idle >= MAX_IDLE and not asked.is_late():
            await asked.alone(rest.pop(0))
        if not rest:
            break
        if asked.is_late():
            if not asked.errors:
                asked.values.update(await asked.out_of_time(rest))
            break
    if asked.errors:
        raise next(iter(asked.errors.values()))
    return {key: asked.values[key] for key in keys if key in asked.values}


class _Asked:
    """One call for many keys."""

    def __init__(
        self,
        state: State,
        rt: Runtime,
        loader: LoaderMany,
        options: Options,
        tags: tuple[str, ...],
        renew: bool,
    ) -> None:
        self.renew = renew
        self.state, self.rt, self.loader, self.options, self.tags = state, rt, loader, options, tags
        self.started = rt.monotonic()  # the timeouts count from here, over all that the call does
        self.values: dict[str, Any] = {}
        self.errors: dict[str, Exception] = {}
        self.followed = False  # the last turn waited for somebody of this process

    async def out_of_time(self, keys: list[str]) -> dict[str, Any]:
        """Stale values for all these keys.

        Raises:
            LoadTimeout: not every one has one that may answer for an error.
        """
        stale: dict[str, Any] = {}
        if not self.renew:
            stale = await stale_now(self.state, self.rt, keys, self.tags, self.options.type, on_error=True)
        if len(stale) < len(keys):
            late = next(key for key in keys if key not in stale)
            raise LoadTimeout(
                f"{len(keys)} keys were not loaded within load_timeout={self.options.load_timeout:g} s, "
                f"and {late!r} has no stale value"
            )
        served_stale(self.state, keys, "timeout")
        return stale

    def is_late(self) -> bool:
        """``load_timeout`` has passed: nothing more is begun."""
        hard = self.options.load_timeout
        return hard is not None and self.rt.monotonic() - self.started >= hard

    async def together(self, keys: list[str]) -> list[str]:
        """Reads and loads what nobody else is at, then waits for those who are; which keys are still open."""
        batch = LeadingMany(self.state, self.rt, self.loader, self.options, self.tags, renew=self.renew)
        try:
            stale = await _run(self, batch, keys)
            self.values.update(batch.values)
            self.errors.update(batch.errors)
            if stale is not None:
                self.values.update(stale)
                return []
            self.followed = False
            for key in [key for key in batch.joined if key not in batch.values]:
                await self._follow(batch, key)
        finally:
            batch.leave()
        return [
            key for key in keys if key not in self.values and key not in self.errors and key not in batch.done
        ]

    async def _follow(self, batch: LeadingMany, key: str) -> None:
        self.followed = True
        try:
            value = await follow(self.state, self.rt, self._plan(key), *batch.joined.pop(key), self.started)
        except Exception as error:
            self.errors[key] = error
        else:
            if value is not MISSING:
                self.values[key] = value

    async def alone(self, key: str) -> None:
        """Waits for whoever else is at this key, and loads it where nobody is."""
        try:
            value = await get_or_load(self.state, self.rt, self._plan(key), self.started)
        except Exception as error:
            self.errors[key] = error
        else:
            if value is not ABSENT:
                self.values[key] = value

    def _plan(self, key: str) -> Plan:
        """The same load for one key."""
        rt, loader, options = self.rt, self.loader, self.options

        async def load_async() -> Any:
            return _one(await rt.call(loader, [key]), key)

        def load() -> Any:
            return _one(loader([key]), key)

        def store_if(value: Any) -> bool:
            return value is not ABSENT and (options.store_if is None or options.store_if(value))

        one: Any = load if rt.name == "threads" else load_async
        one.__wrapped__ = loader  # for what it raises to be known as its own caller's
        return Plan(key, one, replace(options, store_if=store_if), self.tags, self.renew)


async def _run(asked: _Asked, batch: LeadingMany, keys: list[str]) -> dict[str, Any] | None:
    if batch.options.background:
        return await _wait(asked, batch, keys)
    await batch.run(keys, _refresh_behind)
    return None


class _Behind:
    """A batch that runs behind its caller, who may stop waiting for it."""

    def __init__(self, batch: LeadingMany, keys: list[str]) -> None:
        self.batch, self.keys = batch, keys
        self.ended = batch.rt.waiter()
        self.error: Exception | None = None
        self.left = False  # nobody waits any more

    async def run(self) -> None:
        batch = self.batch
        try:
            await batch.run(self.keys, _refresh_behind)
        except Exception as error:
            self.error = error
        finally:
            self.ended.set()
        if self.left:
            batch.leave()
            failed = batch.errors or dict.fromkeys(self.keys if self.error else (), self.error)
            for key, why in failed.items():
                if why is not None:
                    batch.state.hub.emit(RefreshFailed(key, why))


async def _wait(asked: _Asked, batch: LeadingMany, keys: list[str]) -> dict[str, Any] | None:
    """Waits for the batch, which runs in the background; None: it has ended.

    Where the caller's patience ends first: stale values for all that is missing.
    """
    state, rt, options = batch.state, batch.rt, batch.options
    soft, hard = options.soft_timeout, options.load_timeout
    behind = _Behind(batch, keys)
    job = state.spawn(rt, behind.run, f"load of {len(keys)} keys")
    try:
        # (A cache that closes cancels what has not begun.)
        while not behind.ended.is_set() and not job.done():
            waited = rt.monotonic() - asked.started
            open_keys = [key for key in keys if key not in batch.values]
            if soft is not None and waited >= soft:
                soft = None
                stale = await stale_now(state, rt, open_keys, batch.tags, options.type)
                if len(stale) == len(open_keys):
                    served_stale(state, open_keys, "timeout")
                    return stale
            if hard is not None and waited >= hard:
                return await asked.out_of_time(open_keys)
            ends = [limit - waited for limit in (soft, hard) if limit is not None and limit > waited]
            await rt.wait(behind.ended, min([*ends, LOOK_AGAIN]))
    finally:
        behind.left = True
    if behind.error is not None:
        raise behind.error
    return None


def _refresh_behind(batch: LeadingMany) -> None:
    """Starts one refresh, in the background of this process, of all keys whose values were served and want one."""
    state, rt = batch.state, batch.rt
    claimed: dict[str, int | None] = {}

    async def refresh() -> None:
        again = LeadingMany(state, rt, batch.loader, batch.options, batch.tags, claimed)
        failed: dict[str, Exception] = again.errors
        try:
            await again.run(list(claimed), _refresh_behind)
        except Exception as error:
            failed = dict.fromkeys(claimed, error)
        finally:
            for key in claimed:
                state.refreshing.pop(key, None)
        for key, why in failed.items():
            state.hub.emit(RefreshFailed(key, why))

    try:
        for key, born in batch.to_refresh.items():
            if state.claim_refresh(key):
                claimed[key] = born
        if claimed:
            with outside():
                job = state.spawn(rt, refresh, f"refresh of {len(claimed)} keys")
            for key in claimed:
                state.refresh_runs(key, job)
    except BaseException:
        for key in claimed:
            state.refreshing.pop(key, None)  # interrupted: at worst a second one starts
        raise


def _one(result: Any, key: str) -> Any:
    value = as_mapping(result).get(key, ABSENT)
    if isinstance(value, Exception):
        raise value
    return value
