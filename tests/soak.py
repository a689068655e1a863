"""``python -m tests.soak`` (`make soak`): what runs for long. First 100,000 simulated runs, then the tests marked ``soak``.

make soak                        all of it
make soak ARGS="--minutes 10"    ten minutes of it; the next call goes on where this one stopped
make soak ARGS="--seeds 500000"  more simulated runs
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cachewright.testing.sim import explore, minimise
from tests.sim.scenarios import SCENARIOS

ROOT = Path(__file__).parents[1]
PLACE = ROOT / ".soak.json"  # where the next call goes on
CHUNK = 500
SEEDS = 100_000


def chunk(number: int) -> tuple[str, range]:
    """A piece of the whole: the scenarios take turns."""
    names = list(SCENARIOS)
    start = number // len(names) * CHUNK
    return names[number % len(names)], range(start, start + CHUNK)


def run_chunk(number: int) -> tuple[int, str | None]:
    """In a worker process: how many seeds were tried, and the first failure, made small."""
    name, seeds = chunk(number)
    tried, failure = explore(SCENARIOS[name], seeds)
    return tried, None if failure is None else str(minimise(failure, 60))


def simulate(first: int, chunks: int, until: float) -> tuple[int, int, list[str]]:
    """Runs chunks from ``first`` on; the next one to be run, seeds tried, and failures."""
    tried, following = 0, first
    failures: list[str] = []
    jobs = os.cpu_count() or 1
    columns = (TextColumn("simulated runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool, Progress(*columns) as progress:
        bar = progress.add_task("", total=chunks * CHUNK, completed=first * CHUNK)
        open_: set[Future[tuple[int, str | None]]] = set()
        while open_ or (following < chunks and time.monotonic() < until):
            while len(open_) < jobs and following < chunks and time.monotonic() < until and not failures:
                open_.add(pool.submit(run_chunk, following))
                following += 1
            done, open_ = wait(open_, return_when=FIRST_COMPLETED)
            for future in done:
                count, failure = future.result()
                tried += count
                progress.advance(bar, count)
                if failure is not None:
                    failures.append(failure)
            if failures and not open_:
                break
    return following, tried, failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="The long-running checks.")
    parser.add_argument("--minutes", type=float, help="stop after about so long; the next call goes on")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="simulated runs in all")
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    given = parser.parse_args()
    begun = time.monotonic()
    until = begun + given.minutes * 60 if given.minutes else float("inf")
    place = _place(given.fresh)
    if place["chunk"]:
        print(f"going on after {place['seeds']} seeds; --fresh begins anew")
    chunks = -(-given.seeds // CHUNK)
    place["chunk"], tried, failures = simulate(place["chunk"], chunks, until)
    seconds = time.monotonic() - begun
    place["seeds"] += tried
    place["violations"] += len(failures)
    for failure in failures:
        print(failure, file=sys.stderr)
    rate = tried / seconds if seconds else 0.0
    figures = {"seeds": place["seeds"], "violations": place["violations"], "seeds_per_second": rate}
    simulated = place["chunk"] >= chunks
    if given.json:
        print(json.dumps(figures))
    else:
        print(
            f"{tried} seeds now, {place['seeds']} of {chunks * CHUNK} in all, {rate:.0f} seeds/s, "
            f"{place['violations']} violations"
        )
    if not simulated or place["violations"] or time.monotonic() >= until:
        PLACE.write_text(json.dumps(place))
        print(
            "not all of it: the next call goes on"
            if not simulated
            else "the tests marked soak are still to run"
        )
        return 1 if place["violations"] else 0
    PLACE.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "soak", "--timeout=0"]
    on_disk = {"TMPDIR": tempfile.gettempdir(), **os.environ}  # the tests would work in memory else
    return subprocess.run(command, cwd=ROOT, env=on_disk, check=False).returncode


def _place(fresh: bool) -> dict[str, Any]:
    """Where the last call stopped; the beginning where the code has changed since: its seeds say nothing of this one."""
    code = sha256()
    for folder in ("src", "tests/sim"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            code.update(path.read_bytes())
    if not fresh and PLACE.exists():
        place: dict[str, Any] = json.loads(PLACE.read_text())
        if place.get("code") == code.hexdigest():
            return place
        print("the code has changed since the last call: beginning anew")
    return {"chunk": 0, "seeds": 0, "violations": 0, "code": code.hexdigest()}


if __name__ == "__main__":
    sys.exit(main())
