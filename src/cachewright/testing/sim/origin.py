"""The database of a simulation: one value a key, and the record of all it ever had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cachewright.errors import NotSaved
from cachewright.testing.sim.history import FailedSave
from cachewright.testing.sim.network import Broken, Late, Link, Server
from cachewright.testing.sim.runtime import SimRuntime
from cachewright.testing.sim.world import World

__all__ = ["OriginFailed", "OriginRefused", "Saved", "SimOrigin"]


class OriginFailed(Exception):
    """The database did not answer: nobody knows whether it saved."""


class OriginRefused(OriginFailed, NotSaved):
    """The database was not reached: it certainly saved nothing."""


@dataclass(frozen=True, slots=True)
class Saved:
    """One save as it landed."""

    time: float
    steps: int
    key: str
    value: Any
    sequence: int


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
        self.saves: list[Saved] = []

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
        self.saves.append(Saved(self.world.time, self.world.steps, key, value, sequence))
        if self.is_truth:
            self.world.history.became(key, value)
        else:
            self.world.history.accept(key, value, sequence)  # news only where it went past a full buffer


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
        try:
            await self._save(rt, [lambda: self.origin.save(key, value, sequence)], f"save {key} = {value}")
        except OriginFailed as error:
            self._failed(rt, key, value, error)
            raise

    async def save_many(
        self, rt: SimRuntime, rows: Sequence[tuple[str, Any, int]], failing: float
    ) -> dict[str, Exception]:
        """Saves rows of key, value and sequence in one trip; those that failed by themselves, and how.

        Args:
            rt: the caller's runtime.
            rows: what to save.
            failing: how likely a row is to fail by itself; half of these say that nothing was changed, and of the
                others half were saved all the same.

        Raises:
            OriginRefused, OriginFailed: as `save`, for all.
        """
        task = rt.check()
        failed: dict[str, Exception] = {}
        steps = []
        for key, value, sequence in rows:
            luck = task.random.random()
            if luck < failing and task.fault(f"row {key}"):
                certain = luck < failing / 2
                failed[key] = (OriginRefused if certain else OriginFailed)("the row was refused")
                if certain or luck < failing * 0.75:
                    continue
            steps.append(partial(self.origin.save, key, value, sequence))
        text = ", ".join(f"{key} = {value}" for key, value, _ in rows)
        # One that does nothing: also a batch of which nothing is saved travels.
        try:
            await self._save(rt, [*steps, lambda: None], f"save many: {text}")
        except OriginFailed as error:
            failed = {key: error for key, _, _ in rows}
            raise
        finally:
            for key, value, _ in rows:
                if key in failed:
                    self._failed(rt, key, value, failed[key])
        return failed

    def _failed(self, rt: SimRuntime, key: str, value: Any, error: BaseException) -> None:
        world = self.origin.world
        who = rt.check().name
        world.history.failed_saves.append(FailedSave(who, world.steps, key, value, error))

    async def _save(self, rt: SimRuntime, effects: Sequence[Callable[[], Any]], text: str) -> None:
        try:
            await self._link.exchange(rt, effects, text=text)
        except Broken as error:
            raise (OriginFailed if error.sent else OriginRefused)(str(error)) from None
        except Late as error:
            raise OriginFailed(str(error)) from None
