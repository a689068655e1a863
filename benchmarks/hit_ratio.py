"""Hit ratios of our eviction policies on recorded traces, beside LRU and the optimum.

    python benchmarks/hit_ratio.py [--json] [--room 0.02 0.2] [--requests N] [TRACE ...]

A trace is ``*.gz`` (one integer a line; lines with ``*`` are skipped) or ``*.xz`` (big-endian 32-bit integers).
Room is a share of the trace's distinct keys.
"""

from __future__ import annotations

import argparse
import array
import gzip
import json
import lzma
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from cachewright.tiers.eviction import MAX_MARK, S3FIFO

DEFAULT_TRACES = Path(__file__).resolve().parent.parent / ".." / "shared" / "traces"


class Entry:
    """What stands for a cached value here."""

    __slots__ = ("home", "key", "mark")

    def __init__(self, key: str) -> None:
        self.key = key
        self.mark = 0
        self.home = 0


def read_trace(path: Path) -> list[int]:
    if path.suffix == ".gz":
        with gzip.open(path, "rt") as lines:
            return [int(line) for line in lines if line.strip() and "*" not in line]
    if path.suffix == ".xz":
        with lzma.open(path) as raw:
            numbers = array.array("i", raw.read())
        if sys.byteorder == "little":
            numbers.byteswap()
        return numbers.tolist()
    raise SystemExit(f"{path}: a trace ends in .gz or .xz")


def s3fifo(threshold: int = 2, cap: int = MAX_MARK) -> Callable[[Sequence[int], int], int]:
    """The policy as the memory tier drives it; a hit marks up to ``cap``."""

    def run(trace: Sequence[int], room: int) -> int:
        policy: S3FIFO[Entry] = S3FIFO(room, threshold=threshold)
        table: dict[int, Entry] = {}
        hits = 0
        for key in trace:
            entry = table.get(key)
            if entry is not None:
                hits += 1
                if entry.mark < cap:
                    entry.mark += 1
                continue
            entry = table[key] = Entry(key)  # type: ignore[arg-type]  # ints spare the trace 5 M strings
            for gone in policy.admit(entry):
                del table[gone.key]  # type: ignore[arg-type]
        return hits

    return run


def lru(trace: Sequence[int], room: int) -> int:
    table: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in trace:
        if key in table:
            hits += 1
            table.move_to_end(key)
            continue
        if len(table) >= room:
            table.popitem(last=False)
        table[key] = None
    return hits


def optimum(trace: Sequence[int], room: int) -> int:
    """Belady: out goes what is needed last; lazily, with a heap of next uses."""
    import heapq

    never = len(trace)
    following = [never] * len(trace)
    seen: dict[int, int] = {}
    for at in range(len(trace) - 1, -1, -1):
        following[at] = seen.get(trace[at], never)
        seen[trace[at]] = at
    held: dict[int, int] = {}
    heap: list[tuple[int, int]] = []
    hits = 0
    for at, key in enumerate(trace):
        if key in held:
            hits += 1
        elif len(held) >= room:
            while True:
                use, victim = heapq.heappop(heap)
                if held.get(victim) == -use:
                    del held[victim]
                    break
        held[key] = following[at]
        heapq.heappush(heap, (-following[at], key))
    return hits


POLICIES: dict[str, Callable[[Sequence[int], int], int]] = {
    "s3-fifo": s3fifo(),
    "s3-fifo, one-bit mark": s3fifo(threshold=1, cap=1),
    "lru": lru,
    "optimum": optimum,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("traces", nargs="*", type=Path, help="default: all of ../shared/traces")
    parser.add_argument(
        "--room", nargs="+", type=float, default=[0.02, 0.2], help="share of the distinct keys"
    )
    parser.add_argument("--policy", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--requests", type=int, help="only the first so many of each trace")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    traces = options.traces or sorted(
        p for p in DEFAULT_TRACES.glob("*.trace.*") if p.suffix in (".gz", ".xz")
    )
    if not traces:
        raise SystemExit("no trace given and none in ../shared/traces; see --help")
    rows = []
    for path in traces:
        trace = read_trace(path)[: options.requests]
        distinct = len(set(trace))
        for policy in options.policy:
            for share in options.room:
                room = max(1, int(distinct * share))
                start = time.perf_counter()
                hits = POLICIES[policy](trace, room)
                rows.append(
                    {
                        "trace": path.name.split(".")[0],
                        "policy": policy,
                        "room": share,
                        "entries": room,
                        "requests": len(trace),
                        "hit_ratio": round(100 * hits / len(trace), 2),
                        "seconds": round(time.perf_counter() - start, 2),
                    }
                )
                if not options.json:
                    row = rows[-1]
                    print(
                        f"{row['trace']:<12}{policy:<24}{share:>5.0%}{row['hit_ratio']:>8.1f} %", flush=True
                    )
    if options.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
