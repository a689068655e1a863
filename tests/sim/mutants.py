"""Deliberate faults in the protocol, one or a few lines each, and the scenarios that must catch them.

``python -m tests.sim.mutants`` (`make mutants`) puts each fault into the imported source (no file is touched), and tries
seeds until some check fails. A survivor is a check that is missing.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from tests.sim.mutations import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
SEEDS = 20_000
TURN = 500
CRASHES = ("AttributeError(", "NameError(", "TypeError(", "UnboundLocalError(")


class _Loader(SourceFileLoader):
    """Loads one module with the fault in it."""

    mutant: Mutant

    def get_code(self, fullname: str) -> CodeType:
        return compile(
            self.mutant.applied(self.get_data(self.path).decode()), self.path, "exec", dont_inherit=True
        )


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.origin is not None, f"{fullname} is not there"
        loader = _Loader(fullname, spec.origin)
        loader.mutant = self._mutant
        spec.loader = loader
        return spec


def plant(mutant: Mutant) -> None:
    """The fault is in its module from here on, which nobody may have imported yet."""
    sys.meta_path.insert(0, _Finder(mutant))


def hunt(mutant: Mutant, seeds: int) -> dict[str, Any] | None:
    """In a process of its own: the first scenario and seed that catch the mutant."""
    plant(mutant)
    from cachewright.testing.sim import explore
    from tests.sim.scenarios import SCENARIOS

    tried = 0
    for start in range(0, seeds, TURN):  # the scenarios take turns: the first must not use all seeds up
        for name in mutant.scenarios:
            more, failure = explore(SCENARIOS[name], range(start, start + min(TURN, seeds - tried)))
            tried += more
            if failure is not None:
                return {"scenario": name, "seeds": tried, "violation": failure.violations[0]}
            if tried >= seeds:
                return None
    return None


def _in_a_process(mutant: Mutant, seeds: int) -> dict[str, Any]:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim.mutants", "--hunt", mutant.name, "--seeds", str(seeds)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - begun
    if done.returncode:  # a mutant that does not even run shows nothing about the checks
        last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        return {"name": mutant.name, "seconds": seconds, "found": None, "broken": last}
    found = json.loads(done.stdout)
    if found is not None and any(crash in found["violation"] for crash in CRASHES):
        return {"name": mutant.name, "seconds": seconds, "found": None, "broken": found["violation"]}
    return {"name": mutant.name, "seconds": seconds, "found": found}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutants", description="Is every fault caught?")
    parser.add_argument("--only", action="append", help="only this mutant (again for more)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="at most so many for each mutant")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at once")
    parser.add_argument("--json", action="store_true", help="the results as JSON")
    parser.add_argument(
        "--list", action="store_true", help="their names, and the scenarios that must catch them"
    )
    parser.add_argument("--hunt", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.hunt:
        print(json.dumps(hunt(MUTANTS[given.hunt], given.seeds)))
        return 0
    unknown = [name for name in given.only or () if name not in MUTANTS]
    if unknown:
        parser.error(f"--only {unknown[0]}: there is no such mutant; --list names them")
    if given.list:
        print("\n".join(f"{name:<56} {', '.join(mutant.scenarios)}" for name, mutant in MUTANTS.items()))
        return 0
    wanted = [mutant for name, mutant in MUTANTS.items() if not given.only or name in given.only]
    results = []
    with ThreadPoolExecutor(given.jobs) as pool:
        for future in as_completed([pool.submit(_in_a_process, mutant, given.seeds) for mutant in wanted]):
            result = future.result()
            results.append(result)
            print(f"{len(results):>3}/{len(wanted)}  {_line(result)}", file=sys.stderr, flush=True)
    survivors = [result["name"] for result in results if result["found"] is None]
    if given.json:
        print(json.dumps(results, indent=1))
    else:
        print(
            f"{len(results) - len(survivors)} of {len(results)} mutants caught within {given.seeds} seeds each"
        )
    if survivors:
        print(f"survivors: {', '.join(survivors)}", file=sys.stderr)
    return 1 if survivors else 0


def _line(result: dict[str, Any]) -> str:
    found = result["found"]
    if found is None:
        return f"{result['name']:<44} {result.get('broken', 'SURVIVED')}  ({result['seconds']:.0f} s)"
    return (
        f"{result['name']:<44} {found['scenario']:<20} {found['seeds']:>6} seeds  {found['violation'][:70]}"
    )


if __name__ == "__main__":
    sys.exit(main())
