"""Another process that loads a key and, until it is told or killed, does not come to an end with it."""

from __future__ import annotations

import sys
from typing import Self

from benchmarks.conformance.model import Failed
from benchmarks.conformance.stage import Variant, ended

KEY = "held"


class Holder:
    """Use it in a ``with`` statement: the process loads `KEY` by the time that it begins, and is gone at its end.

    The scenario has ``parts={"holder": hold}``.
    """

    def __init__(self, variant: Variant) -> None:
        self._process = variant.stage.process("holder", [variant])

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "loading\n":
            raise Failed("the loading process ended early")
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def release(self) -> None:
        """Lets the load end."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def hold(variants: list[Variant]) -> None:
    def load(key: str) -> object:
        print("loading", flush=True)
        sys.stdin.readline()
        return "value"

    ended([variants[0].caller(load).get(KEY)], 60)
