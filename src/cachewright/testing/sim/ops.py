"""What clients do. A new capability brings its own: a frozen dataclass with a `run` that records its call."""

from __future__ import annotations

from dataclasses import dataclass

from cachewright.testing.sim.plan import Op
from cachewright.testing.sim.seat import Seat

__all__ = [
    "Cancelled",
    "Change",
    "ChangeUnder",
    "ChangeTag",
    "Clear",
    "CloseCache",
    "Delete",
    "Get",
    "Put",
    "Read",
    "ReadMany",
    "ReadTagged",
    "Refresh",
    "RepositoryGet",
    "RepositoryRead",
    "Together",
    "Wait",
]


@dataclass(frozen=True)
class Read(Op):
    """``get_or_set``: the value, loaded where it is missing."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        with seat.call("read", f"get_or_set({self.key})", [self.key], cancelled=cancelled) as (call,):
            call.value = await seat.cache.aget_or_set(self.key, lambda: seat.load(self.key))


@dataclass(frozen=True)
class ReadTagged(Op):
    """``get_or_set`` of an entry that carries tags."""

    key: str = "k"
    tags: tuple[str, ...] = ("t",)

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        text = f"get_or_set({self.key}, tags={','.join(self.tags)})"
        with seat.call("read", text, [self.key], cancelled=cancelled) as (call,):
            call.value = await seat.cache.aget_or_set(self.key, lambda: seat.load(self.key), tags=self.tags)


@dataclass(frozen=True)
class ReadMany(Op):
    """``get_or_set_many``."""

    keys: tuple[str, ...]

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        async def load(keys: list[str]) -> dict[str, object]:
            return {key: await seat.load(key) for key in keys}

        text = f"get_or_set_many({', '.join(self.keys)})"
        with seat.call("read", text, self.keys, cancelled=cancelled) as calls:
            found = await seat.cache.aget_or_set_many(self.keys, load)
            for call in calls:
                call.value = found[call.key]


@dataclass(frozen=True)
class Get(Op):
    """``get``: the value, if it is there."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        with seat.call("look", f"get({self.key})", [self.key], cancelled=cancelled) as (call,):
            call.value = await seat.cache.aget(self.key)


@dataclass(frozen=True)
class Refresh(Op):
    """A load even over a fresh entry."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        with seat.call("read", f"refresh({self.key})", [self.key], cancelled=cancelled) as (call,):
            engine = seat.cache.engine
            call.value = await engine.load(
                seat.rt, self.key, lambda: seat.load(self.key), engine.options, forced=True
            )


@dataclass(frozen=True)
class Change(Op):
    """The database is changed without the cache, which is then told: save, ``delete``."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        value = seat.new_value(self.key)
        text = f"save {self.key} = {value}, then delete({self.key})"
        with seat.call("change", text, [self.key], cancelled=cancelled, value=value):
            await seat.database.save(seat.rt, self.key, value)
            await seat.cache.adelete(self.key)


@dataclass(frozen=True)
class ChangeTag(Op):
    """The database is changed without the cache, which is then told by a tag that the keys carry."""

    keys: tuple[str, ...] = ("k",)
    tag: str = "t"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        text = f"save {', '.join(self.keys)}, then invalidate_tags({self.tag})"
        with seat.call("change", text, self.keys, cancelled=cancelled) as calls:
            for call in calls:
                call.value = seat.new_value(call.key)
                await seat.database.save(seat.rt, call.key, call.value)
            await seat.cache.ainvalidate_tags(self.tag)


@dataclass(frozen=True)
class Clear(Op):
    """The database is changed without the cache, which is then cleared."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        value = seat.new_value(self.key)
        text = f"save {self.key} = {value}, then clear()"
        with seat.call("change", text, [self.key], cancelled=cancelled, value=value):
            await seat.database.save(seat.rt, self.key, value)
            await seat.cache.aclear()


@dataclass(frozen=True)
class RepositoryRead(Op):
    """A repository's ``get``."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        with seat.call("read", f"repository.get({self.key})", [self.key], cancelled=cancelled) as (call,):
            call.value = await seat.repository.aget(self.key)


@dataclass(frozen=True)
class RepositoryGet(Op):
    """A ``get`` of a repository's key: the value, if it is there."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        with seat.call("look", f"get(r:{self.key})", [self.key], cancelled=cancelled) as (call,):
            call.value = await seat.cache.aget(seat.repository.key_for(self.key))


@dataclass(frozen=True)
class ChangeUnder(Op):
    """The database is changed without the repository, which is then told: save, ``invalidate``."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        value = seat.new_value(self.key)
        text = f"save {self.key} = {value}, then repository.invalidate({self.key})"
        with seat.call("change", text, [self.key], cancelled=cancelled, value=value):
            await seat.database.save(seat.rt, self.key, value)
            await seat.repository.ainvalidate(self.key)


@dataclass(frozen=True)
class Put(Op):
    """A repository's ``put``."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        value = seat.new_value(self.key)
        text = f"repository.put({self.key}, {value})"
        with seat.call("change", text, [self.key], cancelled=cancelled, value=value):
            await seat.repository.aput(self.key, value)


@dataclass(frozen=True)
class Delete(Op):
    """A repository's ``delete``."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        text = f"repository.delete({self.key})"
        with seat.call("change", text, [self.key], cancelled=cancelled):
            await seat.repository.adelete(self.key)


@dataclass(frozen=True)
class CloseCache(Op):
    """``close`` of the cache, whatever is under way on it; a later call opens it again."""

    timeout: float = 5.0

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        with seat.call("flush", f"close of the cache({self.timeout})", [""], cancelled=cancelled):
            await seat.cache.aclose(self.timeout)


@dataclass(frozen=True)
class Wait(Op):
    """Does nothing for a while."""

    seconds: float

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        await seat.rt.sleep(self.seconds)


@dataclass(frozen=True)
class Cancelled(Op):
    """Another operation, cancelled by its caller after so many seconds."""

    op: Op
    after: float

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        await seat.cancelling(lambda: self.op.run(seat, cancelled=True), self.after)


@dataclass(frozen=True)
class Together(Op):
    """Several operations at once, in one process."""

    ops: tuple[Op, ...]

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        tasks = [
            seat.process.spawn(_alone(op, seat), f"part{n}", inherit=True) for n, op in enumerate(self.ops)
        ]
        while not all(task.done for task in tasks):
            await seat.rt.sleep(0.005)


async def _alone(op: Op, seat: Seat) -> None:
    await op.run(seat)
