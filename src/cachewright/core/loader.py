"""Calling the user's loader: its context, its retries, and what it may say about its value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from cachewright.core.context import LoadContext, NotModified, laid_over, loading
from cachewright.core.interrupted import call_loader
from cachewright.core.state import State
from cachewright.errors import TierUnavailable
from cachewright.options import Entry, Retry
from cachewright.runtime.base import Runtime

__all__ = ["Loaded", "late_tags_hold", "run_loader"]

CLOCK_TAG = "\0clock"  # its generation is set only to learn the server's time


class Loaded(msgspec.Struct, frozen=True):
    """What a loader returned.

    Attributes:
        value: the value.
        said: what it said of it, by an `Entry` or through its `LoadContext`. Its tags are known only now, so they were
            not captured before the load.
        renewed: the value is the one that stood before, and only its life is new.
        started: monotonic seconds at which the load began.
        seconds: how long it took, retries included.
    """

    value: Any
    said: Mapping[str, Any]
    renewed: bool
    started: float
    seconds: float


async def run_loader(state: State, rt: Runtime, loader: Callable[[], Any], context: LoadContext) -> Loaded:
    """Runs the loader, again where ``retries`` says so; its last error comes through, as `call_loader` says."""
    started = rt.monotonic()
    try:
        with loading(context):
            if context.options.retries is None:
                value = await call_loader(rt, loader, context.key)
            else:
                value = await _with_retries(rt, loader, context, context.options.retries)
    except Exception:
        state.stats.load_failures += 1
        raise
    seconds = rt.monotonic() - started
    state.stats.loads += 1
    state.stats.load_seconds += seconds
    if not isinstance(value, Entry):
        return Loaded(value, context.said, False, started, seconds)
    # (What an outer load found not modified is a plain value here.)
    renewed = isinstance(value, NotModified) and value.load is context
    return Loaded(value.value, laid_over(context.said, value), renewed, started, seconds)


async def _with_retries(rt: Runtime, loader: Callable[[], Any], context: LoadContext, retry: Retry) -> Any:
    from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

    async def once() -> Any:
        context.forget()
        return await call_loader(rt, loader, context.key)

    # The pauses are the runtime's: under threads they block, so this runs without an event loop.
    retrying = AsyncRetrying(
        sleep=rt.sleep,
        stop=stop_after_attempt(retry.attempts + 1),
        wait=wait_random_exponential(multiplier=retry.wait, max=retry.max_wait),
        retry=retry_if_exception_type(retry.on),
        reraise=True,
    )
    return await retrying(once)


async def late_tags_hold(
    state: State, rt: Runtime, tags: Sequence[str], started: float
) -> dict[str, bytes] | None:
    """The generations of tags that came with the value, or None where one changed since the load began.

    Nobody captured them before, so the server's time of change decides: its clock is read now, and the start of the
    load placed on it by this process's monotonic clock, early by the time that the reading took. Where the tier's
    times are not one server's, nothing can be decided and nothing is stored.
    """
    authority = state.chain.authority
    if not authority.tier.server_time:
        return None
    try:
        proposed = {tag: rt.new_id() for tag in tags}
        standing = await authority.set_generations(rt, proposed, only_missing=True)
        clock = await authority.set_generations(rt, {CLOCK_TAG: rt.new_id()}, only_missing=False)
    except TierUnavailable:
        return None
    began = clock[CLOCK_TAG].changed - (rt.monotonic() - started) * 1000 - 1
    for tag in tags:
        if standing[tag].mark != proposed[tag] and standing[tag].changed >= began:
            return None
    return {tag: standing[tag].mark for tag in tags}
