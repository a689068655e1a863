"""``cachewright warm module:function --from FILE``: loads ahead what callers will ask for."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cachewright.behind.operating import escaped, hosted, safe_text
from cachewright.cache import Cache
from cachewright.cli.arguments import WrongLine, calls, ids, lines
from cachewright.cli.tables import plain, print_json, shown
from cachewright.cli.target import cache_of, load_cache, load_object
from cachewright.decorator_ahead import part_of
from cachewright.errors import ConfigurationError
from cachewright.runtime.threads import is_async
from cachewright.spelling import did_you_mean
from cachewright.warm_plan import WarmReport

__all__ = ["warm"]

_SHOWN = 20
_STOP = 5.0  # seconds


class _Warmable(NamedTuple):
    """A decorated function, or a repository."""

    read: Callable[[str], Any]
    warm: Callable[..., WarmReport[Any]]
    awarm: Callable[..., Awaitable[WarmReport[Any]]]
    is_async: bool
    cache: Cache | None
    how: dict[str, Any]


def warm(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION",
            show_default=False,
            help="A function under @cache.cached: shop:get_user. With --repository a cache: shop:cache.",
        ),
    ],
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="FILE",
            show_default=False,
            help="One call a line, as JSON: a list of arguments, an object of them by name, or the only one; "
            "for a repository an id. - is standard input.",
        ),
    ],
    repository: Annotated[
        str | None, typer.Option("--repository", "-r", metavar="NAME", help="Warm ids of this repository.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="How many loads run at once.")] = 8,
    batch: Annotated[
        int, typer.Option(min=1, max=10_000, help="How many ids load_many is given at once.")
    ] = 100,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Loads what is not fresh, a few at a time. A second call goes on where the first one stopped.

    Ends with 1 and a list where something failed. SIGINT or SIGTERM has the loads under way end, then it ends too.
    """
    with hosted():
        found = _warmable(target, repository, batch)
        items, wrong = _read(source, found.read)
        began = time.monotonic()
        with _Progress(len(items)) as progress:
            report = _run(found, items, concurrency=concurrency, progress=progress)
    seconds = time.monotonic() - began
    if json:
        print_json(_document(report, wrong, seconds))
    else:
        _print(report, wrong, len(items), seconds)
    if progress.caught is not None:
        raise typer.Exit(128 + progress.caught)
    raise typer.Exit(0 if report.ok and not wrong else 1)


# ------------------------------------------------------------------------------------------- what is warmed


def _warmable(target: str, repository: str | None, batch: int) -> _Warmable:
    if repository is not None:
        return _repository(load_cache(target), target, repository, batch)
    _, found = load_object(target, "function", "a function under @cache.cached")
    part = part_of(found) if not isinstance(found, Cache) else None
    if part is None:
        known = ", ".join(found.repositories) if isinstance(found, Cache) else ""
        hint = (
            f"; of a cache, name a repository: --repository {known or 'NAME'}"
            if isinstance(found, Cache)
            else ""
        )
        raise ConfigurationError(
            f"{target!r} is of type {type(found).__name__}: expected a function under @cache.cached{hint}"
        )
    read = calls(part.function, part.bound)
    return _Warmable(read, part.warm, part.awarm, part.is_async, cache_of(part.engine), {})


def _repository(cache: Cache, target: str, name: str, batch: int) -> _Warmable:
    users = cache.repositories.get(name)
    if users is None:
        known = f"it has {', '.join(cache.repositories)}" if cache.repositories else "it has none"
        raise ConfigurationError(
            f"--repository {name}: {target} has no repository of that name"
            f"{did_you_mean(name, cache.repositories)}; {known}"
        )
    load = users.warmed_by
    read = ids(load, many=users.loads_many)
    how = {"batch_size": batch}
    return _Warmable(read, users.warm, users.awarm, is_async(load), cache, how)


def _read(source: str, read: Callable[[str], Any]) -> tuple[list[Any], list[tuple[int, str]]]:
    """What is to be called, and the lines that say nothing."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(
            f"--from {source}: cannot be read ({error}); give a file of UTF-8 text, or - for standard input"
        ) from error
    items, wrong = [], []
    for number, line in lines(text.splitlines()):
        try:
            items.append(read(line))
        except WrongLine as error:
            wrong.append((number, str(error)))
    return items, wrong


# ------------------------------------------------------------------------------------------------ the run


def _run(found: _Warmable, items: Sequence[Any], **how: Any) -> WarmReport[Any]:
    async def on_a_loop() -> WarmReport[Any]:
        try:
            return await found.awarm(items, **found.how, **how)
        finally:
            if found.cache is not None:
                await found.cache.aclose(_STOP)

    if found.is_async:
        return asyncio.run(on_a_loop())
    try:
        return found.warm(items, **found.how, **how)
    finally:
        if found.cache is not None:
            found.cache.close(_STOP)


class _Progress:
    """A bar on a terminal; and the first signal, which has the warming stop."""

    def __init__(self, total: int) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        text = TextColumn("warming[red]{task.fields[failed]}")
        self._bar = Progress(text, *columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("", total=total, failed="")
        self.caught: int | None = None

    def __call__(self, done: int, _total: int | None, failed: int) -> bool:
        self._bar.update(self._task, completed=done, failed=f" ({failed} failed)" if failed else "")
        return self.caught is None

    def _signal(self, number: int, _frame: FrameType | None) -> None:
        if self.caught is not None:
            os.write(2, b"a second signal: ended at once\n")
            os._exit(128 + number)
        self.caught = number

    def __enter__(self) -> _Progress:
        self._before = {one: signal.signal(one, self._signal) for one in (signal.SIGTERM, signal.SIGINT)}
        if sys.stderr.isatty():
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        for one, handler in self._before.items():
            signal.signal(one, handler)


# --------------------------------------------------------------------------------------------- the report


def _print(report: WarmReport[Any], wrong: Sequence[tuple[int, str]], total: int, seconds: float) -> None:
    words = [
        f"{count:,} {word}"
        for count, word in (
            (report.loaded, "loaded"),
            (report.skipped, "fresh already"),
            (report.absent, "absent at the origin"),
            (report.unstored, "not stored"),
            (len(report.failed) + len(wrong), "failed"),
        )
        if count or word == "loaded"
    ]
    print(f"{', '.join(words)}, in {seconds:.1f} s")
    for line in _failures(report, wrong):
        print(line, file=sys.stderr)
    if report.stopped:
        print(f"stopped after {report.done:,} of {total:,}; call it again to go on", file=sys.stderr)


def _failures(report: WarmReport[Any], wrong: Sequence[tuple[int, str]]) -> Iterator[str]:
    told = [f"line {number}: {safe_text(why)}" for number, why in wrong]
    told += [f"{_name(key)}: {_why(error)}" for key, error in report.failed.items()]
    yield from told[:_SHOWN]
    if len(told) > _SHOWN:
        yield f"… and {len(told) - _SHOWN:,} more; --json has them all"


def _name(key: Any) -> str:
    return escaped(key) if isinstance(key, str) else shown(plain(key))


def _why(error: Exception) -> str:
    return safe_text(f"{type(error).__name__}: {error}")


def _document(report: WarmReport[Any], wrong: Sequence[tuple[int, str]], seconds: float) -> dict[str, Any]:
    return {
        "loaded": report.loaded,
        "skipped": report.skipped,
        "absent": report.absent,
        "unstored": report.unstored,
        "failed": [{"key": plain(key), "error": _why(error)} for key, error in report.failed.items()],
        "wrong_lines": [{"line": number, "error": safe_text(why)} for number, why in wrong],
        "stopped": report.stopped,
        "seconds": round(seconds, 3),
    }
