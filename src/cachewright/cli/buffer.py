"""``cachewright buffer …``: looks into write-behind buffers, drains them, replays and discards dead letters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from cachewright.behind.operating import BufferedWrite, Operating, escaped, look_at, safe_text
from cachewright.behind.worker import Worker
from cachewright.cache import Cache
from cachewright.cli.tables import age, cells, holder, plain, print_json, print_table, shown, table_of
from cachewright.cli.target import opened
from cachewright.cli.worker import REPOSITORY, TARGET, leave_loop, left_lines, left_rows, run_worker
from cachewright.errors import CacheError, ConfigurationError, NotDirtyError, TierError
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
        print_json([{"repository": name, **figures} for name, figures in found.items()])
    else:
        table = table_of("repository", "flusher", "buffer", "dirty", "settling", "dead", "bytes", "oldest")
        for name, figures in found.items():
            counts = (
                [f"{figures[word]:,}" for word in ("dirty", "settling", "dead", "bytes")]
                if ("error" not in figures)
                else ["?"] * 4
            )
            oldest = figures.get("error") or (age(figures["lag"]) if figures["dirty"] else "")
            table.add_row(*cells(name, figures["flusher"], figures["buffer"], *counts, oldest))
        print_table(table)
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
        print_json(rows)
        return
    words = ["key", "id", "state", "sequence", "age", "tries", "last error" if dead else "next try"]
    table = table_of(
        "repository", *words, *(() if dead else ("last error", "claimed by")), *["value"] * values
    )
    for row in rows:
        state = f"{row['state']}, a delete" if row["deleted"] else row["state"]
        line = [
            row["repository"],
            row["key"],
            shown(row["id"]),
            state,
            row["sequence"],
            age(row["age"]),
            row["tries"],
        ]
        if not dead:
            line.append("" if row["next_try"] is None else age(max(0.0, row["next_try"])))
        line.append(safe_text(row["error"] or "")[:300])
        if not dead:
            line.append(holder(row["claimed_by"]))
        table.add_row(*cells(*line, *([shown(row.get("value"))] if values else ())))
    print_table(table)
    if more:
        print(f"there is more in {', '.join(more)}; --limit shows more than {limit}", file=sys.stderr)


def _row(part: Operating, write: BufferedWrite, values: bool) -> dict[str, Any]:
    now = part.threads.now()
    row: dict[str, Any] = {
        "repository": part.name,
        "key": write.key,
        "id": plain(write.id),
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
            row["value"] = plain(drive(part.value(part.threads, write.key)))
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
        print_json({"drained": ok, "left": left_rows(left)})
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
    with _open(target, repository) as (cache, parts):
        chosen, unknown = _choose(parts, keys, all_)
        notice = _deaf(cache) if chosen else None
        if notice is not None and not json:
            print(notice, file=sys.stderr)  # before it asks
        if dry_run:
            _report("would be discarded", [key for _, key in chosen], unknown, json, notice)
        if chosen and not yes:
            for _, key in chosen[:20]:
                print(f"  {escaped(key)}", file=sys.stderr)
            if not typer.confirm(f"Discard {len(chosen)} dead letter(s) for good?", err=True):
                print("nothing was discarded", file=sys.stderr)
                raise typer.Exit(1)
        if chosen:
            _reach(cache)
        done, errors = _each(chosen, lambda part, key: drive(part.discard(part.threads, key)))
        late = [name for name, tier in cache.stats()["tiers"].items() if tier.get("behind")]
        if late:
            said = f"discarded, but {', '.join(late)} went away and may still hold the value: delete the key there"
            errors |= dict.fromkeys(done, said)
    _report("discarded", done, unknown | errors, json, notice)


def _deaf(cache: Cache) -> str | None:
    """What to tell of a cache whose entries lie in each process alone: none of them hears of this one's drops."""
    if any(level.tier.kind != "memory" for level in cache.engine.state.chain.levels):
        return None
    return (
        "notice: the values of this cache lie in each process's own memory, which no command reaches: a process that runs "
        "may serve a discarded value until its time is over; restart it, or call invalidate(id) there"
    )


def _reach(cache: Cache) -> None:
    """A drop that a tier misses is remembered and repeated, but by this process, which is about to end."""
    try:
        cache.connect(attempts=1)
    except TierError as error:
        print(
            f"nothing was discarded: {safe_text(str(error))}; a tier that does not hear of it could go on serving a value "
            f"that was never saved",
            file=sys.stderr,
        )
        raise typer.Exit(1) from None


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


def _report(
    word: str, done: Sequence[str], errors: dict[str, str], json: bool, notice: str | None = None
) -> NoReturn:
    if json:
        notices = {} if notice is None else {"notice": notice}
        print_json({word.replace(" ", "_"): list(done), "errors": errors, **notices})
    else:
        for key in done:
            print(f"{word}: {escaped(key)}")
        if not done and not errors:
            print("there are no dead letters")
        for key, error in errors.items():
            print(f"{escaped(key)}: {error}", file=sys.stderr)
    raise typer.Exit(1 if errors else 0)
