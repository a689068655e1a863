"""Whether a history of one key's operations is one that a single copy could have had (Wing and Gong, with a memo).

Operations of unknown outcome (raised, cancelled, crashed) may have taken effect, at any moment from their start to the
last one at which their request could still land; or never.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["MISSING_NUMBER", "Atom", "Operation", "is_linearizable"]

Kind = Literal["get", "set", "add", "touch", "incr", "delete", "load"]
MISSING_NUMBER = "no entry"
"""What `Atom.result` is where ``incr`` found nothing to add to."""


@dataclass(frozen=True, slots=True)
class Atom:
    """One operation on a key: what it was asked, and what it said."""

    kind: Kind
    argument: Any = None
    result: Any = None


@dataclass(frozen=True, slots=True)
class Operation:
    """An `Atom` in its place in time.

    Attributes:
        known: whether its result is known, so that it certainly took effect once; otherwise it may have.
        start, end: moments between which it took effect, of any one clock; ``end`` of an unknown one is the last at
            which it could.
    """

    atom: Atom
    start: float
    end: float
    known: bool = True


def _apply(atom: Atom, known: bool, value: Any) -> tuple[bool, Any]:
    """Whether the operation fits a key that has ``value`` (None: absent), and what the key has after it."""
    kind, argument, result = atom.kind, atom.argument, atom.result
    if kind == "get":
        return not known or result == value, value
    if kind == "set":
        return True, argument
    if kind == "delete":
        return not known or result is None or result is (value is not None), None
    if kind == "touch":
        return not known or result is (value is not None), value
    if kind == "add":
        return not known or result is (value is None), argument if value is None else value
    if value is None:
        return not known or result == MISSING_NUMBER, None
    return not known or result == value + argument, value + argument


def is_linearizable(
    operations: Sequence[Operation],
    precedes: Callable[[Operation, Operation], bool] = lambda one, other: one.end < other.start,
) -> bool:
    """Whether some order of them explains every result; the key is absent at the beginning.

    Args:
        operations: those of one key; a dozen is no trouble.
        precedes: whether the first was over before the second began.
    """
    count = len(operations)
    before = [
        sum(1 << m for m in range(count) if m != n and precedes(operations[m], operations[n]))
        for n in range(count)
    ]
    known = sum(1 << n for n in range(count) if operations[n].known)
    dead: set[tuple[int, Any]] = set()

    def explains(left: int, value: Any) -> bool:
        if not left & known:
            return True
        if (left, value) in dead:
            return False
        for n in range(count):
            # A known one that was over before this began must have come first; an unknown one then never came.
            if left >> n & 1 and not before[n] & left & known:
                fits, after = _apply(operations[n].atom, operations[n].known, value)
                if fits and explains(left & ~(1 << n) & ~before[n], after):
                    return True
        dead.add((left, value))
        return False

    return explains((1 << count) - 1, None)
