"""``cachewright buffer …``: looks into write-behind buffers, drains them, replays and discards dead letters."""

from __future__ import annotations

import json as jsons
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from cachewright.behind.operating import BufferedWrite, Operating, look_at, safe_text
from cachewright.behind.worker import Worker
from cachewright.cache import Cache
from cachewright.cli.target import opened
from cachewright.cli.worker import REPOSITORY, TARGET, leave_loop, left_lines, left_rows, run_worker
from cachewright.errors import CacheError, ConfigurationError, NotDirtyError
from cachewright.options import MISSING
from cachewright.runtime.base import drive

__all__ = ["buffer"]

buffer = typer.Typer(
    help="Write-behind buffers: what waits, what was given up.", no_args_is_help=True, add_completion=False
)

Target = Annotated[str, TARGET]
Names = Annotated[list[str] | None, REPOSITORY]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Limit = Annotated[int, typer.Option(min=1, help="Most rows of each repository.")]
Values = Annotated[bool, typer.Option("--values", help="Show the values too.")]
Keys = Annotated[list[str] | None, typer.Argument(metavar="KEY…", show_default=False, help="Such as user:1.")]
All = Annotated[bool, typer.Option("--all", help="Every dead letter.")]


@contextmanager
def _open(target: str, names: Sequence[str] | None) -> Iterator[tuple[Cache, list[Operating]]]:
    """The buffers; what goes wrong with one of them is a message and 1."""
    try:
        with opened(target, names or ()) as found:
            yield found
    except ConfigurationError:
        raise
    except CacheError as error:
        print(f"{type(error).__name__}: {safe_text(str(error))}", file=sys.stderr)
        raise typer.Exit(1) from None


@buffer.command()
def status(target: Target, repository: Names = None, json: Json = False) -> None:
    """How much waits in each buffer, and since when. Ends with 1 where a buffer did not answer."""
    with _open(target, repository) as (_, parts):
        found = look_at({part.name: part for part in parts}, 5.0)
        for figures in found.values():
            for name in ("saved", "failed", "dead_letters"):  # of this process, which saved nothing
                figures.pop(name, None)
    if json:
        _print_json([{"repository": name, **figures} for name, figures in found.items()])
    else:
        table = _table("repository", "flusher", "buffer", "dirty", "settling", "dead", "bytes", "oldest")
        for name, figures in found.items():
            counts = (
                [f"{figures[word]:,}" for word in ("dirty", "settling", "dead", "bytes")]
                if ("error" not in figures)
                else ["?"] * 4
            )
            oldest = figures.get("error") or (_age(figures["lag"]) if figures["dirty"] else "")
            table.add_row(*_cells(name, figures["flusher"], figures["buffer"], *counts, oldest))
        _print_table(table)
    raise typer.Exit(1 if any("error" in figures for figures in found.values()) else 0)


@buffer.command("list")
def list_(
    target: Target, repository: Names = None, limit: Limit = 100, values: Values = False, json: Json = False
) -> None:
    """What is dirty, oldest first."""
    _show(target, repository, limit, values, json, dead=False)


@buffer.command()
def dead(
    target: Target, repository: Names = None, limit: Limit = 100, values: Values = False, json: Json = False
) -> None:
    """The dead letters, oldest first, with their errors."""
    _show(target, repository, limit, values, json, dead=True)


def _show(
    target: str, names: Sequence[str] | None, limit: int, values: bool, json: bool, *, dead: bool
) -> None:
    rows, more = [], []
    with _open(target, names) as (_, parts):
        for part in parts:
            found = drive(part.writes(part.threads, limit + 1, dead=dead))
            if len(found) > limit:
                more.append(part.name)
            rows += [_row(part, write, values) for write in found[:limit]]
    if json:
        _print_json(rows)
        return
    words = ["key", "id", "state", "sequence", "age", "tries", "last error" if dead else "next try"]
    table = _table("repository", *words, *(() if dead else ("last error", "claimed by")), *["value"] * values)
    for row in rows:
        state = f"{row['state']}, a delete" if row["deleted"] else row["state"]
        cells = [
            row["repository"],
            row["key"],
            _shown(row["id"]),
            state,
            row["sequence"],
            _age(row["age"]),
            row["tries"],
        ]
        if not dead:
            cells.append("" if row["next_try"] is None else _age(max(0.0, row["next_try"])))
        cells.append(safe_text(row["error"] or "")[:300])
        if not dead:
            cells.append(_holder(row["claimed_by"]))
        table.add_row(*_cells(*cells, *([_shown(row.get("value"))] if values else ())))
    _print_table(table)
    if more:
        print(f"there is more in {', '.join(more)}; --limit shows more than {limit}", file=sys.stderr)


def _row(part: Operating, write: BufferedWrite, values: bool) -> dict[str, Any]:
    now = part.threads.now()
    row: dict[str, Any] = {
        "repository": part.name,
        "key": write.key,
        "id": _plain(write.id),
        "state": write.state,
        "deleted": write.deleted,
        "sequence": write.sequence,
        "age": round(max(0.0, now - write.first_dirty), 3),
        "tries": write.attempts,
        "next_try": None if write.next_try is None else round(write.next_try - now, 3),
        "error": None if write.error is None else safe_text(write.error),
        "claimed_by": write.claimed_by,
        "bytes": write.size,
    }
    if values:
        try:
            row["value"] = _plain(drive(part.value(part.threads, write.key)))
        except CacheError as error:
            row["value"] = f"cannot be read: {type(error).__name__}: {error}"
    return row


@buffer.command()
def drain(
    target: Target,
    repository: Names = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds; left out: until nothing is dirty.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Saves what is dirty now, in this process. Ends with 1 and a list where something is left or was given up."""
    with _open(target, repository) as (cache, parts):
        worker, bar = Worker(parts), _Bar()
        try:
            ok = run_worker(worker, parts, bar, drain=0.0, once=True, every=0.2, timeout=timeout)
        finally:
            bar.close()
        left = worker.left()
        if ok:
            leave_loop(worker, cache)
    if json:
        _print_json({"drained": ok, "left": left_rows(left)})
    elif ok:
        print("everything that was dirty is saved")
    else:
        print("\n".join(left_lines(left)) or "not drained", file=sys.stderr)
    raise typer.Exit(0 if ok else 1)


class _Bar:
    """A worker's view: how far the draining is, on a terminal."""

    def __init__(self) -> None:
        columns = (TextColumn("draining"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("", total=None)
        self._most = 0
        if sys.stderr.isatty():
            self._bar.start()

    def say(self, event: str, text: str, **facts: Any) -> None:
        if event in ("crash", "drain"):
            self._bar.console.print(Text(text))

    def status(self, figures: Any) -> None:
        dirty = sum(found.get("dirty", 0) for found in figures.values())
        self._most = max(self._most, dirty)
        self._bar.update(self._task, total=self._most, completed=self._most - dirty)

    def close(self) -> None:
        self._bar.stop()


@buffer.command()
def replay(
    target: Target, keys: Keys = None, all_: All = False, repository: Names = None, json: Json = False
) -> None:
    """Has dead letters saved again, their tries forgotten. Ends with 1 where a key has none."""
    _check_choice(keys, all_)
    with _open(target, repository) as (_, parts):
        chosen, unknown = _choose(parts, keys, all_)
        done, errors = _each(chosen, lambda part, key: drive(part.replay(part.threads, key)))
    _report("replayed", done, unknown | errors, json)


@buffer.command()
def discard(
    target: Target,
    keys: Keys = None,
    all_: All = False,
    repository: Names = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Removes dead letters for good and drops their keys in every tier: reads see the origin again."""
    _check_choice(keys, all_)
    if not (dry_run or yes or sys.stdin.isatty()):
        raise ConfigurationError(
            "discard removes writes that were never saved, and there is no terminal to ask at: look with --dry-run, "
            "then give --yes"
        )
    with _open(target, repository) as (_, parts):
        chosen, unknown = _choose(parts, keys, all_)
        if dry_run:
            _report("would be discarded", [key for _, key in chosen], unknown, json)
        if chosen and not yes:
            for _, key in chosen[:20]:
                print(f"  {safe_text(key)}", file=sys.stderr)
            if not typer.confirm(f"Discard {len(chosen)} dead letter(s) for good?", err=True):
                print("nothing was discarded", file=sys.stderr)
                raise typer.Exit(1)
        done, errors = _each(chosen, lambda part, key: drive(part.discard(part.threads, key)))
    _report("discarded", done, unknown | errors, json)


def _check_choice(keys: Sequence[str] | None, all_: bool) -> None:
    if bool(keys) == all_:
        raise ConfigurationError("name the keys, as `buffer dead` shows them, or give --all; not both")


def _choose(
    parts: Sequence[Operating], keys: Sequence[str] | None, all_: bool
) -> tuple[list[tuple[Operating, str]], dict[str, str]]:
    """Dead letters by repository and key; and for keys that have none, why."""
    chosen: list[tuple[Operating, str]] = []
    unknown: dict[str, str] = {}
    if all_:
        for part in parts:
            count = drive(part.stats(part.threads)).buffer.dead
            if count:
                found = drive(part.writes(part.threads, count, dead=True))
                chosen += [(part, write.key) for write in found]
        return chosen, unknown
    for key in dict.fromkeys(keys or ()):
        holders = [(part, write) for part in parts if (write := _find(part, key)) is not None]
        given_up = [(part, write.key) for part, write in holders if write.state == "dead"]
        chosen += given_up
        if not given_up:
            state = (
                f"it is {holders[0][1].state}, no dead letter"
                if holders
                else "the buffer has nothing of that key"
            )
            unknown[key] = f"{state}; `buffer dead` lists what there is"
    return chosen, unknown


def _find(part: Operating, key: str) -> BufferedWrite | None:
    """By the key itself, or by it as our tables show it, control characters escaped."""
    found = drive(part.find(part.threads, key))
    if found is not None or "\\" not in key:
        return found
    try:
        meant = key.encode("latin-1", "backslashreplace").decode("unicode_escape")
    except UnicodeDecodeError:
        return None
    return drive(part.find(part.threads, meant)) if meant != key else None


def _each(
    chosen: Sequence[tuple[Operating, str]], act: Callable[[Operating, str], object]
) -> tuple[list[str], dict[str, str]]:
    done: list[str] = []
    errors: dict[str, str] = {}
    for part, key in chosen:
        try:
            act(part, key)
            done.append(key)
        except NotDirtyError:
            errors[key] = "it is no dead letter any more"
        except CacheError as error:
            errors[key] = safe_text(f"{type(error).__name__}: {error}")
    return done, errors


def _report(word: str, done: Sequence[str], errors: dict[str, str], json: bool) -> NoReturn:
    if json:
        _print_json({word.replace(" ", "_"): list(done), "errors": errors})
    else:
        for key in done:
            print(f"{word}: {safe_text(key)}")
        if not done and not errors:
            print("there are no dead letters")
        for key, error in errors.items():
            print(f"{safe_text(key)}: {error}", file=sys.stderr)
    raise typer.Exit(1 if errors else 0)


# ---------------------------------------------------------------------------------------------- rendering


def _plain(value: Any) -> Any:
    """Something that JSON has words for."""
    if value is MISSING:
        return None
    try:
        return msgspec.to_builtins(value, enc_hook=repr, str_keys=True)
    except (TypeError, ValueError, RecursionError):
        return repr(value)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else jsons.dumps(value, ensure_ascii=False, default=repr)
    text = "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} d"


def _holder(name: str | None) -> str:
    parts = (name or "").split("/")
    return f"process {parts[1]}" if len(parts) > 1 else ""


def _table(*words: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for word in words:
        table.add_column(word, overflow="fold")
    return table


def _cells(*values: object) -> list[Text]:
    """As text: brackets in a key are no markup."""
    return [Text(safe_text(str(value))) for value in values]


def _print_table(table: Table) -> None:
    # a pipe has no width: nothing is folded there, so that grep finds whole keys
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=10_000)
    console.print(table if table.row_count else "nothing")


def _print_json(value: Any) -> None:
    print(jsons.dumps(value, indent=2))
