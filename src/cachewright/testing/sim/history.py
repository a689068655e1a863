"""What happened in a run, in order: for the checks, and as a timeline for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Accepted", "Call", "FailedSave", "Firing", "History", "Load", "Note"]


class Ticking(Protocol):
    """What the world's clock shows."""

    time: float
    steps: int


@dataclass(slots=True)
class Note:
    """One line of the timeline."""

    time: float
    who: str
    text: str


@dataclass(slots=True)
class Call:
    """One call of a client.

    Attributes:
        client, process, text: whose, where, and what.
        key: the key it reads or changes.
        kind: ``"read"``, ``"change"`` (is to be seen by every read that starts after it) or ``"other"``.
        start, end: virtual seconds; ``end`` None: it never came back.
        value: what a read returned, or what a change made of the key.
        outcome: ``"returned"``, ``"raised"``, ``"cancelled"``, ``"crashed"``; None while it runs.
    """

    client: str
    process: str
    text: str
    key: str
    kind: str
    start: float
    steps: int
    end: float | None = None
    end_steps: int = 0
    value: Any = None
    outcome: str | None = None
    error: BaseException | None = None
    was_cancelled: bool = False
    trusts_memory: bool = False


@dataclass(slots=True)
class Load:
    """One run of a loader, by a task of a process."""

    process: str
    task: str
    key: str
    start: float
    end: float | None = None
    value: Any = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class FailedSave:
    """A save that failed: in which task, of what, how."""

    task: str
    steps: int
    key: str
    value: Any
    error: BaseException


@dataclass(frozen=True, slots=True)
class Accepted:
    """A state that write-behind took: the step it came in, the value (None: a delete), its sequence."""

    steps: int
    value: Any
    sequence: int


@dataclass(slots=True)
class Firing:
    """How one firing of a schedule was decided.

    Attributes:
        process, key: whose, and of what.
        due: the run, in µs of the wall clock.
        time, steps: when it was decided.
        mine: this process was to do the run; otherwise it found it done.
        finished: when it had written down that the run was done.
    """

    process: str
    key: str
    due: int
    time: float
    steps: int
    mine: bool
    finished: float | None = None


class History:
    """The record of one run."""

    def __init__(self, world: Ticking) -> None:
        self._world = world
        self.notes: list[Note] = []
        self.calls: list[Call] = []
        self.loads: list[Load] = []
        self.faults: list[str] = []
        self.disturbances: dict[
            str, list[float]
        ] = {}  # when a key's lease may have gone, by key ("": all keys)
        self.truth: dict[
            str, list[tuple[int, Any]]
        ] = {}  # by key: all its values, with the step they came in
        self.accepted: dict[str, list[Accepted]] = {}  # by key: what write-behind took, in its order
        self.drops: dict[
            str, list[tuple[float, int]]
        ] = {}  # by key: times and steps at which tiers dropped it
        self.failed_saves: list[FailedSave] = []
        self.evictions: list[tuple[float, int]] = []  # times and steps at which a server lost all rows
        self.failures: list[Load] = []  # looks into the buffer that failed: errors of whoever loads there
        self.leases: dict[tuple[str, str], list[float]] = {}  # by task and key: when it asked for the lease
        self.firings: list[Firing] = []
        self.escaped: list[tuple[str, BaseException]] = []

    def note(self, who: str, text: str) -> None:
        """One more line."""
        self.notes.append(Note(self._world.time, who, text.replace("\0", "°")))  # a name of ours, printable

    def disturb(self, key: str) -> None:
        """From now on another load of the key may be right: a drop, a write, an eviction, a pause."""
        self.disturbances.setdefault(key, []).append(self._world.time)

    def became(self, key: str, value: Any) -> None:
        """The key's true value is another one from now on."""
        self.truth.setdefault(key, []).append((self._world.steps, value))

    def drop(self, key: str) -> None:
        """A tier dropped the key."""
        self.drops.setdefault(key, []).append((self._world.time, self._world.steps))

    def accept(self, key: str, value: Any, sequence: int) -> None:
        """Write-behind has taken this state: it takes the place that its sequence says, whenever that comes out.

        What is saved through a full buffer is told by its save, and may by then stand before a newer state.
        """
        states = self.accepted.setdefault(key, [])
        if any(one.sequence == sequence for one in states):
            return
        later = sum(one.sequence > sequence for one in states)
        states.insert(len(states) - later, Accepted(self._world.steps, value, sequence))
        truth = self.truth.setdefault(key, [])
        truth.insert(len(truth) - later, (self._world.steps, value))

    def discard(self, key: str, sequence: int, standing: Any) -> None:
        """This state was removed for good, unsaved: what stands in the database is the newest again."""
        self.accepted[key] = [one for one in self.accepted[key] if one.sequence != sequence]
        self.became(key, standing)

    def newest(self, key: str) -> Any:
        """The key's value after all that was accepted."""
        return self.truth[key][-1][1]

    def position(self, key: str, value: Any, step: int) -> int:
        """Which of the key's values this is, counted up to ``step``; -1: none that it ever had."""
        places = [n for n, (when, one) in enumerate(self.truth.get(key, ())) if one == value and when <= step]
        return max(places, default=-1)

    def made(self, key: str, value: Any, since: int, until: int) -> int:
        """Which of the key's values a change made between two steps: the first such one; -1: none.

        Deletes all make the same: another's that landed in the same time may not have returned yet.
        """
        values = enumerate(self.truth.get(key, ()))
        return min((n for n, (when, one) in values if one == value and since <= when <= until), default=-1)

    def last_step(self, key: str, value: Any) -> int:
        """When the key was given this value for the last time; -1: never."""
        return max((when for when, one in self.truth.get(key, ()) if one == value), default=-1)

    def timeline(self) -> str:
        """The whole run as text."""
        width = max((len(note.who) for note in self.notes), default=0)
        return "\n".join(f"{n.time * 1000:9.2f} ms  {n.who:<{width}}  {n.text}" for n in self.notes)
