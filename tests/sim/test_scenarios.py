"""Every scenario, a few hundred seeds: `make soak` and ``python -m tests.sim`` try many more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cachewright.testing.sim import Scenario, explore, judge, minimise, play
from tests.sim.regressions import REGRESSIONS, Regression
from tests.sim.scenarios import SCENARIOS

SEEDS = 300
REPEATED = """
from hashlib import sha256
from random import Random
from cachewright.testing.sim import play
from tests.sim.scenarios import SCENARIOS
for name, scenario in SCENARIOS.items():
    for seed in range(5):
        run = play(scenario.plan(Random(f"{name}/{seed}")), seed)
        print(name, seed, sha256(run.history.timeline().encode()).hexdigest())
"""


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_every_promise_holds(scenario: Scenario) -> None:
    _, failure = explore(scenario, range(SEEDS))
    if failure is not None:
        pytest.fail(str(minimise(failure)), pytrace=False)


@pytest.mark.parametrize("found", REGRESSIONS, ids=lambda found: found.name)
def test_what_was_once_found_stays_mended(found: Regression) -> None:
    run = play(found.plan, found.seed)
    violations = judge(found.scenario, run)
    assert not violations, run.history.timeline()


def test_a_seed_is_one_run_whatever_the_hash_seed() -> None:
    root = Path(__file__).parents[2]
    runs = [
        subprocess.run(
            [sys.executable, "-c", REPEATED],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{root}/src{os.pathsep}{root}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert runs[0].count("\n") == 5 * len(SCENARIOS)
