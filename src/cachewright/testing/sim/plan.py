"""What is to happen in a run: clients and their operations, and disasters, in a setting. Plain data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from cachewright.testing.sim.cues import Cue
from cachewright.testing.sim.seat import Seat
from cachewright.testing.sim.setting import Setting

__all__ = ["Client", "Disaster", "DisasterKind", "Op", "Plan"]

DisasterKind = Literal["crash", "pause", "clock", "down", "hang", "evict", "empty", "old"]


class Op(ABC):
    """One thing that a client does. Subclasses are frozen dataclasses: their repr is what a failure prints."""

    @abstractmethod
    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        """Does it from a seat in a process; ``cancelled``: its caller is going to cancel it."""


@dataclass(frozen=True)
class Client:
    """A caller: its process, and what it does, each after a pause of so many seconds."""

    process: int
    ops: tuple[tuple[float, Op], ...]


@dataclass(frozen=True)
class Disaster:
    """Something that befalls a process (by number) or a server (by name).

    Kinds: of a process ``"crash"`` (it starts anew after ``seconds``), ``"pause"``, ``"clock"`` (its clock jumps by
    ``seconds``); of a server ``"down"``, ``"hang"`` (for ``seconds``), ``"evict"`` (all keys of the store),
    ``"empty"`` (a restart with nothing), ``"old"`` (``seconds`` later it restarts with what stands now).
    """

    at: float
    kind: DisasterKind
    target: int | str
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Plan(Setting):
    """A run to be.

    Attributes:
        clients: who calls.
        disasters: what befalls whom.
        cues: what happens at chosen moments of chosen requests.
    """

    clients: tuple[Client, ...]
    disasters: tuple[Disaster, ...] = ()
    cues: tuple[Cue, ...] = ()

    @property
    def blows(self) -> tuple[Disaster | Cue, ...]:
        """All that is more than slowness: disasters, and cues other than stalls."""
        return (*self.disasters, *(cue for cue in self.cues if cue.kind != "stall"))
