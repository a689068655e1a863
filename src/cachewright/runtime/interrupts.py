"""Whether an error ends who runs a user's saver, or is the saver's own, however it looks.

A saver may raise what usually ends a thread or a task: it awaited something that was cancelled, or it calls ``sys.exit``.
Taken literally, one record would end the flusher of all others, and silently.
"""

from __future__ import annotations

import threading

from cachewright.runtime.base import Runtime

__all__ = ["cancellations", "ends_us", "is_exit"]


def cancellations(rt: Runtime) -> int:
    """How often the running task has been asked to end; note it before what may raise."""
    if rt.name != "asyncio":
        return 0
    import asyncio

    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


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
        # A signal's handler raises in whatever the main thread is at; elsewhere nobody but the saver raises these.
        return threading.current_thread() is threading.main_thread()
    return cancellations(rt) > before


def is_exit(error: BaseException) -> bool:
    """Whether it is one that usually ends a thread or a program: neither a failure nor a cancellation."""
    if isinstance(error, Exception):
        return False
    import asyncio

    return not isinstance(error, asyncio.CancelledError)
