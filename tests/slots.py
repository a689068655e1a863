"""Slots as tests make them: an entry, a lease, write intents; and one call of the core on either runtime."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from cachewright.core.slot import NEVER, Intent, Lease, Slot, StoredEntry
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS

ID = THREADS.new_id


def now_ms() -> int:
    return int(time.time() * 1000)


def entry(payload: bytes = b"value", life: int | None = 60_000) -> StoredEntry:
    now = now_ms()
    ends = NEVER if life is None else now + life
    return StoredEntry(payload, now, ends, ends, ends)


def slot(payload: bytes = b"value", life: int | None = 60_000) -> Slot:
    return Slot(ID(), entry=entry(payload, life))


def lease(life: int = 5000) -> Slot:
    return Slot(ID(), lease=Lease(ID(), now_ms() + life, life))


def intents(n: int = 1) -> Slot:
    return Slot(ID(), intents=tuple(Intent(ID(), now_ms() + 30_000) for _ in range(n)), contended=n > 1)


def run(rt: Any, coroutine: Any) -> Any:
    """Its result, whichever runtime it is for."""
    if rt is THREADS:
        return drive(coroutine)

    async def main() -> Any:
        return await coroutine

    return asyncio.run(main())
