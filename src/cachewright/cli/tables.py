"""Tables and JSON of the buffer commands: what a key or a value may hold is shown as text, never obeyed."""

from __future__ import annotations

import json as jsons
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cachewright.behind.operating import escaped
from cachewright.options import MISSING

__all__ = ["age", "cells", "holder", "plain", "print_json", "print_table", "shown", "table_of"]


def plain(value: Any) -> Any:
    """Something that JSON has words for."""
    if value is MISSING:
        return None
    try:
        return msgspec.to_builtins(value, enc_hook=repr, str_keys=True)
    except (TypeError, ValueError, RecursionError):
        return repr(value)


def shown(value: Any) -> str:
    """What `plain` made, in a cell."""
    text = value if isinstance(value, str) else jsons.dumps(value, ensure_ascii=False, default=repr)
    text = escaped(text)
    return text if len(text) <= 200 else f"{text[:200]}…"


def age(seconds: float) -> str:
    """A time that has passed."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} d"


def holder(name: str | None) -> str:
    """The process of a claim."""
    parts = (name or "").split("/")
    return f"process {parts[1]}" if len(parts) > 1 else ""


def table_of(*words: str) -> Table:
    """An empty table with these columns."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for word in words:
        table.add_column(word, overflow="fold")
    return table


def cells(*values: object) -> list[Text]:
    """As text: brackets in a key are no markup."""
    return [Text(escaped(str(value))) for value in values]


def print_table(table: Table) -> None:
    """To standard output. A pipe has no width: nothing is folded there, so that grep finds whole keys."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=10_000)
    console.print(table if table.row_count else "nothing")


def print_json(value: Any) -> None:
    """To standard output."""
    print(jsons.dumps(value, indent=2))
