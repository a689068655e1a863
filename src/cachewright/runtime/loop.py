"""An event loop on a thread of its own, for programs that are not async themselves and run others' ``async def``."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

__all__ = ["LoopThread"]


class LoopThread:
    """A daemon thread that runs one event loop until `stop`; a coroutine that hangs cannot keep the process alive."""

    def __init__(self, name: str) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()
        self._ready.wait()

    def _main(self) -> None:
        asyncio.run(self._wait())  # it cancels and closes what is left when that returns

    async def _wait(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._ready.set()
        await self._over.wait()

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> concurrent.futures.Future[T]:
        """Has the loop run ``work()``; its result or error is the future's."""
        return asyncio.run_coroutine_threadsafe(work(), self._loop)

    def stop(self, timeout: float) -> bool:
        """Cancels what runs and ends the loop; False when ``timeout`` seconds passed first."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(timeout)
        return not self._thread.is_alive()
