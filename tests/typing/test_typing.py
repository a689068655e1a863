"""mypy and pyright see the decorated function's own signature, and refuse what it does not take."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
API = Path(__file__).with_name("api.py")
WARM = ROOT / ".mypy_cache"


def test_mypy_strict() -> None:
    words = [
        "--strict", "--warn-unreachable", "--no-error-summary", "--config-file=", f"--cache-dir={WARM / 'api'}",
        "--enable-error-code=ignore-without-code", str(API),
    ]  # fmt: skip
    env = {**os.environ, "MYPYPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("", 0)


def _pyright(arguments: list[str]) -> subprocess.CompletedProcess[str] | None:
    """Runs the one that came with the package; None where it would have to be downloaded."""
    if importlib.util.find_spec("pyright") is None:
        return None
    nowhere = "http://127.0.0.1:9"  # it must not fetch anything in the middle of the tests
    env = {**os.environ, "https_proxy": nowhere, "http_proxy": nowhere, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    words = [sys.executable, "-m", "pyright", *arguments]
    try:
        return subprocess.run(
            words, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=100
        )
    except subprocess.TimeoutExpired:
        return None


def test_pyright_strict(tmp_path: Path) -> None:
    version = _pyright(["--version"])
    if version is None or version.returncode != 0:
        pytest.skip("pyright is not installed, or would have to be downloaded")
    settings = {
        "include": [API.name],
        "extraPaths": [str(ROOT / "src")],
        "typeCheckingMode": "strict",
        "enableTypeIgnoreComments": False,
        "reportUnnecessaryTypeIgnoreComment": "error",
        "pythonVersion": "3.11",
    }
    shutil.copy(API, tmp_path)  # what lies outside of its project is not looked at
    project = tmp_path / "pyrightconfig.json"
    project.write_text(json.dumps(settings), encoding="utf-8")
    done = _pyright(["--project", str(project), "--pythonpath", sys.executable, "--outputjson"])
    assert done is not None, "pyright took too long"
    found = json.loads(done.stdout)
    problems = [
        f"{item['range']['start']['line'] + 1}: {item['message']} ({item.get('rule', '')})"
        for item in found["generalDiagnostics"]
        if item["severity"] == "error"
    ]
    assert "\n".join(problems) == ""
    assert found["summary"]["filesAnalyzed"] == 1
