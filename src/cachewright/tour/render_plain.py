"""The tour as plain text, for pipes and logs."""

from __future__ import annotations

import sys
import textwrap
from itertools import zip_longest
from typing import TextIO

from cachewright.tour.model import SceneResult, Side, TourResult
from cachewright.tour.words import count, duration, outcome, result_word, tier_line, verdict

__all__ = ["PlainListener"]

WIDTH = 100
"""Of prose, in columns; code is left as it is."""
_CALL = 15  # the column where a step goes on in its next line


class PlainListener:
    """Writes lines as they become known."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = sys.stdout if out is None else out

    def begin(self, result: TourResult, scenes: int) -> None:
        """The first line."""
        self._line(f"cachewright {result.version}: {count(scenes, 'scene')}; database: {result.database}")

    def scene_begins(self, scene: SceneResult) -> None:
        """Heading and code."""
        self._line("")
        title = f"{scene.number}. {scene.name}"
        self._line(title)
        self._line("=" * len(title))
        self._prose(scene.about)
        self._prose(f"The textbook's bug: {scene.bug}")
        for name, side in (("cachewright", scene.ours), ("textbook", scene.textbook)):
            self._line(f"\n  {name}:\n")
            self._line(textwrap.indent(side.code, "    "))
        self._line("")

    def say(self, text: str) -> None:
        """Nothing: a log needs no spinner."""

    def scene_ends(self, scene: SceneResult) -> None:
        """Calls and outcomes."""
        self._prose(f"  engine: {scene.engine}", 10)
        self._steps("what happened", scene.ours)
        self._steps("the textbook's version", scene.textbook)
        self._line("\n  side by side")
        for one in scene.comparisons:
            self._prose(f"    {one.what}", 6)
            self._prose(f"      textbook:    {one.textbook}", 19)
            self._prose(f"      cachewright: {one.ours}  {verdict(one.ok)}", 19)
        if scene.error:
            self._prose(f"    failed: {scene.error}", 12)
        self._line(f"\n  scene {scene.number}: {'ok' if scene.ok else 'FAILED'} in {duration(scene.seconds)}")

    def _steps(self, title: str, side: Side) -> None:
        if not side.steps:
            return
        self._line(f"\n  {title}")
        for step in side.steps:
            if step.tiers:
                self._prose(f"    {step.at:6.2f} s  {step.call}: {tier_line(step)}", _CALL)
                continue
            took = duration(step.seconds) if step.seconds else ""
            note = f": {step.note}" if step.note else ""
            word = result_word(step)
            self._prose(f"    {step.at:6.2f} s  {step.who:<12} {word:<6} {took:>8}  {step.call}{note}", _CALL)

    def end(self, result: TourResult) -> None:
        """All scenes in one table, and the last line."""
        rows = [("scene", "engine", "verdict", "seconds")]
        for scene in result.scenes:
            word = "ok" if scene.ok else "FAILED"
            rows.append((f"{scene.number:>2}. {scene.name}", scene.engine, word, f"{scene.seconds:.2f}"))
        first, second = (min(longest, max(len(row[n]) for row in rows)) for n, longest in enumerate((36, 42)))
        self._line("")
        for name, engine, word, seconds in rows:
            names = textwrap.wrap(name, first, subsequent_indent="    ")
            engines = textwrap.wrap(engine, second) or [""]
            for n, (one, other) in enumerate(zip_longest(names, engines, fillvalue="")):
                last = f"{word:<7}  {seconds:>7}" if n == 0 else ""
                self._line(f"{one:<{first}}  {other:<{second}}  {last}".rstrip())
        self._line(f"\n{outcome(result)}")

    def _prose(self, text: str, indent: int = 0) -> None:
        for line in textwrap.wrap(
            text, WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
        ):
            self._line(line)

    def _line(self, text: str) -> None:
        print(text, file=self._out, flush=True)
