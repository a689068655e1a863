"""The fuzzer: hostile bytes against everything that reads bytes which others may have written.

    python tests/hostile/fuzz.py --count 1000000          # prints its seed and inputs/s
    python tests/hostile/fuzz.py --seed 7 --only redis    # the same inputs again
    python tests/hostile/fuzz.py --input redis 2a310d0a   # one input
    python tests/hostile/fuzz.py --atheris json           # guided by coverage, until stopped (pip install atheris)

Its judge: only the documented errors or a miss; nothing forged is accepted; no input costs more than `CPU_LIMIT`
seconds, and all together at most `MEMORY_LIMIT` bytes. An input depends on the seed, its target and its number alone.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType, ModuleType
from typing import Any, NamedTuple

__all__ = ["CPU_LIMIT", "MEMORY_LIMIT", "Failure", "Figures", "TARGETS", "fuzz", "run_input"]

CPU_LIMIT = 20.0
"""Seconds of CPU after which one input counts as a hang; the slowest takes milliseconds."""

MEMORY_LIMIT = 256 << 20
"""Bytes by which the whole run may make the process grow."""


def _part(name: str) -> ModuleType:
    """A module of this folder: tests are no package."""
    full = f"cachewright_hostile_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[full]


def _targets() -> dict[str, Any]:
    parts = ("targets_values", "targets_servers", "targets_slots")
    return {name: target for part in parts for name, target in _part(part).TARGETS.items()}


def _instrumented() -> dict[str, Any]:
    """The targets, with cachewright imported in such a way that atheris sees which branches an input takes."""
    with importlib.import_module("atheris").instrument_imports(include=["cachewright"]):
        return _targets()


TARGETS = _instrumented() if "--atheris" in sys.argv else _targets()


class Failure(AssertionError):
    """What an input did that it must not; the message has all that is needed to see it again."""


class Figures(NamedTuple):
    """What a run did."""

    seed: int
    inputs: int
    seconds: float
    outcomes: dict[str, int]
    slowest: float
    slowest_input: str
    grown: int

    def __str__(self) -> str:
        said = ", ".join(f"{name} {count:,}" for name, count in sorted(self.outcomes.items()))
        return (
            f"fuzz: seed {self.seed}, {self.inputs:,} inputs in {self.seconds:.1f} s "
            f"({self.inputs / self.seconds:,.0f} inputs/s), slowest {self.slowest * 1000:.0f} ms of CPU "
            f"({self.slowest_input}), "
            f"{self.grown / (1 << 20):.0f} MiB grown; {said}"
        )


class _Hang(BaseException):
    """No Exception: nothing on the way may catch it."""


@contextmanager
def _watched() -> Iterator[None]:
    def over(signum: int, frame: FrameType | None) -> None:
        raise _Hang

    log = logging.getLogger("cachewright")  # it tells of each payload that cannot be read
    level, before = log.level, signal.signal(signal.SIGPROF, over)
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_input(name: str, data: bytes, origin: str = "given") -> str:
    """Feeds one input to a target: ``"value"``, ``"miss"`` or the documented error's name. Raises `Failure`."""
    target = TARGETS[name]
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT)
    try:
        outcome: str = target.run(data)
    except (Exception, _Hang) as error:
        if isinstance(error, target.documented):
            return type(error).__name__
        raise Failure(
            f"{name} ({origin}) met {type(error).__name__}: {error}\n"
            f"  python tests/hostile/fuzz.py --input {name} {data.hex()}\n  data = bytes.fromhex({data.hex()!r})"
        ) from error
    return outcome


def fuzz(seed: int, count: int, only: Sequence[str] = ()) -> Figures:
    """Feeds ``count`` inputs to the targets, each its share. Raises `Failure` at the first that breaks a rule."""
    names = list(only or TARGETS)
    weights = sum(TARGETS[name].weight for name in names)
    before, started = _peak(), time.perf_counter()
    outcomes: dict[str, int] = {}
    slowest, which, done = 0.0, "", 0
    with _watched():
        for name in names:
            target = TARGETS[name]
            share = -(-count * target.weight // weights)
            rng = Random()
            for number in range(share):
                rng.seed(f"{seed}/{name}/{number}")
                data = target.make(rng)
                begun = time.process_time()
                outcome = run_input(name, data, f"seed {seed}, input {number}")
                spent = time.process_time() - begun
                if spent > slowest:
                    slowest, which = spent, f"{name} {number}"
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
            done += share
            if _peak() - before > MEMORY_LIMIT:
                raise Failure(f"{name} (seed {seed}) made the process grow by {_peak() - before:,} bytes")
    return Figures(seed, done, time.perf_counter() - started, outcomes, slowest, which, _peak() - before)


def chosen_seed() -> int:
    """``CACHEWRIGHT_FUZZ_SEED``, or a new one."""
    return int(os.environ.get("CACHEWRIGHT_FUZZ_SEED") or int.from_bytes(os.urandom(4), "big"))


def _guided(name: str) -> None:
    """Coverage leads atheris to inputs that a seed would not find; not part of any run, for it has no end."""
    atheris = importlib.import_module("atheris")
    samples = Path(".cache", "fuzz", name)
    samples.mkdir(parents=True, exist_ok=True)
    rng = Random(0)
    for number in range(200):
        (samples / str(number)).write_bytes(TARGETS[name].make(rng))
    atheris.Setup([sys.argv[0], str(samples)], lambda data: run_input(name, data))
    with _watched():
        atheris.Fuzz()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", nargs="*", default=[], choices=list(TARGETS), metavar="TARGET")
    parser.add_argument("--input", nargs=2, metavar=("TARGET", "HEX"))
    parser.add_argument("--atheris", choices=list(TARGETS), metavar="TARGET")
    given = parser.parse_args(arguments)
    if given.atheris:
        _guided(given.atheris)
        return 0
    if given.input:
        with _watched():
            print(run_input(given.input[0], bytes.fromhex(given.input[1])))
        return 0
    seed = given.seed if given.seed is not None else chosen_seed()
    print(f"fuzz: seed {seed}", flush=True)
    print(fuzz(seed, given.count, given.only))
    return 0


if __name__ == "__main__":
    sys.exit(main())
