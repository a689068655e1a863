"""What the writers were told, and what may therefore stand in the database: the judge of every run.

Writes of one key are compared by the time that each call took. A write that was acknowledged before another one began
is the older of the two; calls that overlap may have taken effect in either order. A call that a kill cut off, or that
raised, may have taken effect or not, and if so then before the moment of the kill.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from tests.crash.origin import Journaled

__all__ = ["Ledger", "Op"]

NEVER = -math.inf


@dataclass(slots=True)
class Op:
    """A call of `put` or `delete`. ``end`` is infinite while nobody knows how it ended."""

    name: str
    key: str
    value: str | None
    begin: float
    end: float = math.inf
    acked: bool = False
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """A call of `get`."""

    key: str
    value: str | None
    begin: float
    end: float


@dataclass(slots=True)
class Ledger:
    """All writes of a run.

    Attributes:
        ops: by name.
        acks: how many were acknowledged.
        failed: how many raised.
        errors: of these, those of unknown outcome, by error.
        reads: all reads.
    """

    ops: dict[str, Op] = field(default_factory=dict)
    acks: int = 0
    failed: int = 0
    reads: list[Read] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    _open: dict[str, Op] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def line(self, text: str) -> str:
        """Takes a line of a writer; the word that it begins with. From any thread."""
        with self._lock:
            return self._line(text)

    def _line(self, text: str) -> str:
        what, *words = text.split()
        if what in ("put", "del"):
            name, key, begin = words
            self._open[name] = self.ops[name] = Op(name, key, name if what == "put" else None, float(begin))
        elif what == "ack":
            op = self._open.pop(words[0])
            op.acked, op.end = True, float(words[1])
            self.acks += 1
        elif what == "not":
            op = self._open.pop(words[0])
            op.refused, op.end = True, float(words[1])
            self.failed += 1
        elif what == "what":
            self._open.pop(words[0]).end = float(words[1])
            self.failed += 1
            self.errors[words[2]] = self.errors.get(words[2], 0) + 1
        elif what == "got":
            key, value, begin, end = words
            self.reads.append(Read(key, None if value == "-" else value, float(begin), float(end)))
        return what

    def died(self, writer: str, at: float) -> None:
        """Nothing of a writer's calls can take effect after its death."""
        with self._lock:
            for name in [name for name in self._open if name.startswith(f"{writer}.")]:
                self._open.pop(name).end = at

    @property
    def longest(self) -> float:
        """Seconds that the longest call took, of those that ended."""
        return max((op.end - op.begin for op in self.ops.values() if op.end < math.inf), default=0.0)

    def of(self, key: str) -> list[Op]:
        """The writes of one key that may have been taken."""
        return [op for op in self.ops.values() if op.key == key and not op.refused]

    # -- what is right ---------------------------------------------------------------------------------------------

    def check_rows(self, found: Mapping[str, str | None], keys: Iterable[str]) -> None:
        """The last acknowledged write of each key stands there, or one that no acknowledged write followed."""
        for key in keys:
            newest = max((op.begin for op in self.of(key) if op.acked), default=NEVER)
            self._check(Read(key, found.get(key), math.inf, math.inf), newest, self.of(key))

    def check_reads(self) -> None:
        """No read that began after a write was acknowledged was served anything older."""
        for key in {read.key for read in self.reads}:
            ops = self.of(key)
            acked = sorted((op for op in ops if op.acked), key=lambda op: op.end)
            ends = [op.end for op in acked]
            newest = [NEVER, *accumulate((op.begin for op in acked), max)]
            for read in self.reads:
                if read.key == key:
                    self._check(read, newest[bisect_left(ends, read.begin)], ops)

    def _check(self, read: Read, newest: float, ops: Sequence[Op]) -> None:
        """What was seen is of a write that ended no earlier than ``newest``, when the last one before it began."""
        if read.value is not None:
            op = self.ops.get(read.value)
            known = op is not None and op.key == read.key and not op.refused
            assert known, f"{read}: nobody wrote that, or it was refused"
            fits = op is not None and op.end >= newest and op.begin <= read.end
        else:
            fits = newest == NEVER or any(
                op.value is None and op.end >= newest and op.begin <= read.end for op in ops
            )
        last = [op for op in ops if op.begin == newest]
        assert fits, f"{read}, though this was acknowledged before: {last}"

    def check_journal(self, journal: Sequence[Journaled]) -> int:
        """Order of the saves, key by key; how many were refused by an ordered saver.

        * Of what was kept, sequences never go down; the same one comes again only with the same state. That is so for
          plain savers too as long as a killed one's transaction dies with it. Not for one that was *stopped*: it may
          land late, and is then undone by settling.
        * Sequences are in the order of the calls, over all processes and restarts.
        * Nothing stands there that was not accepted.
        """
        self.check_sequences(journal)
        last: dict[str, Journaled] = {}
        for entry in journal:
            if not entry.kept:
                continue
            before = last.get(entry.id)
            assert before is None or before.sequence <= entry.sequence, f"{before} was followed by {entry}"
            last[entry.id] = entry
        return sum(not entry.kept for entry in journal)

    def check_sequences(self, journal: Sequence[Journaled]) -> None:
        """The part of `check_journal` that holds however late a save lands."""
        states: dict[tuple[str, int], str | None] = {}
        for entry in journal:
            state = states.setdefault((entry.id, entry.sequence), entry.value)
            assert state == entry.value, f"one sequence, two states: {state!r} and {entry}"
            if entry.value is not None:
                op = self.ops.get(entry.value)
                known = op is not None and op.key == entry.id and not op.refused
                assert known, f"{entry} was never accepted: {op}"
        newest: dict[str, Op] = {}
        for (id, sequence), value in sorted(states.items()):
            if value is None:
                continue  # a delete has no name by which it could be found
            op, before = self.ops[value], newest.get(id)
            assert before is None or op.end >= before.begin, (
                f"{op} has the sequence {sequence}, above that of {before}, which began later"
            )
            if before is None or op.begin > before.begin:
                newest[id] = op
