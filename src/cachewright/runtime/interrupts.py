"""Whether an error ends who runs a user's saver or loader, or is that one's own, however it looks.

It may raise what usually ends a thread or a task: it awaited something that was cancelled, or it calls ``sys.exit``.
Taken literally, one record would end the flusher of all others, and silently; and a load that failed so would look like
one whose caller went away, to be begun anew at once.
"""

from __future__ import annotations

import contextvars
import threading
import weakref
from collections.abc import Callable

from cachewright.runtime.base import Runtime

__all__ = ["cancellations", "ends_us", "goes_behind", "is_behind", "is_exit", "is_pooled", "mark_pooled"]

# Which thread or task: a loader may start others, and they inherit its context.
_BEHIND: contextvars.ContextVar[Callable[[], object] | None] = contextvars.ContextVar(
    "cachewright_behind", default=None
)


def cancellations(rt: Runtime) -> int:
    """How often the running task has been told to end; note it before what may raise."""
    if rt.name != "asyncio":
        return 0
    import asyncio

    task = asyncio.current_task()
    if task is None:
        return 0
    # A task that cancels itself has not heard of it yet: that comes at its next pause, which may be in a loader.
    return task.cancelling() - bool(getattr(task, "_must_cancel", False))


def ends_us(rt: Runtime, error: BaseException, before: int) -> bool:
    """Whether whoever called what raised this must end by it, rather than take it for that one's failure.

    Args:
        rt: the runtime that it ran under.
        error: what was raised.
        before: `cancellations` before the call. A task may have swallowed a request of long ago.
    """
    if isinstance(error, Exception):
        return False
    # GeneratorExit: nobody goes on with this coroutine. The simulator cancels only from outside.
    if isinstance(error, GeneratorExit) or rt.name == "sim":
        return True
    if isinstance(error, KeyboardInterrupt | SystemExit):
        # A signal's handler raises in whatever the main thread is at; elsewhere nobody but the saver or loader does.
        return threading.current_thread() is threading.main_thread() and not is_pooled(error)
    return cancellations(rt) > before


def is_exit(error: BaseException) -> bool:
    """Whether it is one that usually ends a thread or a program: neither a failure nor a cancellation."""
    if isinstance(error, Exception):
        return False
    import asyncio

    return not isinstance(error, asyncio.CancelledError)


def goes_behind(rt: Runtime) -> None:
    """From here on the running thread's or task's work is nobody's call: nobody is there to be ended by it."""
    _BEHIND.set(_runner(rt))


def is_behind(rt: Runtime) -> bool:
    """Whether the running thread or task has said so."""
    runner = _BEHIND.get()
    return runner is not None and runner() == _runner(rt)()


def _runner(rt: Runtime) -> Callable[[], object]:
    if rt.name != "asyncio":
        ident = threading.get_ident()
        return lambda: ident
    import asyncio

    task = asyncio.current_task()
    # Weak: a task that holds itself by its context is left to the garbage collector.
    return weakref.ref(task) if task is not None else lambda: None


def mark_pooled(error: BaseException) -> None:
    """Says that it was raised in a thread of a pool, before it is handed to a task that may be the main thread's."""
    if not isinstance(error, Exception):
        error.__dict__["_cachewright_pooled"] = True


def is_pooled(error: BaseException) -> bool:
    """Whether it was raised in a thread of a pool: there it is nobody's call to end."""
    return "_cachewright_pooled" in error.__dict__
