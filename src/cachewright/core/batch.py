"""Many keys at once: what they are led by is in `leading_many`; `get_or_load_many` is the way in.

How long the caller waits is decided here, as `load` does for one key. Keys that somebody else is at, in this process or
another, and keys under a write take the way of a single load afterwards, each for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cachewright.core.flight import ABSENT
from cachewright.core.leading import Plan
from cachewright.core.leading_many import LeadingMany
from cachewright.core.load import LOOK_AGAIN, get_or_load
from cachewright.core.loading_many import LoaderMany, as_mapping
from cachewright.core.stale import served_stale, stale_now
from cachewright.core.state import State
from cachewright.errors import LoadTimeout
from cachewright.events import RefreshFailed
from cachewright.options import Options
from cachewright.runtime.base import Runtime

__all__ = ["get_or_load_many"]


async def get_or_load_many(
    state: State,
    rt: Runtime,
    keys: Sequence[str],
    loader: LoaderMany,
    options: Options,
    tags: tuple[str, ...],
) -> dict[str, Any]:
    """The values of these keys; those that the loader left out are left out.

    Raises:
        LoadTimeout: ``load_timeout`` passed, and not every key that is still missing has a stale value.
        Exception: what the loader raised as a whole, or the first exception that it gave as a key's value, after the
            other keys were stored.
    """
    started = rt.monotonic()
    keys = list(dict.fromkeys(keys))
    values: dict[str, Any] = {}
    errors: dict[str, Exception] = {}
    rest = keys
    while rest:
        batch = LeadingMany(state, rt, loader, options, tags)
        stale = await _run(batch, rest, started)
        values.update(batch.values)
        errors.update(batch.errors)
        if stale is not None:
            values.update(stale)
            break
        rest = [key for key in rest if key not in batch.values and key not in batch.done]
        if rest:
            # Somebody else is at these: often one for all, so that after the wait for one the others are there, or
            # are free to be led together.
            key = rest.pop(0)
            try:
                value = await get_or_load(state, rt, _single(batch, key), started)
            except Exception as error:
                errors[key] = error
                hard = options.load_timeout
                if hard is not None and rt.monotonic() - started >= hard:
                    break
            else:
                if value is not ABSENT:
                    values[key] = value
    if errors:
        raise next(iter(errors.values()))
    return {key: values[key] for key in keys if key in values}


async def _run(batch: LeadingMany, keys: list[str], started: float) -> dict[str, Any] | None:
    if batch.options.background:
        return await _follow(batch, keys, started)
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
            failed = batch.errors or dict.fromkeys(self.keys if self.error else (), self.error)
            for key, why in failed.items():
                if why is not None:
                    batch.state.hub.emit(RefreshFailed(key, why))


async def _follow(batch: LeadingMany, keys: list[str], started: float) -> dict[str, Any] | None:
    """Waits for the batch, which runs in the background; None: it has ended.

    Where the caller's patience ends first: stale values for all that is missing.
    """
    state, rt, options = batch.state, batch.rt, batch.options
    soft, hard = options.soft_timeout, options.load_timeout
    behind = _Behind(batch, keys)
    job = state.spawn(rt, behind.run, f"load of {len(keys)} keys")
    try:
        while (
            not behind.ended.is_set() and not job.done()
        ):  # (a cache that closes cancels what has not begun)
            waited = rt.monotonic() - started
            open_keys = [key for key in keys if key not in batch.values]
            if soft is not None and waited >= soft:
                soft = None
                stale = await stale_now(state, rt, open_keys, batch.tags, options.type)
                if len(stale) == len(open_keys):
                    served_stale(state, open_keys, "timeout")
                    return stale
            if hard is not None and waited >= hard:
                stale = await stale_now(state, rt, open_keys, batch.tags, options.type, on_error=True)
                if len(stale) == len(open_keys):
                    served_stale(state, open_keys, "timeout")
                    return stale
                late = next(key for key in open_keys if key not in stale)
                raise LoadTimeout(
                    f"{len(open_keys)} of {len(keys)} keys were not loaded within load_timeout={hard:g} s, "
                    f"and {late!r} has no stale value"
                )
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
            job = state.spawn(rt, refresh, f"refresh of {len(claimed)} keys")
            for key in claimed:
                state.refresh_runs(key, job)
    except BaseException:
        for key in claimed:
            state.refreshing.pop(key, None)  # interrupted: at worst a second one starts
        raise


def _single(batch: LeadingMany, key: str) -> Plan:
    """The same load for one key."""
    rt, loader, options = batch.rt, batch.loader, batch.options

    async def load_async() -> Any:
        return _one(await rt.call(loader, [key]), key)

    def load() -> Any:
        return _one(loader([key]), key)

    def store_if(value: Any) -> bool:
        return value is not ABSENT and (options.store_if is None or options.store_if(value))

    one = load if rt.name == "threads" else load_async
    return Plan(key, one, replace(options, store_if=store_if), batch.tags)


def _one(result: Any, key: str) -> Any:
    value = as_mapping(result).get(key, ABSENT)
    if isinstance(value, Exception):
        raise value
    return value
