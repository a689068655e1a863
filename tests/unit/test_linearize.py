"""The judge of atomic operations: histories that one copy could have had, and such as none could."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from cachewright.testing.sim.linearize import MISSING_NUMBER, Atom, Operation, is_linearizable


def op(
    start: float, end: float, kind: Any, argument: Any = None, result: Any = None, known: bool = True
) -> Operation:
    return Operation(Atom(kind, argument, result), start, end, known)


@pytest.mark.parametrize(
    ("fits", "story"),
    [
        (True, [op(0, 1, "set", 5), op(2, 3, "get", result=5)]),
        (False, [op(0, 1, "set", 5), op(2, 3, "get", result=None)]),
        (True, [op(0, 3, "set", 5), op(1, 2, "get", result=None)]),
        (False, [op(0, 1, "set", 5), op(2, 9, "set", 6), op(3, 4, "get", result=6), op(5, 6, "get", result=5)]),
        (True, [op(0, 1, "set", 5), op(2, 9, "incr", 1, 6), op(3, 8, "incr", 1, 7)]),
        (False, [op(0, 1, "set", 5), op(2, 9, "incr", 1, 6), op(3, 8, "incr", 1, 6)]),
        (True, [op(0, 1, "incr", 1, MISSING_NUMBER), op(0, 1, "set", 5)]),
        (False, [op(0, 1, "set", 5), op(2, 3, "incr", 1, MISSING_NUMBER)]),
        (True, [op(0, 5, "add", 1, True), op(0, 5, "add", 2, False), op(6, 7, "get", result=1)]),
        (False, [op(0, 5, "add", 1, True), op(0, 5, "add", 2, True)]),
        (False, [op(0, 1, "touch", result=True)]),
        (True, [op(0, 1, "set", 5), op(2, 3, "touch", result=True), op(4, 5, "delete", result=True)]),
        (False, [op(0, 1, "set", 5), op(2, 3, "delete", result=True), op(4, 5, "delete", result=True)]),
    ],
)  # fmt: skip
def test_what_is_known(fits: bool, story: list[Operation]) -> None:
    assert is_linearizable(story) is fits


@pytest.mark.parametrize(("seen", "fits"), [(None, True), (5, True), (7, False)])
def test_what_is_unknown_may_have_happened(seen: Any, fits: bool) -> None:
    story = [op(0, 4, "set", 5, known=False), op(2, 3, "get", result=seen)]
    assert is_linearizable(story) is fits


def test_what_is_unknown_happens_at_most_once_and_not_after_its_end() -> None:
    unknown = op(0, 4, "set", 5, known=False)
    twice = [unknown, op(1, 2, "delete", result=True), op(2.5, 3, "delete", result=True)]
    assert not is_linearizable(twice)
    late = [unknown, op(5, 6, "get", result=None), op(7, 8, "get", result=5)]
    assert not is_linearizable(late)
    assert is_linearizable([op(0, 9, "set", 5, known=False), *late[1:]])


def test_every_history_of_one_copy_is_accepted() -> None:
    """Operations that take effect at a moment of their own, in intervals around it, half of them unknown."""
    for seed in range(300):
        random, value = Random(seed), None
        story = []
        for moment in sorted(random.sample(range(100), 8)):
            kind = random.choice(("get", "set", "add", "touch", "incr", "delete"))
            argument = moment if kind in ("set", "add") else 1 if kind == "incr" else None
            result: Any = value if kind == "get" else None
            if kind in ("touch", "delete"):
                result = value is not None
            elif kind == "add":
                result = value is None
            elif kind == "incr":
                result = MISSING_NUMBER if value is None else value + 1
            known, happens = random.random() < 0.6, random.random() < 0.5
            begun, end = moment - random.random() * 20, moment + random.random() * 20
            story.append(op(begun, end, kind, argument, result if known else None, known))
            if not (known or happens):
                continue
            if kind == "set" or (kind == "add" and value is None):
                value = argument
            elif kind == "delete":
                value = None
            elif kind == "incr" and value is not None:
                value += 1
        assert is_linearizable(story), f"seed {seed}: {story}"
