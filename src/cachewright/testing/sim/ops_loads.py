"""Further reads: of many keys, with a slow loader, with tags that come with the value, forced; and a removal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cachewright.options import Entry, merge
from cachewright.testing.sim.history import Load
from cachewright.testing.sim.origin import OriginFailed
from cachewright.testing.sim.plan import Op
from cachewright.testing.sim.seat import Seat

__all__ = ["ReadBatch", "ReadLate", "ReadSlowly", "RefreshTagged", "Remove"]


@dataclass(frozen=True)
class ReadLate(Op):
    """``get_or_set`` whose loader says by itself what (more) tags its value has."""

    key: str = "k"
    late: tuple[str, ...] = ("t",)
    early: tuple[str, ...] = ()

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        async def load() -> Entry[Any]:
            return Entry(await seat.load(self.key), tags=self.late)

        text = f"get_or_set({self.key}), of late tags {','.join(self.late)}"
        with seat.call("read", text, [self.key], cancelled=cancelled) as (call,):
            call.value = await seat.cache.aget_or_set(self.key, load, tags=self.early)


@dataclass(frozen=True)
class ReadSlowly(Op):
    """``get_or_set`` with a loader that takes ``seconds``; the database is asked somewhere in it."""

    key: str = "k"
    seconds: float = 1.0
    tags: tuple[str, ...] = ()

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        async def load() -> Any:
            return (await load_many(seat, [self.key], seconds=self.seconds))[self.key]

        text = f"get_or_set({self.key}), a load of {self.seconds:g} s"
        with seat.call("read", text, [self.key], cancelled=cancelled) as (call,):
            call.value = await seat.cache.aget_or_set(self.key, load, tags=self.tags)


@dataclass(frozen=True)
class RefreshTagged(Op):
    """A load of an entry with tags, even over a fresh one."""

    key: str = "k"
    tags: tuple[str, ...] = ("t",)

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        text = f"refresh({self.key}, tags={','.join(self.tags)})"
        engine = seat.cache.engine
        options = merge(engine.options, {"tags": self.tags})
        with seat.call("read", text, [self.key], cancelled=cancelled) as (call,):
            call.value = await engine.load(
                seat.rt, self.key, lambda: seat.load(self.key), options, forced=True
            )


@dataclass(frozen=True)
class ReadBatch(Op):
    """``get_or_set_many``; its loader leaves some keys out, and has an exception as the value of others."""

    keys: tuple[str, ...]
    leaves_out: tuple[str, ...] = ()
    failing: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    seconds: float = 0.0

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        async def load(keys: list[str]) -> dict[str, Any]:
            left, bad, time = self.leaves_out, self.failing, self.seconds
            return await load_many(seat, keys, leaves_out=left, failing=bad, seconds=time)

        text = f"get_or_set_many({', '.join(self.keys)})"
        if self.leaves_out or self.failing:
            text += f", leaving out {', '.join(self.leaves_out)}, failing for {', '.join(self.failing)}"
        with seat.call("read", text, self.keys, cancelled=cancelled) as calls:
            for call in calls:
                if call.key in self.leaves_out:
                    call.kind = "look"  # nothing is an answer too
            found = await seat.cache.aget_or_set_many(self.keys, load, tags=self.tags)
            for call in calls:
                # A key that this loader does not leave out is missing: the KeyError is a finding.
                call.value = found.get(call.key) if call.kind == "look" else found[call.key]


@dataclass(frozen=True)
class Remove(Op):
    """The database loses the key's value without the cache, which is then told."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        text = f"save {self.key} = None, then delete({self.key})"
        with seat.call("change", text, [self.key], cancelled=cancelled):
            await seat.database.save(seat.rt, self.key, None)
            await seat.cache.adelete(self.key)


async def load_many(
    seat: Seat,
    keys: Sequence[str],
    *,
    leaves_out: Sequence[str] = (),
    failing: Sequence[str] = (),
    seconds: float = 0.0,
) -> dict[str, Any]:
    """A loader of many keys, which are all being loaded from its beginning to its end."""
    history, random = seat.world.history, seat.rt.check().random
    who = seat.rt.check().name
    loads = {key: Load(seat.process.name, who, key, seat.world.time) for key in keys}
    history.loads += loads.values()
    history.note(who, f"loader of {', '.join(keys)} begins")
    found: dict[str, Any] = {}
    before = random.random()
    try:
        await seat.rt.sleep(before * (seconds or 0.02))
        for key, load in loads.items():
            if key in failing:
                load.error = found[key] = OriginFailed(f"of {key} alone")
            elif key not in leaves_out:
                load.value = found[key] = await seat.database.read(seat.rt, key)
        await seat.rt.sleep((1 - before) * seconds or random.random() * random.choice((0.002, 0.05)))
    except BaseException as error:
        for load in loads.values():
            load.error = load.error or error
        raise
    finally:
        for load in loads.values():
            load.end = seat.world.time
    history.note(who, f"loader of {', '.join(keys)} returns {found}")
    return found
