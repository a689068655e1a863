"""The tour as one self-contained page: code, outcomes side by side, and a time line for each scene."""

from __future__ import annotations

import io
import keyword
import token
import tokenize
from html import escape
from pathlib import Path

from cachewright.tour.model import SceneResult, Side, TourResult
from cachewright.tour.timeline import KINDS, time_line
from cachewright.tour.words import count, duration, result_word, tier_line, verdict

__all__ = ["page", "write_page"]

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c1e21; --soft: #5b626b; --line: #d9dde2; --card: #f6f7f9;
  --good: #1a7f37; --bad: #c42b1c; --hit: #2da44e; --load: #d4a106; --wait: #54aeff; --stale: #a475f9; --save: #3866c9;
  --store: #6f8fd8; --drop: #5c7a89; --error: #d1242f; --query: #8c959f; --kill: #1c1e21; --miss: #d6589f; --buffer: #0b7285; --word: #8250df; --text: #0a7a5c; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --ink: #e4e7eb; --soft: #9aa3ad; --line: #333940;
  --card: #1c1f24; --good: #57c97a; --bad: #ff7b72; --hit: #3fb950; --load: #e3b341; --wait: #388bfd; --stale: #bc8cff;
  --save: #6f9bff; --store: #7f9fe0; --drop: #8fb0c0; --error: #ff6b62; --query: #6e7781; --kill: #ffffff; --miss: #f778ba; --buffer: #22b8cf; --word: #c9a5ff;
  --text: #7ee0b8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 24px 20px 60px; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 28px; margin: 0 0 4px; } h2 { font-size: 21px; margin: 48px 0 6px; } p { margin: 6px 0; }
.soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); } .verdict { white-space: nowrap; }
table { border-collapse: collapse; width: 100%; margin: 12px 0; font-size: 15px; }
th, td { text-align: left; vertical-align: top; padding: 6px 10px 6px 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); } td.number { text-align: right; white-space: nowrap; }
.scroll { overflow-x: auto; }
.code { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 12px; margin: 12px 0; }
@media (max-width: 460px) { .code { grid-template-columns: 1fr; } }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 6px; min-width: 0; }
figcaption { padding: 6px 12px 0; font-weight: 600; font-size: 14px; }
pre { margin: 0; padding: 8px 12px 12px; white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.45 ui-monospace, monospace; }
pre .k, pre .d { color: var(--word); } pre .s { color: var(--text); } pre .n { color: var(--bad); }
pre .c { color: var(--soft); font-style: italic; }
svg { width: 100%; min-width: 640px; height: auto; display: block; font: 12px system-ui, sans-serif; margin: 8px 0; }
svg text { fill: var(--soft); } svg .side { fill: var(--ink); font-weight: 600; font-size: 13px; }
svg .lane { text-anchor: end; } svg .tick { text-anchor: middle; } svg line { stroke: var(--line); stroke-width: 1; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 14px; color: var(--soft); margin: 12px 0; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin-right: 6px; vertical-align: -1px; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--soft); }
"""
_KINDS_STYLE = "".join(f"svg .{kind} {{ fill: var(--{kind}); }} " for kind in (*KINDS, "note")).replace(
    "var(--note)", "var(--soft)"
)
_TOKENS = {token.STRING: "s", token.NUMBER: "n", tokenize.COMMENT: "c"}
# From 3.12 on an f-string is several tokens.
_TOKENS |= {
    getattr(token, name): "s"
    for name in ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END")
    if hasattr(token, name)
}


def write_page(result: TourResult, path: Path) -> None:
    """Writes it."""
    path.write_text(page(result), encoding="utf-8")


def page(result: TourResult) -> str:
    """The whole page."""
    rows = "".join(
        f'<tr><td>{scene.number}</td><td><a href="#scene-{scene.number}">{escape(scene.name)}</a></td>'
        f'<td>{escape(scene.engine)}</td><td class="number">{duration(scene.seconds)}</td><td>{_mark(scene.ok)}</td></tr>'
        for scene in result.scenes
    )
    legend = "".join(
        f'<span><i style="background: var(--{kind})"></i>{escape(words)}</span>'
        for kind, words in KINDS.items()
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>cachewright: the tour</title>\n'
        f"<style>{_STYLE}{_KINDS_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>cachewright: the tour</h1>\n<p class="soft">Version {escape(result.version)}; '
        f"{count(len(result.scenes), 'scene')} in {result.seconds:.0f} s; database: {escape(result.database)}.</p>\n"
        f'<div class="scroll"><table><tr><th></th><th>scene</th><th>engine</th><th>time</th><th>verdict</th></tr>{rows}'
        f"</table></div>\n"
        f'<div class="legend">{legend}</div>\n'
        f"{''.join(_scene(scene) for scene in result.scenes)}</body>\n</html>\n"
    )


def _scene(scene: SceneResult) -> str:
    failed = f'<p class="bad">failed: {escape(scene.error)}</p>' if scene.error else ""
    rows = "".join(
        f"<tr><td>{escape(one.what)}</td><td>{escape(one.textbook)}</td><td>{escape(one.ours)} {_mark(one.ok)}</td></tr>"
        for one in scene.comparisons
    )
    return (
        f'<section id="scene-{scene.number}">\n<h2>{scene.number}. {escape(scene.name)}</h2>\n'
        f'<p>{escape(scene.about)}</p>\n<p><strong class="bad">The textbook\'s bug:</strong> {escape(scene.bug)}</p>\n'
        f'<p class="soft">Engine: {escape(scene.engine)}.</p>\n{failed}'
        f'<div class="code">{_code("cachewright", scene.ours)}{_code("textbook", scene.textbook)}</div>\n'
        f'<div class="scroll"><table><tr><th></th><th>textbook</th><th>cachewright</th></tr>{rows}</table></div>\n'
        f'<div class="scroll">{time_line(scene)}</div>\n'
        f"{_steps('What happened', scene.ours)}{_steps('The textbook’s version', scene.textbook)}</section>\n"
    )


def _mark(ok: bool) -> str:
    return f'<span class="{"good" if ok else "bad"} verdict">{verdict(ok)}</span>'


def _code(title: str, side: Side) -> str:
    return f"<figure><figcaption>{title}</figcaption><pre>{_highlighted(side.code)}</pre></figure>"


def _highlighted(code: str) -> str:
    """Keywords, strings, numbers, comments and decorators in spans of a class each."""
    lines = code.splitlines(keepends=True)
    parts: list[str] = []
    row, column = 1, 0

    def copy_until(end: tuple[int, int]) -> str:
        nonlocal row, column
        found = []
        while row < end[0] and row <= len(lines):
            found.append(lines[row - 1][column:])
            row, column = row + 1, 0
        if row <= len(lines):
            found.append(lines[row - 1][column : end[1]])
        column = end[1]
        return escape("".join(found), quote=False)

    for one in tokenize.generate_tokens(io.StringIO(code).readline):
        kind = _TOKENS.get(one.type, "")
        if one.type == token.NAME and keyword.iskeyword(one.string):
            kind = "k"
        elif one.type == token.OP and one.string == "@" and not one.line[: one.start[1]].strip():
            kind = "d"
        parts.append(copy_until(one.start))
        text = copy_until(one.end)
        parts.append(f'<span class="{kind}">{text}</span>' if kind and text else text)
    return "".join(parts)


def _steps(title: str, side: Side) -> str:
    if not side.steps:
        return ""
    rows = []
    for step in side.steps:
        note = tier_line(step) if step.tiers else step.note
        cells = [
            "tiers" if step.tiers else step.who,
            step.call,
            result_word(step),
        ]
        took = duration(step.seconds) if step.seconds else ""
        rows.append(
            f'<tr><td class="number">{step.at:.2f} s</td>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}'
            f'<td class="number">{took}</td><td>{escape(note)}</td></tr>'
        )
    head = "".join(f"<th>{name}</th>" for name in ("at", "who", "call", "result", "time", ""))
    return (
        f"<details><summary>{title}: {len(side.steps)} calls</summary>"
        f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div></details>\n'
    )
