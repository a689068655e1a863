"""A process that writes through, saves at the origin, and then waits to be killed before its commit.

Arguments: the origin's file, the namespace, the tiers' URLs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from cachewright import Cache
from cachewright.core import intents

intents.INTENT_SECONDS = 1.0


def main() -> None:
    origin, namespace, *urls = sys.argv[1:]

    def save(id: int, value: str) -> None:
        Path(origin).write_text(value)
        print("saved", flush=True)
        time.sleep(60)

    def load(id: int) -> str:
        return Path(origin).read_text()

    Cache(*urls, namespace=namespace).repository("u", load=load, save=save).put(1, "after")


main()
