"""``make bench``: cachewright beside its peers, as ratios of one run. ``--only NAME``, ``--json``."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys

from benchmarks import behind, flush, hits, remote, stampede
from benchmarks.harness import Result

RUNS = {**hits.RUNS, **remote.RUNS, **stampede.RUNS, **behind.RUNS, **flush.RUNS}
PEERS = ("redis", "hiredis", "cachetools", "cachebox", "cashews", "dogpile.cache")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PEERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def show(result: Result) -> None:
    print(f"\n{result.title}   [{result.unit}: {result.base}]")
    for row in result.rows:
        each = f"{row.seconds * 1e9:,.0f} ns" if row.seconds < 1e-5 else f"{row.seconds * 1e6:,.0f} µs"
        print(f"  {row.name:<26}{row.ratio:>9.2f}   {each:>12}   {row.note}")
    if result.ours is None or result.budget is None:
        return
    within = result.ours >= result.budget if result.least else result.ours <= result.budget
    sign = "≥" if result.least else "≤"
    due = ""
    if result.due is not None:
        due = f"; due now {sign} {result.due:g}: {'met' if result.ours <= result.due else 'MISSED'}"
    print(f"  budget {sign} {result.budget:g}: {'met' if within else 'not yet met'} ({result.ours:.2f}){due}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=sorted(RUNS), help="one comparison; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")
    chosen = parser.parse_args()
    results = []
    for number, name in enumerate(chosen.only or RUNS, 1):
        if sys.stderr.isatty():
            print(
                f"\r{number}/{len(chosen.only or RUNS)} {name} …\033[K", end="", file=sys.stderr, flush=True
            )
        results.append(RUNS[name]())
        if not chosen.json:
            show(results[-1])
    if chosen.json:
        print(json.dumps({"versions": versions(), "results": [r.as_dict() for r in results]}, indent=2))
    else:
        print("\n" + ", ".join(f"{name} {version}" for name, version in versions().items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
