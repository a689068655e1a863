"""``cachewright worker module:cache``: a process that saves what write-behind repositories accepted elsewhere."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Annotated, Any, Protocol, TextIO

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from cachewright.behind.operating import Operating, escaped, look_at, safe_text
from cachewright.behind.worker import Left, Worker
from cachewright.cache import Cache
from cachewright.cli.target import opened
from cachewright.errors import CacheError, ConfigurationError

__all__ = ["REPOSITORY", "TARGET", "leave_loop", "left_lines", "left_rows", "run_worker", "work"]

TARGET = typer.Argument(
    metavar="MODULE:CACHE",
    show_default=False,
    help="Where the cache is: shop:cache, shop.settings:cache, shop:make_cache.",
)
REPOSITORY = typer.Option("--repository", "-r", metavar="NAME", help="Only this one; may be given again.")
_STAYS = {  # by kind, why a worker does not flush it unless it is named
    "celery": "Celery workers flush it",
    "none": 'flusher="none": only flush() saves',
}
_SHOWN = 20


class View(Protocol):
    """How a worker tells what it does."""

    def say(self, event: str, text: str, **facts: Any) -> None:
        """Something happened."""

    def status(self, figures: Mapping[str, Mapping[str, Any]]) -> None:
        """Where it stands, by repository."""

    def close(self) -> None:
        """No more of either."""


class JsonView:
    """One JSON object a line, on standard output."""

    def say(self, event: str, text: str, **facts: Any) -> None:
        line = {"time": round(time.time(), 3), "event": event, "text": text, **facts}
        _print(json.dumps(line, default=repr), sys.stdout)

    def status(self, figures: Mapping[str, Mapping[str, Any]]) -> None:
        self.say("status", _summary(figures), repositories=figures)

    def close(self) -> None:
        pass


def _print(line: str, stream: TextIO) -> None:
    try:
        print(line, file=stream, flush=True)
    except BrokenPipeError:  # whoever read it is gone; saving goes on, and says the rest to nobody
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class PlainView:
    """Lines with the time, on standard error."""

    def say(self, event: str, text: str, **facts: Any) -> None:
        _print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", sys.stderr)

    def status(self, figures: Mapping[str, Mapping[str, Any]]) -> None:
        self.say("status", _summary(figures))

    def close(self) -> None:
        pass


class TerminalView:
    """The same lines, above one that is kept up to date."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, transient=True, refresh_per_second=4, redirect_stdout=False)
        self._live.start()

    def say(self, event: str, text: str, **facts: Any) -> None:
        self._console.print(Text(f"{time.strftime('%H:%M:%S')} {text}"))

    def status(self, figures: Mapping[str, Mapping[str, Any]]) -> None:
        self._live.update(Text(_summary(figures), overflow="ellipsis", no_wrap=True))

    def close(self) -> None:
        self._live.stop()


def _summary(figures: Mapping[str, Mapping[str, Any]]) -> str:
    return "; ".join(f"{name}: {_figures(found)}" for name, found in figures.items())


def _figures(found: Mapping[str, Any]) -> str:
    if "error" in found:
        return str(found["error"])
    return (
        f"{found['dirty']} dirty, lag {found['lag']:.1f} s, {found['saved']} saved, {found['failed']} failed, "
        f"{found['dead']} dead"
    )


def work(
    target: Annotated[str, TARGET],
    repository: Annotated[list[str] | None, REPOSITORY] = None,
    drain: Annotated[
        float, typer.Option(min=0, help="On SIGTERM or SIGINT: seconds to save what is dirty.")
    ] = 30.0,
    once: Annotated[
        bool, typer.Option("--once", help="Save what is dirty now, then end (for cron).")
    ] = False,
    every: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="Seconds between status lines; 1 on a terminal, else 60.", show_default=False
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON lines on standard output.")] = False,
) -> None:
    """Saves what write-behind repositories accepted: those with flusher="worker", and with "background" too.

    SIGTERM or SIGINT has it save what is dirty and end: with 0, or after --drain seconds with 1 and a list of what is
    left. A second signal ends it at once. What is left stays in the buffer for the next start.
    """
    terminal = sys.stderr.isatty() and not json
    view: View = JsonView() if json else TerminalView() if terminal else PlainView()
    with _logging(view if not json else PlainView()), _ending(view):
        with opened(target, repository or ()) as (cache, parts):
            chosen = _chosen(target, parts, repository or (), view)
            worker = Worker(chosen)
            view.say(
                "start",
                f"worker {os.getpid()} of {target}: {', '.join(f'{part.name} ({part.url})' for part in chosen)}",
                pid=os.getpid(),
                repositories=[part.name for part in chosen],
            )
            pause = every if every is not None else 1.0 if terminal else 60.0
            ok = run_worker(worker, chosen, view, drain=drain, once=once, every=pause)
            if not ok:
                _end_now(view, 1)  # a saver may hang: nothing of this process may outlive its deadline
            leave_loop(worker, cache)
    raise typer.Exit(0)


def _chosen(target: str, parts: Sequence[Operating], names: Sequence[str], view: View) -> list[Operating]:
    """Those that a worker is for; the others only by name."""
    chosen = [part for part in parts if names or part.kind not in _STAYS]
    for part in parts:
        if part not in chosen:
            view.say(
                "notice",
                f"{part.name} is left alone: {_STAYS[part.kind]}; --repository {part.name} flushes it here too",
                repository=part.name,
            )
        elif part.kind != "worker":
            view.say(
                "notice",
                f"{part.name} has flusher={part.kind!r}: whoever else flushes it goes on, claims keep the two apart",
                repository=part.name,
            )
    if not chosen:
        raise ConfigurationError(
            f'{target}: it has no repository for a worker; make one with WriteBehind(flusher="worker"), or name one: '
            f"--repository {parts[0].name}"
        )
    return chosen


def run_worker(
    worker: Worker,
    parts: Sequence[Operating],
    view: View,
    *,
    drain: float,
    once: bool,
    every: float,
    timeout: float | None = None,
) -> bool:
    """Runs a worker until it is drained, a signal and its deadline ended it, or it crashed; True where all is saved."""
    caught: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        if len(caught) > 1:
            os.write(2, b"a second signal: ended at once; what was not saved stays in the buffer\n")
            os._exit(128 + number)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    by_name = {part.name: part for part in parts}
    deadline = None if timeout is None else time.monotonic() + timeout
    asked = False
    shown = 0.0
    try:
        worker.start()
        if once:
            worker.drain()
        while not worker.wait(0.1):
            now = time.monotonic()
            if caught and not asked:
                asked, deadline = True, now + drain
                name = signal.Signals(caught[0]).name
                view.say("drain", f"{name}: saving what is dirty, for at most {drain:g} s", seconds=drain)
                worker.drain()
            if deadline is not None and now >= deadline:
                break
            if now - shown >= every:
                shown = now
                view.status(look_at(by_name))
        return _conclude(worker, by_name, view, once)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _conclude(worker: Worker, parts: Mapping[str, Operating], view: View, once: bool) -> bool:
    if worker.crash is not None:
        name, error = worker.crash
        view.say("crash", f"the flushing of {name} ended: {safe_text(repr(error))}", repository=name)
        return False
    left = worker.left()
    undone = [one for one in left if one.writes or one.count != 0 or (once and one.died)]
    view.status(look_at(parts))
    for line in left_lines(left):
        view.say("left", line)
    if undone:
        view.say("end", "not everything was saved; it stays in the buffer", left=left_rows(left))
        return False
    view.say("end", "everything that was dirty is saved", left=left_rows(left))
    return True


def left_lines(left: Sequence[Left]) -> Iterator[str]:
    """What was not saved, for people."""
    for one in left:
        if one.error is not None:
            yield f"{one.name}: what is left is not known: {safe_text(one.error)}"
        elif one.writes:
            yield f"{one.name}: {one.count} key(s) still dirty"
        for write in one.writes[:_SHOWN]:
            said = f"{write.attempts} failed, the last: {write.error}" if write.error else write.state
            yield f"  {escaped(write.key)} ({safe_text(said)})"
        if len(one.writes) > _SHOWN:
            yield f"  … and {(one.count or len(one.writes)) - _SHOWN} more"
        if one.died:
            yield f"{one.name}: {len(one.died)} record(s) were given up and are dead letters now"
        for key, error in list(one.died.items())[:_SHOWN]:
            yield f"  {escaped(key)} ({safe_text(error)})"


def left_rows(left: Sequence[Left]) -> dict[str, Any]:
    """The same for programs, by repository."""
    return {
        one.name: {
            "dirty": one.count,
            "keys": [write.key for write in one.writes],
            "died": list(one.died),
            "error": None if one.error is None else safe_text(one.error),
        }
        for one in left
    }


def leave_loop(worker: Worker, cache: Cache) -> None:
    """Connections that belong to the worker's event loop are closed there."""
    if worker.loop is None:
        return
    with suppress(CacheError, TimeoutError):
        worker.loop.run(cache.aclose).result(5.0)
    worker.loop.stop(5.0)


def _end_now(view: View, code: int) -> None:
    view.close()
    logging.shutdown()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


@contextmanager
def _ending(view: View) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:  # before it had begun
        raise typer.Exit(130) from None
    finally:
        view.close()


class _ToView(logging.Handler):
    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view

    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger().handlers:
            return  # the user's module has set up logging, and that says it
        try:
            self._view.say("log", f"{record.levelname} {safe_text(self.format(record))}")
        except Exception:  # as every handler: what cannot be logged must not end what is logged
            self.handleError(record)


@contextmanager
def _logging(view: View) -> Iterator[None]:
    """Our warnings reach the terminal where the user's module sets up no logging."""
    log = logging.getLogger("cachewright")
    handler = _ToView(view)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
