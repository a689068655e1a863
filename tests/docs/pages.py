"""Markdown pages as programs: their Python blocks, and what a block says about its own results.

In a block, ``# → value`` behind an expression is checked against the expression's ``repr``, and ``# → raises Name``
against the exception that it raises. ``await`` at the top level is allowed. Blocks of a page share one namespace.

Comments that a reader does not see steer the rest::

    <!-- servers: redis memcached cluster rabbitmq -->   once a page: its URLs are replaced by those of real servers
    <!-- file: shop.py -->                               the next block is a module, written beside the others
    <!-- worker: shop -->                                a Celery worker of that module runs from here on
    <!-- not run: reason -->                             the next block does not run
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_PART = re.compile(
    r"^<!-- (?P<word>file|worker|not run): (?P<text>.*?) -->$|^```python\n(?P<code>.*?)^```$", re.M | re.S
)
_SERVERS = re.compile(r"^<!-- servers: (.*?) -->$", re.M)
_CLAIM = re.compile(r"#\s*→\s*(.*?)\s*$")


@dataclass(frozen=True)
class Block:
    """One block of Python, or a worker to start before the next (``kind="worker"``)."""

    kind: str
    text: str
    line: int
    about: str = ""


def blocks(page: Path) -> Iterator[Block]:
    """The page's parts in order."""
    text, kind, about = page.read_text(encoding="utf-8"), "run", ""
    for part in _PART.finditer(text):
        line = text.count("\n", 0, part.start()) + 1
        if part["word"] == "worker":
            yield Block("worker", "", line, part["text"])
        elif part["word"]:
            kind, about = part["word"], part["text"]
        else:
            yield Block(kind, part["code"], line + 1, about)
            kind, about = "run", ""


def servers(page: Path) -> list[str]:
    """The engines that the page's code needs."""
    found = _SERVERS.search(page.read_text(encoding="utf-8"))
    return found[1].split() if found else []


class _Claims(ast.NodeTransformer):
    """Turns ``expression  # → claim`` into a check."""

    def __init__(self, source: str) -> None:
        self.claims = {
            number: found[1]
            for number, line in enumerate(source.splitlines(), 1)
            if (found := _CLAIM.search(line))
        }

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        claim = self.claims.pop(node.end_lineno or node.lineno, None)
        if claim is None:
            return node
        if claim.startswith("raises "):
            guard = ast.parse(f"with _raises({claim.removeprefix('raises ')!r}): pass").body[0]
            assert isinstance(guard, ast.With)
            guard.body = [node]
            return ast.fix_missing_locations(ast.copy_location(guard, node))
        check = ast.parse(f"_is(None, {claim!r})", mode="eval").body
        assert isinstance(check, ast.Call)
        check.args[0] = node.value
        return ast.fix_missing_locations(ast.copy_location(ast.Expr(check), node))


def _is(value: object, claim: str) -> None:
    assert repr(value) == claim, f"the page says {claim}, and it is {value!r}"


class _raises:
    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        assert kind is not None, f"the page says that it raises {self.name}, and it does not"
        return kind.__name__ == self.name


def run(block: Block, source: str, page: Path, names: dict[str, Any]) -> None:
    """Runs one block; tracebacks name the page and its lines."""
    claims = _Claims(source)
    tree = claims.visit(ast.parse(source))
    assert not claims.claims, f"{page.name}: {claims.claims} stand behind no expression"
    ast.increment_lineno(tree, block.line - 1)
    code = compile(tree, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names.update(_is=_is, _raises=_raises)
    if code.co_flags & inspect.CO_COROUTINE:

        async def main() -> None:
            await eval(code, names)

        asyncio.run(main())
    else:
        exec(code, names)
