"""``python -m tests.sim``: tries seeds of scenarios, or replays one.

python -m tests.sim                                every scenario, 1000 seeds each
python -m tests.sim --scenario writes --seed 514   replays one seed, and makes a failure small
python -m tests.sim --minutes 10 --start 100000    as many as fit
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from random import Random
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cachewright.testing.sim import Scenario, explore, minimise, play
from tests.sim.scenarios import SCENARIOS


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim", description="Simulate the protocol under faults."
    )
    parser.add_argument(
        "--scenario", choices=sorted(SCENARIOS), action="append", help="only this one (again for more)"
    )
    parser.add_argument("--seed", type=int, help="replay this seed alone, and print what happened")
    parser.add_argument("--seeds", type=int, default=1000, help="how many for each scenario")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--minutes", type=float, help="stop after so long, all scenarios together")
    parser.add_argument("--json", action="store_true", help="figures as JSON instead of lines")
    given = parser.parse_args()
    if given.seeds < 1:
        parser.error(f"--seeds {given.seeds}: nothing would be tried")
    scenarios = [SCENARIOS[name] for name in given.scenario or SCENARIOS]
    if given.seed is not None:
        return max(_replay(scenario, given.seed) for scenario in scenarios)
    share = None if given.minutes is None else given.minutes * 60 / len(scenarios)
    figures = [_try(scenario, range(given.start, given.start + given.seeds), share) for scenario in scenarios]
    seeds, seconds = sum(f["seeds"] for f in figures), sum(f["seconds"] for f in figures)
    failed = sum(not f["ok"] for f in figures)
    if given.json:
        print(json.dumps({"scenarios": figures, "seeds": seeds, "seconds": seconds, "violations": failed}))
    else:
        print(f"{seeds} seeds in {seconds:.0f} s: {seeds / seconds:.0f} seeds/s, {failed} violation(s)")
    return 1 if failed else 0


def _replay(scenario: Scenario, seed: int) -> int:
    _, failure = explore(scenario, [seed])
    if failure is None:
        plan = scenario.plan(Random(f"{scenario.name}/{seed}"))
        print(play(plan, seed).history.timeline())
        print(f"{scenario.name}, seed {seed}: every promise held")
        return 0
    print(minimise(failure))
    return 1


def _try(scenario: Scenario, seeds: range, seconds: float | None) -> dict[str, Any]:
    begun = time.monotonic()
    until = None if seconds is None else begun + seconds
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(scenario.name, total=len(seeds))
        tried, failure = explore(scenario, seeds, until=until, each=lambda: progress.advance(bar))
    took = time.monotonic() - begun
    print(f"{scenario.name:<24} {tried:>7} seeds {tried / took:>7.0f}/s", file=sys.stderr)
    if failure is not None:
        print(minimise(failure), file=sys.stderr)
    return {"name": scenario.name, "seeds": tried, "seconds": took, "ok": failure is None}


if __name__ == "__main__":
    sys.exit(main())
