"""The tour as plain text, for pipes and logs."""

from __future__ import annotations

import sys
import textwrap
from typing import TextIO

from cachewright.tour.model import SceneResult, Side, TourResult
from cachewright.tour.words import duration, result_word, tier_line, verdict

__all__ = ["PlainListener"]


class PlainListener:
    """Writes lines as they become known."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = sys.stdout if out is None else out

    def begin(self, result: TourResult, scenes: int) -> None:
        """The first line."""
        self._line(f"cachewright {result.version}: {scenes} scenes; database: {result.database}")

    def scene_begins(self, scene: SceneResult) -> None:
        """Heading and code."""
        self._line("")
        title = f"{scene.number}. {scene.name}"
        self._line(title)
        self._line("=" * len(title))
        self._line(scene.about)
        self._line(f"The textbook's bug: {scene.bug}")
        for name, side in (("cachewright", scene.ours), ("textbook", scene.textbook)):
            self._line(f"\n  {name}:\n")
            self._line(textwrap.indent(side.code, "    "))
        self._line("")

    def say(self, text: str) -> None:
        """Nothing: a log needs no spinner."""

    def scene_ends(self, scene: SceneResult) -> None:
        """Calls and outcomes."""
        self._line(f"  engine: {scene.engine}")
        self._steps("what happened", scene.ours)
        self._steps("the textbook's version", scene.textbook)
        self._line("\n  side by side")
        for one in scene.comparisons:
            self._line(f"    {one.what}: {verdict(one.ok)}")
            self._line(f"      textbook:    {one.textbook}")
            self._line(f"      cachewright: {one.ours}")
        if scene.error:
            self._line(f"    failed: {scene.error}")
        self._line(f"\n  scene {scene.number}: {'ok' if scene.ok else 'FAILED'} in {duration(scene.seconds)}")

    def _steps(self, title: str, side: Side) -> None:
        if not side.steps:
            return
        self._line(f"\n  {title}")
        for step in side.steps:
            if step.tiers:
                self._line(f"    {step.at:6.2f} s  {step.call}: {tier_line(step)}")
                continue
            took = duration(step.seconds) if step.seconds else ""
            note = f": {step.note}" if step.note else ""
            word = result_word(step)
            self._line(f"    {step.at:6.2f} s  {step.who:<12} {word:<6} {took:>8}  {step.call}{note}")

    def end(self, result: TourResult) -> None:
        """The last line."""
        failed = [str(scene.number) for scene in result.scenes if not scene.ok]
        outcome = f"scene {', '.join(failed)} FAILED" if failed else f"{len(result.scenes)} scenes ok"
        self._line(f"\n{outcome} in {result.seconds:.0f} s")

    def _line(self, text: str) -> None:
        print(text, file=self._out, flush=True)
