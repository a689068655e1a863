"""A writer that is killed between save and commit leaves nothing old: not while its intent stands, and not after."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHARED = ["sqlite", "redis", "cluster", "memcached", "redis > memcached"]


@pytest.mark.parametrize(
    "yard", [f"{chain} | {face}" for chain in SHARED for face in ("threads", "asyncio")], indirect=True
)
def test_a_writer_killed_between_save_and_commit(yard: Any, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.write_text("before")
    loads = []

    def load(_: Any) -> str:
        loads.append(origin.read_text())
        return loads[-1]

    users = yard.cache.repository("u", load=yard.loader(load), save=lambda _id, _value: None)
    assert yard.do("get", 1, on=users) == "before"
    script = str(Path(__file__).with_name("writer_that_dies.py"))
    words = [sys.executable, script, str(origin), yard.namespace, *yard.urls]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "saved\n"
        child.kill()
        child.wait(20)
    assert yard.standing("u:1") == {}, "the old entry went before the save"
    assert yard.do("get", "u:1") is None

    def stored_again() -> bool:
        assert yard.do("get", 1, on=users) == "after"
        return set(yard.standing("u:1").values()) == {"after"}

    before = len(loads)
    yard.until(stored_again)
    assert len(loads) > before + 1, "while the intent stood, loads were served and not stored"
    assert set(loads[before:]) == {"after"}
