"""What a tier is: little. Read many, drop many, store, and `swap` by exact header; the protocol lives above it.

All methods are ``async def`` and take the runtime that the face has chosen. A remote tier keeps a blocking and an
asyncio driver and picks by ``runtime.name``. Keys are the caller's keys; the tier adds namespace and kind
(`keys.physical_key`). Every operation ends within the tier's deadline.

Errors of every method: `TierTimeout` (outcome unknown), `TierUnavailable` (not sent, or the connection broke: outcome
unknown as well), `TierProtocolError`. After a timeout or a broken exchange the connection is closed before anything
else is sent. Nothing is retried inside a tier: ids in a send are fresh, and only the core makes new ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from cachewright.core.slot import Slot
from cachewright.runtime.base import Runtime

__all__ = ["Generation", "Swap", "Swapped", "Tier"]


class Swap(msgspec.Struct, frozen=True):
    """Replace what stands under ``key``, iff its header is ``expected``'s (None: absent), by ``new`` (None: absent).

    Where ``new`` carries the payload of ``expected``, the same object, and its header is as long, a tier may send the
    header alone.
    """

    key: str
    expected: Slot | None
    new: Slot | None


class Swapped(msgspec.Struct, frozen=True):
    """``done``, or refused with what stands there now (``current``; None: absent)."""

    done: bool
    current: Slot | None = None


class Generation(msgspec.Struct, frozen=True):
    """A tag's random mark, and the server's wall-clock ms at which it was set."""

    mark: bytes
    changed: int


class Tier(ABC):
    """One store in a chain."""

    kind: ClassVar[str]
    """``"memory"``, ``"sqlite"``, ``"redis"``, ``"redis+cluster"``, ``"memcached"``."""
    shared: ClassVar[bool] = True
    """Serves all processes of the fleet (not only this process or host)."""
    holds_objects: ClassVar[bool] = False
    """Payloads are the objects themselves, not bytes."""
    scannable: ClassVar[bool] = True
    """`clear` can find every slot of the namespace. Otherwise the core stamps all entries with a namespace tag."""

    server_time: ClassVar[bool] = True
    """`Generation.changed` is one clock's for all clients, so it can tell whether a tag changed since a load began."""

    def __init__(self, name: str, namespace: str) -> None:
        self.name = name
        """For stats, events and errors; never holds credentials."""
        self.namespace = namespace

    @property
    def sharded(self) -> bool:
        """Its keys live on several nodes that fail one by one; it keeps away from a failing node by itself."""
        return False

    @abstractmethod
    async def read(
        self, rt: Runtime, keys: Sequence[str], tags: Sequence[str] = ()
    ) -> tuple[dict[str, Slot], dict[str, Generation]]:
        """Slots of ``keys`` and generations of ``tags``, in one round trip (one per node); absent ones left out."""

    @abstractmethod
    async def swap(self, rt: Runtime, swaps: Sequence[Swap]) -> list[Swapped]:
        """Carries out each swap by itself, atomically, pipelined; results in order. The slot's physical life is
        `slot.life_of(new, now)`."""

    @abstractmethod
    async def drop(self, rt: Runtime, keys: Sequence[str]) -> list[bool]:
        """`slot.drop` on each key, atomically; True where an entry went."""

    @abstractmethod
    async def store(self, rt: Runtime, slots: Mapping[str, Slot]) -> list[bool]:
        """`slot.store` on each key: False where intents stood and it acted as a drop.

        Sent once. After a timeout the old connection is killed at the server before anything else is sent, since a
        late store would undo a delete that was acknowledged in between.
        """

    @abstractmethod
    async def set_generations(
        self, rt: Runtime, marks: Mapping[str, bytes], *, only_missing: bool
    ) -> dict[str, Generation]:
        """Sets tags' generations, with the server's time; returns those that stand afterwards."""

    @abstractmethod
    async def clear(self, rt: Runtime) -> None:
        """Drops every slot of the namespace (standing intents stay, contended); generations stay.

        A slot that stood when the call began is dropped when it returns. On a tier that is not `scannable` this does
        nothing: the core sets a new generation of its namespace tag.
        """

    async def connect(self, rt: Runtime) -> None:
        """Reaches the server once, so that a wrong address shows at start. Default: a read of nothing."""
        await self.read(rt, ["connect"])

    @abstractmethod
    def close(self) -> None:
        """Closes everything, from any thread, also connections of event loops that are gone. Idempotent; a later
        call opens anew."""

    async def aclose(self, rt: Runtime) -> None:
        """Closes, letting this loop's connections say goodbye."""
        self.close()

    def after_fork(self) -> None:
        """In a forked child: lets go of what belongs to the parent without touching its sockets' state."""

    def describe(self) -> dict[str, Any]:
        """Facts for ``stats()``: sizes, addresses without credentials."""
        return {}
