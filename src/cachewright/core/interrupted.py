"""A loader that raises what usually ends a task or a thread, where that would end nobody, or somebody else.

Only an ``Exception`` is shared by those who wait for a load, because what ends a caller is that caller's fate alone: the
load is handed on. Taken for that, a loader that awaited a cancelled task, or that exits behind its callers, would be
begun anew by each of them, with no failure told, counted or remembered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from cachewright.errors import LoaderInterrupted
from cachewright.runtime.base import Runtime
from cachewright.runtime.interrupts import cancellations, ends_us, is_behind, is_exit, is_pooled

__all__ = ["call_loader", "exit_of", "own_exit"]


async def call_loader(rt: Runtime, loader: Callable[..., Any], key: str, *args: Any) -> Any:
    """What the loader returns; ``key`` (of a batch, the first) is for the message.

    Raises:
        LoaderInterrupted: it leaked a cancellation though nobody had cancelled this caller, or it raised what is no
            ``Exception`` where it is nobody's call: behind its callers, or in the thread of a pool.
        BaseException: whatever else it raised.
    """
    before = cancellations(rt)
    try:
        return await rt.call(loader, *args)
    except BaseException as error:
        if ends_us(rt, error, before) or isinstance(error, Exception):
            raise
        if is_exit(error) and not is_pooled(error) and not is_behind(rt):
            raise  # in the caller's own thread or task: its fate
        raise _interrupted(loader, key, error) from error


def _interrupted(loader: Callable[..., Any], key: str, error: BaseException) -> LoaderInterrupted:
    if is_exit(error):
        why = f"raised {type(error).__name__}, which can end nobody there: raise an Exception"
    else:
        why = (
            "leaked a CancelledError, and nobody had cancelled its caller: catch it where the loader awaits what may be "
            "cancelled (a task of its own, a scope that ends elsewhere) and raise an Exception"
        )
    failure = LoaderInterrupted(f"the loader of {key!r} {why}")
    inner = loader.func if isinstance(loader, functools.partial) else getattr(loader, "__wrapped__", loader)
    failure.brought = (id(loader), id(inner))
    return failure


def own_exit(rt: Runtime, error: LoaderInterrupted, loader: object) -> BaseException | None:
    """What this caller's own ``loader`` raised to end it, or None.

    Whether its thread ends by a ``sys.exit`` of its own loader must not depend on options: with ``load_timeout`` that
    runs behind it.
    """
    return exit_of(rt, error) if id(loader) in error.brought and not is_behind(rt) else None


def exit_of(rt: Runtime, error: Exception) -> BaseException | None:
    """The ``SystemExit`` or the like that a loader raised, for a thread. A task's event loop would stop with it."""
    cause = error.__cause__ if isinstance(error, LoaderInterrupted) and rt.name == "threads" else None
    return cause if cause is not None and is_exit(cause) else None
