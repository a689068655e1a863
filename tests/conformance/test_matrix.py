"""The matrix of `benchmarks.conformance`: cachewright's own column, so that what the docs say of it cannot rot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPEN = {"coherence"}
SCENARIOS = ROOT / "benchmarks" / "conformance" / "scenarios"


@pytest.mark.slow
def test_cachewright_passes_every_probe_but_those_that_are_open():
    command = [
        sys.executable,
        "-m",
        "benchmarks.conformance",
        "--library",
        "cachewright",
        "--jobs",
        "4",
        "--json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.stdout, done.stderr
    found = {row: cells["cachewright"] for row, cells in json.loads(done.stdout)["matrix"].items()}
    assert len(found) == len(list(SCENARIOS.glob("s*.py")))
    others = {row: cell for row, cell in found.items() if cell["verdict"] != "pass"}
    assert {row for row, cell in others.items() if cell["verdict"] == "open"} == OPEN
    assert others.keys() == OPEN, others
    assert done.returncode == 0
