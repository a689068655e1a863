"""Rounds of several contenders in turn, so that a drift of the machine meets all; medians, and ratios to one of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field


@dataclass
class Row:
    name: str
    seconds: float  # median, per operation
    ratio: float  # to the base, median of the rounds' own ratios
    note: str = ""


@dataclass
class Result:
    """One comparison. ``budget`` speaks of the row named cachewright: at most (or, with ``least``, at least)."""

    title: str
    base: str
    rows: list[Row] = field(default_factory=list)
    unit: str = "time × base"
    budget: float | None = None
    least: bool = False
    due: float | None = None

    @property
    def ours(self) -> float | None:
        return next((row.ratio for row in self.rows if row.name == "cachewright"), None)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def timed(function: Callable[[], object], number: int) -> float:
    loop = range(number)
    started = time.perf_counter()
    for _ in loop:
        function()
    return (time.perf_counter() - started) / number


def compare(
    title: str,
    contenders: dict[str, Callable[[], object]],
    base: str,
    *,
    number: int,
    rounds: int = 9,
    empty: bool = False,
    **budget: float,
) -> Result:
    """Times ``number`` calls of each per round. ``empty`` takes the cost of the loop and an empty call off."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for function in contenders.values():
        timed(function, max(1, number // 10))
    for _ in range(rounds):
        off = timed(lambda: None, number) if empty else 0.0
        for name, function in contenders.items():
            samples[name].append(timed(function, number) - off)
    return ranked(title, samples, base, **budget)


async def compare_async(
    title: str,
    contenders: dict[str, Callable[[], Awaitable[object]]],
    base: str,
    *,
    number: int,
    rounds: int = 9,
    **budget: float,
) -> Result:
    async def once(function: Callable[[], Awaitable[object]]) -> float:
        started = time.perf_counter()
        for _ in range(number):
            await function()
        return (time.perf_counter() - started) / number

    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for function in contenders.values():
        await once(function)
    for _ in range(rounds):
        for name, function in contenders.items():
            samples[name].append(await once(function))
    return ranked(title, samples, base, **budget)


def ranked(title: str, samples: dict[str, list[float]], base: str, **budget: float) -> Result:
    result = Result(title, base, **budget)  # type: ignore[arg-type]
    for name, seconds in samples.items():
        ratios = [mine / theirs for mine, theirs in zip(seconds, samples[base], strict=True)]
        result.rows.append(Row(name, statistics.median(seconds), statistics.median(ratios)))
    result.rows.sort(key=lambda row: row.ratio)
    return result


def per_second(title: str, rates: dict[str, float], base: str, **budget: float) -> Result:
    """For throughputs: the ratio says how many times the base's rate."""
    result = Result(title, base, unit="rate × base", least=True, **budget)  # type: ignore[arg-type]
    for name, rate in rates.items():
        result.rows.append(Row(name, 1 / rate, rate / rates[base]))
    result.rows.sort(key=lambda row: -row.ratio)
    return result
