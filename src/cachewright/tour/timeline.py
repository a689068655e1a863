"""A scene's time line as SVG: a lane for each caller, a bar for each call, both sides and the database on one axis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from cachewright.tour.model import SceneResult, Side, Span
from cachewright.tour.words import duration

__all__ = ["KINDS", "time_line"]

KINDS = {
    "hit": "hit",
    "miss": "miss",
    "load": "load",
    "buffer": "from the write-behind buffer",
    "wait": "waits for another's load",
    "stale": "stale value",
    "save": "save",
    "store": "store",
    "drop": "drop",
    "query": "database query",
    "error": "error",
    "kill": "SIGKILL",
}
WIDTH, LEFT, RIGHT = 960, 150, 20
ROW, THIN, THINNEST, GAP, HEAD = 14, 4, 3, 6, 22


@dataclass(slots=True)
class _Lane:
    name: str
    rows: list[list[Span]]

    @property
    def row_height(self) -> int:
        return ROW if len(self.rows) <= 4 else THIN if len(self.rows) <= 12 else THINNEST

    @property
    def height(self) -> int:
        return self.row_height * len(self.rows) + GAP


def time_line(scene: SceneResult) -> str:
    """The SVG element; empty where nothing was timed."""
    groups = [
        ("cachewright", _lanes(scene.ours)),
        ("textbook", _lanes(scene.textbook)),
        ("", [_lane("database", scene.queries)] if scene.queries else []),
    ]
    spans = [span for _, lanes in groups for lane in lanes for row in lane.rows for span in row]
    if not spans:
        return ""
    end = max(span.at + span.seconds for span in spans) * 1.01 or 1.0
    parts: list[str] = []
    y = 4
    for name, lanes in groups:
        if not lanes:
            continue
        if name:
            parts.append(f'<text class="side" x="0" y="{y + 14}">{name}</text>')
            y += HEAD
        for lane in lanes:
            parts.append(_draw(lane, y, end))
            y += lane.height
        y += GAP
    label = escape(f"time line of scene {scene.number}, {scene.name}: {end:.1f} seconds", quote=True)
    return (
        f'<svg viewBox="0 0 {WIDTH} {y + 20}" role="img" aria-label="{label}">'
        f"{_axis(y, end)}{''.join(parts)}</svg>"
    )


def _lanes(side: Side) -> list[_Lane]:
    """One for each kind of caller, in order of appearance."""
    grouped: dict[str, list[Span]] = {}
    for step in side.steps:
        for span in step.spans:
            head, _, number = span.lane.rpartition(" ")
            crowd = number.isdigit() and len(step.spans) > 4
            name = f"{len(step.spans)} {head}s" if crowd else span.lane
            grouped.setdefault(name, []).append(span)
    return [_lane(name, spans) for name, spans in grouped.items()]


def _lane(name: str, spans: Iterable[Span]) -> _Lane:
    """Spans that overlap are put in rows of their own."""
    rows: list[list[Span]] = []
    ends: list[float] = []
    for span in sorted(spans, key=lambda one: one.at):
        free = next((index for index, end in enumerate(ends) if end <= span.at), None)
        if free is None:
            rows.append([])
            ends.append(0.0)
            free = len(rows) - 1
        rows[free].append(span)
        ends[free] = span.at + span.seconds
    return _Lane(name, rows)


def _x(at: float, end: float) -> float:
    return LEFT + at / end * (WIDTH - LEFT - RIGHT)


def _draw(lane: _Lane, y: int, end: float) -> str:
    middle = y + lane.row_height * len(lane.rows) / 2 + 4
    parts = [f'<text class="lane" x="{LEFT - 8}" y="{middle:.1f}">{escape(lane.name)}</text>']
    for index, row in enumerate(lane.rows):
        top = y + index * lane.row_height
        for span in row:
            x, width = _x(span.at, end), max(2.0, _x(span.seconds, end) - LEFT)
            title = f"{span.lane}: {KINDS.get(span.kind, span.kind)}, {duration(span.seconds)}, at {span.at:.2f} s"
            parts.append(
                f'<rect class="{span.kind}" x="{x:.1f}" y="{top + 1}" width="{width:.1f}" '
                f'height="{lane.row_height - (2 if lane.row_height == ROW else 1)}"><title>{escape(title)}</title></rect>'
            )
    return "".join(parts)


def _axis(y: int, end: float) -> str:
    step = next(step for step in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60) if end / step <= 12 or step == 60)
    parts = []
    for number in range(int(end / step) + 1):
        x = _x(number * step, end)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{y + 14}">{number * step:g} s</text>')
    return "".join(parts)
