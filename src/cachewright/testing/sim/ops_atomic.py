"""Plain operations of a cache without a database, each with its result, for the check of linearizability."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from cachewright.errors import MissingKeyError
from cachewright.testing.sim.linearize import MISSING_NUMBER, Atom
from cachewright.testing.sim.plan import Op
from cachewright.testing.sim.seat import Seat

__all__ = ["Add", "Fetch", "Incr", "Load", "Remove", "Set", "Touch"]

TTL = 1000.0  # longer than any run: an entry that expired would be one that somebody deleted


async def _do(
    seat: Seat, key: str, asked: Atom, work: Callable[[], Awaitable[Any]], *, cancelled: bool
) -> None:
    text = f"{asked.kind}({key}" + (f", {asked.argument})" if asked.argument is not None else ")")
    with seat.call("atom", text, [key], cancelled=cancelled, value=asked) as (call,):
        call.value = Atom(asked.kind, asked.argument, await work())


def _number(seat: Seat, key: str) -> int:
    """A number that no ``incr`` of any other number reaches."""
    return int(seat.new_value(key).rpartition(".")[2]) * 1000


@dataclass(frozen=True)
class Fetch(Op):
    """``get``."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        await _do(seat, self.key, Atom("get"), lambda: seat.cache.aget(self.key), cancelled=cancelled)


@dataclass(frozen=True)
class Set(Op):
    """``set``."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        value = _number(seat, self.key)
        work = lambda: seat.cache.aset(self.key, value, ttl=TTL)  # noqa: E731
        await _do(seat, self.key, Atom("set", value), work, cancelled=cancelled)


@dataclass(frozen=True)
class Add(Op):
    """``add``."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        value = _number(seat, self.key)
        work = lambda: seat.cache.aadd(self.key, value, ttl=TTL)  # noqa: E731
        await _do(seat, self.key, Atom("add", value), work, cancelled=cancelled)


@dataclass(frozen=True)
class Touch(Op):
    """``touch``."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        work = lambda: seat.cache.atouch(self.key, TTL)  # noqa: E731
        await _do(seat, self.key, Atom("touch"), work, cancelled=cancelled)


@dataclass(frozen=True)
class Incr(Op):
    """``incr``."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        async def work() -> Any:
            try:
                return await seat.cache.aincr(self.key)
            except MissingKeyError:
                return MISSING_NUMBER

        await _do(seat, self.key, Atom("incr", 1), work, cancelled=cancelled)


@dataclass(frozen=True)
class Load(Op):
    """``get_or_set``: what it returns says nothing of the entry, which may have changed while the loader ran."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        value = _number(seat, self.key)

        async def load() -> int:
            await seat.rt.sleep(seat.rt.random() * 0.01)
            return value

        work = lambda: seat.cache.aget_or_set(self.key, load, ttl=TTL)  # noqa: E731
        await _do(seat, self.key, Atom("load", value), work, cancelled=cancelled)


@dataclass(frozen=True)
class Remove(Op):
    """``delete``."""

    key: str = "k"

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        await _do(seat, self.key, Atom("delete"), lambda: seat.cache.adelete(self.key), cancelled=cancelled)
