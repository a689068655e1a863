"""The table of freshness: what is asked of which entry with which options, and what must come of it.

`expected` is the promise, written from the documentation and not from the code: five callers come one after the other, at
`ARRIVALS`, and each meets what those before have left.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

TTL, SWR, SIE, AHEAD, SOFT, HARD, NEGATIVE, ERROR = 100.0, 20.0, 100.0, 0.8, 1.0, 4.0, 2.0, 1.0
ARRIVALS = (0.0, 0.6, 0.95, 3.5, 9.0)  # at none of these a load ends: the order of the two would decide
CANCELLED_AT = 0.7  # the first caller, where it still waits, and the second with it
QUIET = 40.0


class Loader(NamedTuple):
    """How each call of the loader goes: how long, and what comes of it."""

    seconds: float
    result: str  # "value", "None" or "error"
    first_fails: bool = False
    cancelled: bool = False


LOADERS = {
    "quick": Loader(0.25, "value"),
    "slow past soft": Loader(2, "value"),
    "slow past hard": Loader(6, "value"),
    "raises": Loader(0.25, "error"),
    "raises past soft": Loader(2, "error"),
    "returns None": Loader(0.25, "None"),
    "cancelled": Loader(2, "value", cancelled=True),
    "fails at first": Loader(0.25, "value", first_fails=True),
}
STATES = ("absent", "fresh", "late", "stale", "stale for errors", "nearly expired", "expired")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    state: str
    loader: str
    swr: bool
    sie: bool
    soft: bool
    hard: bool
    ahead: bool
    more: bool  # negative_ttl where the loader returns None, retries where it fails

    @property
    def age(self) -> float:
        """How old the entry is when the first caller comes."""
        windows = max(SWR * self.swr, SIE * self.sie)
        ages = {"fresh": 10, "late": 85, "stale": 105, "stale for errors": 150, "expired": 300}
        return ages.get(self.state, TTL + windows - 3)

    @property
    def options(self) -> dict[str, Any]:
        chosen = {
            "stale_while_revalidate": SWR if self.swr else 0,
            "stale_if_error": SIE if self.sie else 0,
            "soft_timeout": SOFT if self.soft else None,
            "load_timeout": HARD if self.hard else None,
            "refresh_ahead": AHEAD if self.ahead else False,
        }
        return {"ttl": TTL, "jitter": 0, "error_ttl": ERROR, **chosen}


def rows() -> Iterator[Row]:
    """Every combination that matters."""
    flags = itertools.product((False, True), repeat=5)
    for (swr, sie, soft, hard, ahead), state, loader in itertools.product(flags, STATES, LOADERS):
        if ahead and state not in ("fresh", "late"):
            continue  # nothing else is refreshed ahead of its time
        if state == "nearly expired" and not (swr or sie):
            continue  # it would be fresh
        for more in (False, True) if loader in ("returns None", "raises", "fails at first") else (False,):
            yield Row(state, loader, swr, sie, soft, hard, ahead, more)


@dataclass
class Entry:
    """What is kept."""

    value: str | None
    born: float
    ttl: float
    row: Row

    @property
    def fresh(self) -> float:
        return self.born + self.ttl

    @property
    def served(self) -> float:
        return self.fresh + SWR * self.row.swr

    @property
    def for_errors(self) -> float:
        return self.fresh + SIE * self.row.sie


Answer = tuple[str | None, float]
"""A value or the name of an error, and when."""


class Expected(NamedTuple):
    answers: list[Answer]
    loads: list[float]
    kept: tuple[str | None, float] | None  # value, end of its freshness


class _Model:
    def __init__(self, row: Row) -> None:
        self.row, self.loader = row, LOADERS[row.loader]
        self.entry = None if row.state == "absent" else Entry("old", -row.age, TTL, row)
        self.loads: list[float] = []
        self.ends: float | None = None  # of the load under way
        self.result: str | None = None
        self.rests_until = float("-inf")  # after a failure over an entry that may still be used

    def begin(self, t: float) -> None:
        tries = 1
        self.loads.append(t)
        self.result = f"v{len(self.loads)}" if self.loader.result == "value" else None
        fails = self.loader.result == "error" or (self.loader.first_fails and len(self.loads) == 1)
        if fails and self.row.more:  # one more try
            tries = 2
            self.loads.append(t + self.loader.seconds)
            self.result, fails = f"v{len(self.loads)}", self.loader.result == "error"
        self.ends = t + tries * self.loader.seconds
        self.result = "ConnectionError" if fails else self.result

    def settle(self, t: float) -> None:
        """Lets what has ended by then take effect."""
        if self.ends is None or self.ends > t:
            return
        if self.result != "ConnectionError":
            ttl = NEGATIVE if self.result is None and self.row.more else TTL
            self.entry = Entry(self.result, self.ends, ttl, self.row)
            self.rests_until = float("-inf")
        elif self.entry and self.ends < max(self.entry.served, self.entry.for_errors):
            self.rests_until = self.ends + ERROR
        self.ends = None

    def answer(self, t: float, first: bool) -> Answer:
        entry, rests = self.entry, t < self.rests_until
        if entry and t < entry.fresh:
            due = self.row.ahead and t >= entry.born + AHEAD * entry.ttl
            if due and self.ends is None and not rests:
                self.begin(t)
            return entry.value, t
        if entry and (t < entry.served or (rests and t < entry.for_errors)):
            if self.ends is None and not rests:
                self.begin(t)
            return entry.value, t
        if self.ends is None:
            self.begin(t)
        if first and self.loader.cancelled:
            if not (self.row.soft or self.row.hard):  # else the load runs behind its callers, and goes on
                self.begin(CANCELLED_AT)  # by the second caller
            return "cancelled", CANCELLED_AT
        return self.wait(t)

    def wait(self, t: float) -> Answer:
        entry, ends = self.entry, self.ends
        assert ends is not None
        soft, hard = t + SOFT, t + HARD
        if self.row.soft and soft < ends and entry and soft < max(entry.served, entry.for_errors):
            return entry.value, soft
        at = min(ends, hard) if self.row.hard else ends
        late = at < ends
        if not late and self.result != "ConnectionError":
            return self.result, at
        if entry and at < entry.for_errors:
            return entry.value, at
        return "LoadTimeout" if late else "ConnectionError", at


def expected(row: Row) -> Expected:
    """What must come of a row."""
    model, answers = _Model(row), []
    for n, t in enumerate(ARRIVALS):
        model.settle(t)
        answers.append(model.answer(t, n == 0))
    model.settle(QUIET)
    entry = model.entry
    gone = entry is None or max(entry.served, entry.for_errors) <= QUIET
    return Expected(answers, model.loads, None if gone or entry is None else (entry.value, entry.fresh))
