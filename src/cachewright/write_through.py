"""Write-through and write-around: the save happens before the call returns, between an intent and its commit.

Write-through stores the saved value, write-around leaves the key empty for the next read. Either way the order is
intent, save, commit (`core.write`), so a failed save leaves no value that never existed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cachewright.behind.saving import Savers
from cachewright.behind.types import Write
from cachewright.core.engine import Engine
from cachewright.options import Options
from cachewright.runtime.base import Runtime
from cachewright.write_modes import Origin

__all__ = ["SavingNow"]


class SavingNow:
    """How a repository writes when it saves before it returns."""

    behind = None  # nothing of it ever waits

    def __init__(
        self,
        engine: Engine,
        origin: Origin,
        implicit: tuple[str, ...],
        not_saved: Sequence[type[Exception]],
        *,
        keep: bool,
    ) -> None:
        self.savers = Savers(
            save=origin.save,
            save_many=origin.save_many,
            delete=origin.delete,
            delete_many=origin.delete_many,
            not_saved=not_saved,
        )
        self._engine, self._implicit, self._keep = engine, implicit, keep
        self._many = origin.save_many is not None
        self._sequence = itertools.count(
            int(time.time() * 1e6)
        )  # for savers that keep one; grows in this process

    async def write(self, rt: Runtime, values: Mapping[str, tuple[Any, Any]], options: Options) -> None:
        """Saves ``key → (id, value)``: by the saver for many in one call, else one by one."""
        if self._many and len(values) > 1:
            await self._save(rt, values, options)
            return
        for key, pair in values.items():
            await self._save(rt, {key: pair}, options)

    async def _save(self, rt: Runtime, values: Mapping[str, tuple[Any, Any]], options: Options) -> None:
        writes = [Write(id, value, next(self._sequence), 1) for id, value in values.values()]

        async def save() -> None:
            await self.savers.save_now(rt, writes)

        await self._engine.write(
            rt,
            {key: value for key, (_, value) in values.items()},
            save,
            options,
            implicit=self._implicit,
            not_saved=self.savers.certain,
            keep=self._keep,
        )

    async def pending(self, rt: Runtime, keys: list[str]) -> dict[str, Any]:
        """Nothing ever waits to be saved."""
        return {}

    async def flush(self, rt: Runtime, timeout: float | None) -> None:
        """Nothing to do."""

    async def close(self, rt: Runtime, timeout: float | None) -> None:
        """Nothing to do."""
