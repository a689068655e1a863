"""The tour in a terminal: headings, highlighted code, a spinner while one waits, tables."""

from __future__ import annotations

from rich.console import Console, Group
from rich.panel import Panel
from rich.rule import Rule
from rich.status import Status
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from cachewright.tour.model import SceneResult, Side, Step, TourResult
from cachewright.tour.words import count, duration, life, outcome, result_word, verdict

__all__ = ["RichListener"]

_STYLES = {
    "hit": "green",
    "load": "yellow",
    "miss": "bright_magenta",
    "buffer": "bright_cyan",
    "wait": "cyan",
    "stale": "magenta",
    "save": "blue",
    "drop": "blue",
    "store": "blue",
    "error": "bold red",
    "kill": "bold red",
    "note": "dim",
}


class RichListener:
    """Writes to a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None

    def begin(self, result: TourResult, scenes: int) -> None:
        """What is to come."""
        words = Text.assemble(
            ("cachewright ", "bold"),
            result.version,
            f": {count(scenes, 'scene')} on real engines; database: {result.database}",
        )
        self._console.print(words)

    def scene_begins(self, scene: SceneResult) -> None:
        """Heading and code, to be read while it runs."""
        out = self._console
        out.print()
        out.print(Rule(Text(f"{scene.number}. {scene.name}", "bold"), align="left"))
        out.print(Text(scene.about))
        out.print(Text.assemble(("The textbook's bug: ", "bold red"), scene.bug))
        out.print()
        panels = [
            _code("cachewright", scene.ours.code, "green"),
            _code("textbook", scene.textbook.code, "red"),
        ]
        if out.width >= 150:
            grid = Table.grid(expand=True)
            grid.add_column(ratio=1)
            grid.add_column(ratio=1)
            grid.add_row(*panels)
            out.print(grid)
        else:
            out.print(Group(*panels))
        self._status = out.status("starting the engines", spinner="dots")
        self._status.start()

    def say(self, text: str) -> None:
        """Beside the spinner."""
        if self._status is not None:
            self._status.update(text)

    def scene_ends(self, scene: SceneResult) -> None:
        """Calls and outcomes."""
        if self._status is not None:
            self._status.stop()
            self._status = None
        out = self._console
        out.print(Text.assemble(("engine: ", "bold"), scene.engine))
        for title, side in (("what happened", scene.ours), ("the textbook's version", scene.textbook)):
            if side.steps:
                out.print()
                out.print(_steps(title, side))
        if scene.comparisons:
            out.print()
            out.print(_comparisons(scene))
        if scene.error:
            out.print(Text(f"failed: {scene.error}", "bold red"))
        word = ("ok", "bold green") if scene.ok else ("FAILED", "bold red")
        out.print(Text.assemble(f"scene {scene.number}: ", word, f" in {duration(scene.seconds)}"))

    def end(self, result: TourResult) -> None:
        """All scenes in one table."""
        table = Table(
            title="the tour", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0)
        )
        for name in ("", "scene", "engine", "verdict"):
            table.add_column(name, header_style="dim")
        table.add_column("seconds", header_style="dim", justify="right")
        for scene in result.scenes:
            word = Text("ok", "green") if scene.ok else Text("FAILED", "bold red")
            table.add_row(str(scene.number), scene.name, Text(scene.engine), word, f"{scene.seconds:.2f}")
        self._console.print()
        self._console.print(table)
        self._console.print(Text(outcome(result), "bold green" if result.ok else "bold red"))

    def close(self) -> None:
        """Gives the cursor back, whatever happened."""
        if self._status is not None:
            self._status.stop()
            self._status = None


def _code(title: str, code: str, colour: str) -> Panel:
    syntax = Syntax(code, "python", theme="ansi_dark", word_wrap=True, background_color="default")
    return Panel(syntax, title=title, title_align="left", border_style=colour)


def _steps(title: str, side: Side) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("at", justify="right", header_style="dim", style="dim", no_wrap=True)
    table.add_column("who", header_style="dim", no_wrap=True)
    table.add_column("call", header_style="dim", overflow="fold", ratio=2)
    table.add_column("result", header_style="dim", no_wrap=True)
    table.add_column("time", justify="right", header_style="dim", no_wrap=True)
    table.add_column("", ratio=3)
    for step in side.steps:
        table.add_row(*_row(step))
    return table


def _row(step: Step) -> list[Text]:
    if step.tiers:
        note = Text(" · ").join(
            Text.assemble((row.tier, "bold"), ": ", (life(row), "green" if row.state == "fresh" else "dim"))
            for row in step.tiers
        )
    else:
        note = Text(step.note)
    word = result_word(step)
    took = duration(step.seconds) if step.seconds else ""
    who = Text("tiers" if step.tiers else step.who)
    return [
        Text(f"{step.at:.2f} s"),
        who,
        Text(step.call),
        Text(word, _STYLES.get(word, "")),
        Text(took),
        note,
    ]


def _comparisons(scene: SceneResult) -> Table:
    table = Table(title="side by side", title_justify="left", title_style="bold", show_lines=False)
    table.add_column("", ratio=3)
    table.add_column("textbook", style="red", ratio=4)
    table.add_column("cachewright", style="green", ratio=4)
    for one in scene.comparisons:
        mark = (verdict(one.ok), "bold green" if one.ok else "bold red")
        table.add_row(Text(one.what), Text(one.textbook), Text.assemble(one.ours, "\n", mark))
    return table
