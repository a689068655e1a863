"""The mutants fit the code; some of them are hunted here, all of them by `make mutants`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.mutations import MUTANTS, Mutant
from tests.sim.scenarios import SCENARIOS

ROOT = Path(__file__).parents[2]
QUICK = (
    "a_load_commits_without_its_lease",
    "the_last_of_two_writers_stores",
    "a_load_stores_under_an_intent",
    "cancellation_is_shared",
    "a_living_lease_is_taken_over",
    "an_unknown_outcome_takes_its_intent_away",
)


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_the_place_of_a_mutant_is_there(mutant: Mutant) -> None:
    spec = importlib.util.find_spec(mutant.module)
    assert spec is not None
    assert spec.origin is not None
    compile(mutant.applied(Path(spec.origin).read_text()), spec.origin, "exec")
    assert set(mutant.scenarios) <= set(SCENARIOS)


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_mutant_is_caught(name: str) -> None:
    hunted = subprocess.run(
        [sys.executable, "-m", "tests.sim.mutants", "--only", name, "--seeds", "2000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert hunted.returncode == 0, hunted.stderr


def test_there_are_enough_of_them() -> None:
    assert len(MUTANTS) >= 25
