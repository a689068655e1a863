"""The commands."""

from __future__ import annotations

import enum
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from cachewright import __version__
from cachewright.tour.render_json import JsonListener
from cachewright.tour.render_plain import PlainListener
from cachewright.tour.render_rich import RichListener
from cachewright.tour.run import Listener, play_tour

__all__ = ["app"]

app = typer.Typer(
    help="Ten caching strategies for Python services.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
    only: Annotated[list[int] | None, typer.Option(help="Play this scene only; may be given again.")] = None,
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
    signal.signal(signal.SIGTERM, _end)
    console = Console()
    rich = RichListener(console)
    listener: Listener = JsonListener() if json else rich if console.is_terminal else PlainListener()
    given = {"redis": redis, "memcached": memcached, "cluster": cluster, "broker": broker}
    try:
        result = play_tour(listener, engine=engine.value, only=only or (), given=given, database=database)
    except KeyboardInterrupt:
        print("stopped; every server was stopped too", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        rich.close()
    if html is not None:
        from cachewright.tour.render_html import write_page

        write_page(result, html)
        print(f"written: {html}", file=sys.stderr)
    raise typer.Exit(0 if result.ok else 1)


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
