"""What clients of a repository that writes behind do besides reading and writing: flush, close, replay."""

from __future__ import annotations

from dataclasses import dataclass

from cachewright.errors import NotDirtyError
from cachewright.testing.sim.plan import Op
from cachewright.testing.sim.seat import NAMESPACE, Seat

__all__ = ["Close", "Discard", "Evict", "Flush", "PutAll", "Replay"]


@dataclass(frozen=True)
class Flush(Op):
    """A repository's ``flush``."""

    timeout: float | None = None

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        with seat.call("flush", f"flush({self.timeout})", [""], cancelled=cancelled):
            await seat.repository.aflush(self.timeout)


@dataclass(frozen=True)
class Close(Op):
    """A repository's ``close``; a later call opens it again."""

    timeout: float | None = 10.0

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        with seat.call("flush", f"close({self.timeout})", [""], cancelled=cancelled):
            await seat.repository.aclose(self.timeout)


@dataclass(frozen=True)
class Replay(Op):
    """A dead letter is made dirty again, where there is one."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        with seat.call("other", f"replay({self.key})", [self.key], cancelled=cancelled) as (call,):
            try:
                await seat.repository.areplay(self.key)
                call.value = "replayed"
            except NotDirtyError:
                call.value = "no dead letter"


@dataclass(frozen=True)
class PutAll(Op):
    """A repository's ``put_many``: taken by the buffer all or none."""

    keys: tuple[str, ...]

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        values = {key: seat.new_value(key) for key in self.keys}
        text = f"repository.put_many({values})"
        with seat.call("change", text, self.keys, cancelled=cancelled) as calls:
            for call in calls:
                call.value = values[call.key]
            await seat.repository.aput_many(values)


@dataclass(frozen=True)
class Discard(Op):
    """A dead letter is removed for good, where there is one; what the database has counts again."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        with seat.call("other", f"discard({self.key})", [self.key], cancelled=cancelled) as (call,):
            try:
                await seat.repository.adiscard(self.key)
            except NotDirtyError:
                call.value = "no dead letter"
                return
            call.kind, call.value = "change", seat.scene.origin.values.get(self.key)


@dataclass(frozen=True)
class Evict(Op):
    """Every server loses what it holds of a repository's key; process memory keeps it."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        with seat.call("other", f"eviction of {self.key} everywhere", [self.key], cancelled=cancelled):
            for server in seat.scene.servers.values():
                server.store.evict(f"{NAMESPACE}:{seat.repository.key_for(self.key)}")
