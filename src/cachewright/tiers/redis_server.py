"""One Redis server as the tiers see it: both drivers over one address, and what they must tell each other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from cachewright.runtime.base import Runtime
from cachewright.tiers.redis_driver import (
    Address,
    Command,
    Faults,
    LateStores,
    Reply,
    ReplyError,
    Send,
    raise_reply,
)
from cachewright.tiers.redis_driver_threads import BlockingDriver

if TYPE_CHECKING:
    from cachewright.tiers.redis_driver_aio import AioDriver

T = TypeVar("T")

__all__ = ["Server"]


class Server:
    """Executes batches by the driver that fits the runtime; nothing is sent before the first batch."""

    def __init__(
        self, address: Address, tier: str, timeout: float, max_connections: int | None = None
    ) -> None:
        self.address = address
        self.tier = tier
        self.faults = Faults(tier, address, timeout)
        self.late = LateStores(self.faults)
        self.blocking = BlockingDriver(address, self.faults, self.late, max_connections)
        self._aio: AioDriver | None = None

    @property
    def aio(self) -> AioDriver:
        """The asyncio driver, made when an event loop first asks for it."""
        if self._aio is None:
            from cachewright.tiers.redis_driver_aio import AioDriver

            self._aio = AioDriver(self.address, self.faults, self.late)
        return self._aio

    async def execute(
        self,
        rt: Runtime,
        commands: Sequence[Command],
        deadline: float,
        *,
        repeatable: bool = False,
        store: bool = False,
    ) -> list[Reply]:
        """See `BlockingDriver.execute`."""
        if rt.name == "threads":
            return self.blocking.execute(commands, deadline, repeatable=repeatable, store=store)
        return await self.aio.execute(commands, deadline, repeatable=repeatable, store=store)

    async def hold(
        self, rt: Runtime, deadline: float, work: Callable[[Send], Awaitable[T]], *, store: bool = False
    ) -> T:
        """See `BlockingDriver.hold`."""
        if rt.name == "threads":
            return await self.blocking.hold(deadline, work, store=store)
        return await self.aio.hold(deadline, work, store=store)

    def refused(self, reply: ReplyError) -> NoReturn:
        """Raises what an error reply means."""
        if reply.code == "READONLY":
            # Demoted to a replica: the same name may lead to the new primary by now.
            self.close()
        raise_reply(self.tier, reply)

    def close(self) -> None:
        """Closes all connections, from any thread; later use opens new ones."""
        self.blocking.close()
        if self._aio is not None:
            self._aio.close()

    def after_fork(self) -> None:
        """In a forked child: lets the parent's connections go."""
        self.late.renew()
        self.blocking.after_fork()
        if self._aio is not None:
            self._aio.after_fork()

    def describe(self) -> dict[str, Any]:
        """Facts without credentials."""
        connections = self.blocking.connections + (self._aio.connections if self._aio is not None else 0)
        return {"address": self.address.label, "connections": connections}
