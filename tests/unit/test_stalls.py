"""Only what failed while the machine stood still is run again."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[2]
TESTS = """
import os, signal, subprocess, sys, time
import pytest

tries = {"stood": 0, "computed": 0, "always": 0, "again": 0}

def stand_still(seconds):
    wake = f"import os, signal, time; time.sleep({seconds}); os.kill({os.getpid()}, signal.SIGCONT)"
    with subprocess.Popen([sys.executable, "-c", wake]):
        os.kill(os.getpid(), signal.SIGSTOP)

@pytest.fixture
def number(request):
    tries[request.param] += 1
    yield tries[request.param]
    print("again", request.param)

@pytest.mark.parametrize("number", ["stood"], indirect=True)
def test_stood(number):
    if number == 1:
        stand_still(0.8)
    assert number > 1

@pytest.mark.parametrize("number", ["computed"], indirect=True)
def test_computed(number):
    until = time.process_time() + 0.5
    while time.process_time() < until:
        pass
    assert number > 1

@pytest.mark.parametrize("number", ["always"], indirect=True)
def test_always(number):
    stand_still(0.8)
    assert False

def test_tries():
    assert tries == {"stood": 2, "computed": 1, "always": 3, "again": 0}
"""


def test_only_what_stood_still_runs_again_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.stalls",
        "-p",
        "no:cacheprovider",
        "--tb=no",
        str(tmp_path),
    ]
    found = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=60, check=False)
    assert "2 failed, 2 passed" in found.stdout, found.stdout + found.stderr
    assert re.findall(r"FAILED \S+::(\w+)", found.stdout) == ["test_computed", "test_always"]
    named = re.findall(r"::(\w+)\[.*failed while the machine stood still \(0\.[5-9]", found.stdout)
    assert sorted(named) == ["test_always", "test_stood"]
