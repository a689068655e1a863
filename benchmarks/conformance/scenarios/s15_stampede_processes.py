"""Many callers of several processes, one cold key."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path
from subprocess import Popen

from benchmarks.conformance.model import SHARED, Failed, Scenario
from benchmarks.conformance.stage import Origin, Stage, Variant, ended

PROCESSES, CALLERS = 4, 10
LOAD = 0.3


def probe(stage: Stage) -> None:
    """Four processes with ten callers each ask at once for one cold key; its load takes 0.3 s and leaves a byte.

    Pass: one byte, and all have the value.
    """
    variants = list(stage.variants())
    workers = [stage.process("worker", variants) for _ in range(PROCESSES)]
    try:
        stage.each(lambda variant: _one(workers, variant, variants.index(variant)), variants)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _one(workers: list[Popen[str]], variant: Variant, number: int) -> None:
    loads = _loads(variant)
    loads.touch()
    if _told(workers, str(number)) != ["ready"] * PROCESSES:
        raise Failed("a process ends early")
    wrong = [line for line in _told(workers, "go") if line != "done"]
    if wrong:
        raise Failed(wrong[0] or "a process ends early")
    runs = loads.stat().st_size
    if runs > 1:
        total = PROCESSES * CALLERS
        raise Failed(f"{runs if runs <= PROCESSES else f'up to {total}'} loads for {total} callers")


def _told(workers: list[Popen[str]], line: str) -> list[str]:
    """Says the line to all, and returns what each answers."""
    for worker in workers:
        assert worker.stdin is not None
        try:
            worker.stdin.write(line + "\n")
            worker.stdin.flush()
        except BrokenPipeError:  # its answer is empty
            pass
    return [worker.stdout.readline().strip() for worker in workers if worker.stdout is not None]


def _loads(variant: Variant) -> Path:
    return variant.place.folder.with_suffix(".loads")


def _work(variants: list[Variant]) -> None:
    for line in sys.stdin:
        variant = variants[int(line)]
        origin = Origin()
        caller = variant.caller(partial(_load, origin, _loads(variant)))
        ended([caller.get(f"warm{os.getpid()}")], 10)  # connected, imported
        print("ready", flush=True)
        sys.stdin.readline()
        calls = [caller.get("key") for _ in range(CALLERS)]
        if ended(calls, 15):
            errors = [type(error).__name__ for call in calls if (error := call.exception()) is not None]
            print(f"{errors[0]} at some callers" if errors else "done", flush=True)
        else:
            print("hung: the callers", flush=True)


def _load(origin: Origin, loads: Path, key: str) -> object:
    if key == "key":
        with loads.open("ab") as file:
            file.write(b".")
        time.sleep(LOAD)
    return origin(key)


SCENARIO = Scenario(
    "stampede-processes",
    f"{PROCESSES} processes × {CALLERS} callers on one cold key: one load",
    probe,
    kinds=SHARED,
    limit=120,
    parts={"worker": _work},
)
