"""The asyncio Redis driver: one connection per event loop, which all its tasks share, one write per loop tick.

A lone operation is sent at once. What arrives while others wait for replies is collected until the next tick and
sent in one piece, which makes hundreds of concurrent operations cost a few system calls. Replies match by order, so
an operation that misses its deadline takes the connection, and all that wait on it, with it.

Sockets of our own instead of asyncio's streams: a transport cannot be closed once its loop is gone.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from cachewright.errors import TierError, TierTimeout, TierUnavailable
from cachewright.tiers.redis_aio_connection import Connection
from cachewright.tiers.redis_driver import Address, Command, Faults, LateStores, Reply, Send, pack, remaining

T = TypeVar("T")

__all__ = ["AioDriver", "execute_all"]


class _Place:
    """What one event loop has here: the connection all share, and one that a transaction has for itself.

    WATCH and EXEC belong to a connection: on the shared one the EXEC of one task would end the watches of another.
    """

    def __init__(self) -> None:
        self.shared: Connection | None = None
        self.held: Connection | None = None
        self.turn = asyncio.Lock()

    def connections(self) -> list[Connection]:
        return [c for c in (self.shared, self.held) if c is not None and not c.closed]


class AioDriver:
    """The twin of `BlockingDriver`; see there for the meaning of the arguments."""

    def __init__(self, address: Address, faults: Faults, late: LateStores) -> None:
        self._address = address
        self._faults = faults
        self._late = late
        self._lock = threading.Lock()
        self._places: dict[asyncio.AbstractEventLoop, _Place] = {}

    @property
    def connections(self) -> int:
        """How many connections are open, over all loops."""
        with self._lock:
            places = list(self._places.values())
        return sum(len(place.connections()) for place in places)

    async def execute(
        self, commands: Sequence[Command], deadline: float, *, repeatable: bool = False, store: bool = False
    ) -> list[Reply]:
        """Sends all commands in one piece and returns their replies in order."""
        connection = self._shared(check=not repeatable)
        held = repeatable and connection.ready
        try:
            return await self._exchange(connection, commands, deadline, store)
        except TierTimeout:
            raise
        except TierUnavailable:
            if not held or not connection.closed or connection.dismissed:
                raise  # a fresh connection failed, or the server refused: sending again would gain nothing
        if time.monotonic() >= deadline:
            raise self._faults.timed_out()
        return await self._exchange(self._shared(check=False), commands, deadline, store)

    async def hold(self, deadline: float, work: Callable[[Send], Awaitable[T]], *, store: bool = False) -> T:
        """Runs ``work`` with a sender that stays on one connection, which nobody else uses meanwhile."""
        place = self._place()
        try:
            async with asyncio.timeout(remaining(deadline)):
                await place.turn.acquire()
        except TimeoutError as error:
            raise self._faults.timed_out() from error
        try:
            connection = place.held = self._usable(place.held, check=True)

            async def send(commands: Sequence[Command]) -> list[Reply]:
                return await self._exchange(connection, commands, deadline, store)

            try:
                return await work(send)
            except BaseException as error:
                connection.fail(error)  # keys may still be watched
                raise
        finally:
            place.turn.release()

    async def _exchange(
        self, connection: Connection, commands: Sequence[Command], deadline: float, store: bool
    ) -> list[Reply]:
        killed = self._late.ids
        if killed:
            commands = [*self._late.commands(killed), *commands]
        future = connection.submit(pack(commands), len(commands), deadline, store)
        replies = await (_to_the_end(future) if store else future)
        if killed:
            self._late.settle(killed, replies[: len(killed)])
            return replies[len(killed) :]
        return replies

    def _shared(self, *, check: bool) -> Connection:
        place = self._place()
        connection = place.shared = self._usable(place.shared, check=check)
        return connection

    def _usable(self, connection: Connection | None, *, check: bool) -> Connection:
        if connection is not None and not connection.closed:
            if not (check and connection.ended()):
                return connection
            connection.fail(EOFError())
        return Connection(self._address, self._faults, self._late)

    def _place(self) -> _Place:
        loop = asyncio.get_running_loop()
        place = self._places.get(loop)
        if place is None:
            with self._lock:
                gone = [other for other in self._places if other.is_closed()]
                left = [self._places.pop(other) for other in gone]
                place = self._places[loop] = _Place()
            for old in left:
                for connection in old.connections():
                    connection.close()
        return place

    def close(self) -> None:
        """Closes the connections of all loops, whether they run here, elsewhere or no more."""
        with self._lock:
            places = list(self._places.values())
            self._places.clear()
        for place in places:
            for connection in place.connections():
                connection.close()

    def after_fork(self) -> None:
        """Closes the descriptors only: the parent's selector is shared and must not be touched."""
        places = list(self._places.values())
        self._lock = threading.Lock()
        self._places = {}
        for place in places:
            for connection in place.connections():
                connection.let_go()


async def execute_all(
    work: Sequence[tuple[AioDriver, Sequence[Command]]],
    deadline: float,
    *,
    repeatable: bool = False,
    store: bool = False,
) -> list[list[Reply] | TierError]:
    """Executes a batch on each of several servers at once; a failure stands in the place of its replies."""
    outcomes = await asyncio.gather(
        *(
            driver.execute(commands, deadline, repeatable=repeatable, store=store)
            for driver, commands in work
        ),
        return_exceptions=True,
    )
    found: list[list[Reply] | TierError] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, TierError):
            raise outcome
        found.append(outcome)
    return found


async def _to_the_end(future: asyncio.Future[list[Reply]]) -> list[Reply]:
    """Waits for a store even when cancelled (its deadline bounds that).

    Else it would still be under way when the cancelled caller is gone, and could overtake a delete that another
    thread sends next on a connection of its own.
    """
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()
        raise
