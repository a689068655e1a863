"""``make conformance``: where caching libraries break, as a matrix of probes. ``--only``, ``--library``, ``--json``."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.conformance.model import FAIL, libraries, scenarios
from benchmarks.conformance.run import run
from benchmarks.conformance.table import markdown, terminal, versions, write

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "comparison.md"


def show(done: int, total: int, what: str) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{done}/{total} {what} …\033[K", end=end, file=sys.stderr, flush=True)


def main() -> int:
    """Returns 1 if cachewright fails a probe."""
    rows, columns = scenarios(), libraries()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conformance", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=[row.name for row in rows], help="one scenario; may be repeated"
    )
    parser.add_argument(
        "--library", action="append", choices=[found.name for found in columns], help="may be repeated"
    )
    parser.add_argument("--jobs", type=int, default=2, help="probes at a time (2)")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--markdown", action="store_true", help=f"write the table into {PAGE.name} as well")
    chosen = parser.parse_args()
    if chosen.markdown and (chosen.only or chosen.library):
        parser.error("--markdown writes the whole table: leave --only and --library out")
    rows = [row for row in rows if not chosen.only or row.name in chosen.only]
    columns = [found for found in columns if not chosen.library or found.name in chosen.library]
    matrix = run(rows, columns, chosen.jobs, show)
    if chosen.json:
        cells = {row: {name: asdict(cell) for name, cell in found.items()} for row, found in matrix.items()}
        print(json.dumps({"versions": versions(columns), "matrix": cells}, indent=2))
    else:
        print(terminal(rows, columns, matrix, shutil.get_terminal_size((120, 40)).columns))
    if chosen.markdown:
        write(PAGE, markdown(rows, columns, matrix))
    return int(
        any(found.get("cachewright") and found["cachewright"].verdict == FAIL for found in matrix.values())
    )


if __name__ == "__main__":
    raise SystemExit(main())
