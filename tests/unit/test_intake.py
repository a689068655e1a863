"""The way into a full buffer, and out of it: a caller that is cancelled there leaves nothing behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cachewright import Cache, WriteBehind
from cachewright.behind.buffers.sqlite import SQLiteBuffer


def test_who_is_cancelled_while_he_takes_hold_of_a_key_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SQLiteBuffer.hold
    placed = asyncio.Event()

    async def hold(self: SQLiteBuffer, *args: Any) -> int | None:
        sequence = await real(self, *args)
        if not placed.is_set():
            placed.set()
            await asyncio.sleep(3600)  # the answer never comes
        return sequence

    async def work() -> None:
        gate, saved = asyncio.Event(), list[tuple[str, int]]()

        async def save(id: str, value: int) -> None:
            if id == "first":
                await gate.wait()
            saved.append((id, value))

        async def load(id: str) -> int | None:
            return None

        how = WriteBehind(
            buffer=f"sqlite:///{tmp_path}/x.db", max_dirty=1, on_full="through", full_timeout=0.5
        )
        async with Cache() as cache:
            repository = cache.repository("r", load, save=save, writes=how)
            await repository.aput("first", 0)
            caller = asyncio.create_task(repository.aput("k", 1))
            await placed.wait()
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            await repository.aput("k", 2)  # else: BufferFull, for an earlier save of it were under way
            assert saved == [("k", 2)]
            gate.set()
            await repository.aflush(timeout=30)

    monkeypatch.setattr(SQLiteBuffer, "hold", hold)
    asyncio.run(work())
