"""The command line; it needs the extra ``cli``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """What ``cachewright`` and ``python -m cachewright`` run."""
    from cachewright.errors import ConfigurationError, MissingExtraError

    try:
        import rich  # noqa: F401  # looked for here, so that the message below is the only one
        import typer  # noqa: F401
    except ImportError:
        print(MissingExtraError("the command line", "cli"), file=sys.stderr)
        raise SystemExit(2) from None
    from cachewright.cli.app import app

    try:
        app()
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
