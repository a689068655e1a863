"""Each interleaving happens whatever the luck, keeps every promise, and shows the faults that it was made for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cachewright.testing.sim import Cue, play
from tests.sim.interleavings import BY_NAME, INTERLEAVINGS, Interleaving

ROOT = Path(__file__).parents[2]
LUCKS = range(3)
# In processes of their own, one a fault: a fault must be in its module before that is imported.
SHOWN = """
import sys
from tests.sim.mutants import plant
from tests.sim.mutations import MUTANTS
fault, names = sys.argv[1], sys.argv[2:]
plant(MUTANTS[fault])
from cachewright.testing.sim import play
from tests.sim.interleavings import BY_NAME
for name in names:
    seen = [one for seed in range(2) for one in BY_NAME[name].violations(play(BY_NAME[name].plan, seed))]
    print(name, len(seen), *seen[:1])
"""
FAULTS = sorted({fault for one in INTERLEAVINGS for fault in one.faults})


@pytest.mark.parametrize("one", INTERLEAVINGS, ids=BY_NAME)
def test_it_happens_and_every_promise_holds(one: Interleaving) -> None:
    for luck in LUCKS:
        run = play(one.plan, luck)
        found = one.violations(run)
        assert not found, "\n".join([f"seed {luck}", *found, run.history.timeline()])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_shows_in_the_interleavings_made_for_it(fault: str) -> None:
    names = [one.name for one in INTERLEAVINGS if fault in one.faults]
    shown = subprocess.run(
        [sys.executable, "-c", SHOWN, fault, *names],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [line.split(" ", 2) for line in shown.splitlines()]
    assert [line[0] for line in lines] == names
    assert all(int(line[1]) > 0 for line in lines), shown


def test_a_cue_that_can_never_come_is_refused() -> None:
    with pytest.raises(ValueError, match="'late' at the moment 'answered': a fate is decided 'before'"):
        Cue(0, "save k", "late", 1.0, "answered")
    with pytest.raises(ValueError, match="say 'answered'"):
        Cue(0, "save k", "stall", 1.0, "landed")
