"""The database of a simulation: one value a key, and the record of all it ever had."""

from __future__ import annotations

from typing import Any

from cachewright.errors import NotSaved
from cachewright.testing.sim.network import Broken, Late, Link, Server
from cachewright.testing.sim.runtime import SimRuntime
from cachewright.testing.sim.world import World

__all__ = ["OriginFailed", "OriginRefused", "SimOrigin"]


class OriginFailed(Exception):
    """The database did not answer: nobody knows whether it saved."""


class OriginRefused(OriginFailed, NotSaved):
    """The database was not reached: it certainly saved nothing."""


class SimOrigin(Server):
    """A database.

    Args:
        world: where it stands.
        is_truth: what it saves is what reads are judged by; False behind a write-behind buffer, whose order counts.
        ordered: it refuses older sequences.
    """

    def __init__(self, world: World, *, is_truth: bool = True, ordered: bool = False) -> None:
        super().__init__(world, "database")
        self.is_truth, self.ordered = is_truth, ordered
        self.values: dict[str, Any] = {}
        self.sequences: dict[str, int] = {}
        self.saves: list[tuple[float, str, Any, int]] = []

    def begin(self, key: str, value: Any) -> None:
        """What stands at the beginning."""
        self.values[key] = value
        self.world.history.became(key, value)

    def save(self, key: str, value: Any, sequence: int) -> None:
        """The effect of a save."""
        if self.ordered and sequence < self.sequences.get(key, 0):
            return
        self.sequences[key] = sequence
        self.values[key] = value
        self.saves.append((self.world.time, key, value, sequence))
        if self.is_truth:
            self.world.history.became(key, value)


class OriginClient:
    """A process's way to the database."""

    def __init__(self, origin: SimOrigin, link: Link) -> None:
        self.origin, self._link = origin, link

    async def read(self, rt: SimRuntime, key: str) -> Any:
        """The key's value.

        Raises:
            OriginFailed: no answer.
        """
        try:
            return (await self._link.exchange(rt, [lambda: self.origin.values.get(key)], text=f"load {key}"))[
                0
            ]
        except (Broken, Late) as error:
            raise OriginFailed(str(error)) from None

    async def save(self, rt: SimRuntime, key: str, value: Any, sequence: int = 0) -> None:
        """Saves a value.

        Raises:
            OriginRefused: it was certainly not saved.
            OriginFailed: nobody knows.
        """
        effect = lambda: self.origin.save(key, value, sequence)  # noqa: E731
        try:
            await self._link.exchange(rt, [effect], text=f"save {key} = {value}")
        except Broken as error:
            raise (OriginFailed if error.sent else OriginRefused)(str(error)) from None
        except Late as error:
            raise OriginFailed(str(error)) from None
