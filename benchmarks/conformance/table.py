"""The matrix for a terminal and for Markdown, with one footnote for each reason."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path

from benchmarks.conformance.model import PASS, Library, Scenario
from benchmarks.conformance.run import Matrix

BEGIN, END = "<!-- conformance: begin -->", "<!-- conformance: end -->"


def versions(columns: list[Library]) -> dict[str, str]:
    """Of Python, the servers and every library."""
    found = {"Python": platform.python_version()}
    for server, words in (("Redis", ["redis-server", "--version"]), ("Memcached", ["memcached", "-V"])):
        program = shutil.which(words[0])
        if program:
            text = subprocess.run(words, capture_output=True, text=True, check=False).stdout
            found[server] = next(
                (w.removeprefix("v=") for w in text.split() if w.strip("v=")[:1].isdigit()), "?"
            )
    for library in columns:
        for name in library.distributions:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "not installed"
    return found


class Notes:
    """Numbers reasons in the order of their first use."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, why: str) -> int:
        return self.numbers.setdefault(why, len(self.numbers) + 1)


def terminal(rows: list[Scenario], columns: list[Library], matrix: Matrix, width: int) -> str:
    notes = Notes()
    first = max(len(row.title.replace("`", "")) for row in rows) + 2
    each = 15
    room = max(1, (width - first) // each)
    lines = []
    for start in range(0, len(columns), room):
        part = columns[start : start + room]
        lines.append(" " * first + "".join(f"{library.name:<{each}}" for library in part))
        for row in rows:
            cells = []
            for library in part:
                outcome = matrix[row.name][library.name]
                note = f" [{notes(outcome.why)}]" if outcome.verdict != PASS else ""
                cells.append(f"{outcome.verdict + note:<{each}}")
            lines.append((f"{row.title.replace('`', ''):<{first}}" + "".join(cells)).rstrip())
        lines.append("")
    lines += [f"[{number}] {why}" for why, number in notes.numbers.items()]
    lines += ["", ", ".join(f"{name} {version}" for name, version in versions(columns).items())]
    return "\n".join(lines)


def markdown(rows: list[Scenario], columns: list[Library], matrix: Matrix) -> str:
    notes = Notes()
    lines = [
        "| |" + "".join(f" {library.name} |" for library in columns),
        "|---" * (len(columns) + 1) + "|",
    ]
    for row in rows:
        cells = []
        for library in columns:
            outcome = matrix[row.name][library.name]
            if outcome.verdict == PASS:
                cells.append("pass")
                continue
            word = f"**{outcome.verdict}**" if outcome.verdict == "fail" else outcome.verdict
            cells.append(f"{word} <sup>{notes(outcome.why)}</sup>")
        lines.append(f"| {row.title} | " + " | ".join(cells) + " |")
    day = dt.datetime.now(dt.UTC).date()
    found = ", ".join(f"{name} {version}" for name, version in versions(columns).items())
    lines += ["", f"Made on {day} by `make conformance ARGS=--markdown`, with {found}.", ""]
    lines += [f"{number}. {why}" for why, number in notes.numbers.items()]
    return "\n".join(lines)


def write(page: Path, text: str) -> None:
    """Puts the text between the page's two markers.

    Raises:
        SystemExit: the page has no such markers.
    """
    whole = page.read_text(encoding="utf-8")
    head, begin, rest = whole.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page}: expected the lines {BEGIN} and {END}")
    page.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")
