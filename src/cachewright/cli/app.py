"""The commands."""

from __future__ import annotations

import enum
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from cachewright import __version__
from cachewright.cli.buffer import buffer
from cachewright.cli.warm import warm
from cachewright.cli.worker import work
from cachewright.errors import ConfigurationError
from cachewright.tour.render_json import JsonListener
from cachewright.tour.render_plain import PlainListener
from cachewright.tour.render_rich import RichListener
from cachewright.tour.run import Listener, play_tour

__all__ = ["app"]

_SIGPIPE = 128 + signal.SIGPIPE  # what a shell reports of any program whose reader went away

app = typer.Typer(
    help="Ten caching strategies for Python services.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


app.command("worker")(work)
app.command("warm")(warm)
app.add_typer(buffer, name="buffer")


class EngineChoice(enum.StrEnum):
    """Where servers come from."""

    LOCAL = "local"
    EMBEDDED = "embedded"


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Ten caching strategies for Python services."""


@app.command()
def tour(
    engine: Annotated[
        EngineChoice,
        typer.Option(
            help="local: the servers installed here, embedded ones for what is missing. embedded: Valkey only."
        ),
    ] = EngineChoice.LOCAL,
    only: Annotated[
        list[str] | None, typer.Option(help="Play these scenes only: 3, or 3,4; may be given again.")
    ] = None,
    redis: Annotated[str | None, typer.Option(help="Use this Redis: redis://host:6379/0")] = None,
    memcached: Annotated[str | None, typer.Option(help="Use this Memcached: memcached://host:11211")] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Use this cluster: redis+cluster://host:7000,host:7001")
    ] = None,
    broker: Annotated[str | None, typer.Option(help="Use this broker: amqp://user:password@host//")] = None,
    database: Annotated[
        str | None, typer.Option(help="Use this PostgreSQL: postgresql://…; else SQLite.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Also write one self-contained page with time lines.")
    ] = None,
) -> None:
    """Plays ten strategies, each as a short scene on real engines, beside the textbook's version and its bug.

    Ends with 0 only if every scene did what it promises.
    """
    stop = _Stop()
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    scenes = _numbers(only or ())
    if html is not None:
        _check_writable(html)
    console = Console()
    rich = RichListener(console)
    listener: Listener = JsonListener() if json else rich if console.is_terminal else PlainListener()
    given = {"redis": redis, "memcached": memcached, "cluster": cluster, "broker": broker}
    try:
        result = play_tour(listener, engine=engine.value, only=scenes, given=given, database=database)
        stop.check()
    except KeyboardInterrupt:
        print("stopped; every server was stopped too", file=sys.stderr)
        raise typer.Exit(130) from None
    except BrokenPipeError:  # `| head` has seen enough: nobody reads on, so there is nothing to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor is there when Python flushes
        raise typer.Exit(_SIGPIPE) from None
    finally:
        rich.close()
    if html is not None:
        from cachewright.tour.render_html import write_page

        try:
            write_page(result, html)
        except OSError as error:
            raise _not_writable(html, error) from error
        print(f"written: {html}", file=sys.stderr)
    raise typer.Exit(0 if result.ok else 1)


def _numbers(words: Iterable[str]) -> list[int]:
    """``3,4`` and ``3`` of ``--only``."""
    numbers = []
    for word in words:
        for part in word.split(","):
            if not part.strip().isdecimal():
                raise ConfigurationError(f"--only {word}: expected the numbers of scenes, such as 3 or 3,4")
            numbers.append(int(part))
    return numbers


def _check_writable(path: Path) -> None:
    """Opens it before the tour, which nobody wants to play for nothing; leaves no file that was not there."""
    existed = path.exists()
    try:
        path.open("ab").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise _not_writable(path, error) from error


def _not_writable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"--html {path}: cannot be written ({error.strerror}): name a file in a folder that can"
    )


class _Stop:
    """The handler of a signal that ends the tour. What it raises is lost where Python was just collecting garbage."""

    def __init__(self) -> None:
        self._came = False

    def __call__(self, _signal: int, _frame: FrameType | None) -> NoReturn:
        self._came = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raises what was lost."""
        if self._came:
            raise KeyboardInterrupt
