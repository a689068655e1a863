"""The port through which the core meets time, chance, waiting and other people's code.

The core is `async def` against this protocol. Under the thread runtime every leaf *blocks* instead of suspending, so
a coroutine of the core runs to its end with one ``send(None)`` (see `drive`): one source, both faces, no thread hop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, Protocol, TypeVar

T = TypeVar("T")

__all__ = ["Clock", "Job", "Runtime", "Waiter", "drive", "next_renewal"]


class Clock(Protocol):
    """Where time comes from; tests inject one that they move by hand."""

    def now(self) -> float:
        """Wall-clock seconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds that never go back; differences only."""


class Waiter(Protocol):
    """One caller's bell. It can be rung from any thread, under any runtime, any number of times."""

    def set(self) -> None:
        """Rings; wakes the one who waits, or makes its next wait return at once."""

    def is_set(self) -> bool:
        """Whether it was rung."""


class Job(Protocol):
    """Background work started by `Runtime.spawn`."""

    def cancel(self) -> None:
        """Asks it to stop; harmless when it is done."""

    def done(self) -> bool:
        """Whether it has ended, however."""

    def goes_on(self) -> bool:
        """Whether it will go on by itself. What an event loop that stands still was at may never."""


class Runtime(Protocol):
    """Threads, asyncio or the simulator. Chosen by the face that is called, never guessed."""

    @property
    def name(self) -> Literal["threads", "asyncio", "sim"]:
        """Which one; a remote tier picks its driver by it."""

    def now(self) -> float:
        """Wall-clock seconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds that never go back."""

    def random(self) -> float:
        """A number in [0, 1)."""

    def new_id(self) -> bytes:
        """8 random bytes: a nonce, token or generation that nobody had before."""

    def whoami(self) -> tuple[int | None, Callable[[], bool]]:
        """Who leads a flight here: the thread of its event loop (None under threads), and whether it can still end it."""

    async def sleep(self, seconds: float) -> None:
        """Pauses this caller."""

    def waiter(self) -> Waiter:
        """A new bell that this runtime can wait for."""

    async def wait(self, waiter: Waiter, timeout: float | None) -> bool:
        """Waits until the bell (one of this runtime's own) rings; False when ``timeout`` seconds passed first."""

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs a user's function to its result, where such functions belong.

        threads: on this thread; an ``async def`` is a `ConfigurationError`. asyncio: an ``async def`` is awaited, a
        plain function runs in a worker thread with a copied context. Its exception comes through unchanged.
        """

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        """Runs our own blocking code (SQLite, say) without holding up an event loop."""

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> Job:
        """Starts background work that outlives the caller: a daemon worker or a tracked task, context copied."""

    def every(
        self, seconds: float, tick: Callable[[], Awaitable[float | None]], name: str, *, errand: bool = False
    ) -> Job:
        """Calls ``tick`` after so many seconds, and again after as many as it returned (heartbeats); None: it is over.

        ``errand``: it may be long about it, and takes no thread from the heartbeats.
        """


def next_renewal(rt: Runtime, began: float, pause: float, answered: bool) -> float:
    """Seconds until the next renewal of what lives for three pauses.

    From the start of the last one, which may have taken long, and soon after one that was not answered: in beats counted
    from their ends one lost answer is enough to lose a lease of a second, or a claim, whose holder lives.
    """
    return max(0.0, pause - (rt.monotonic() - began)) if answered else min(0.2, pause / 4)


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine of the core under the thread runtime: one ``send``, since nothing in it suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("a coroutine suspended under the thread runtime: some leaf used asyncio")
