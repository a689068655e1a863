"""A buffer's file after its close: what was asked for before and runs after it leaves nothing open."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cachewright import Cache, FlushTimeout, WriteBehind
from cachewright.behind.buffers import open_buffer
from cachewright.behind.buffers.base import Buffer, NewRecord
from cachewright.runtime.base import drive
from cachewright.runtime.process import wait_until
from cachewright.runtime.threads import THREADS, ThreadRuntime


def append(buffer: Buffer, key: str) -> None:
    drive(buffer.append(THREADS, [NewRecord(key, key.encode(), b"v")]))


class LateThreads(ThreadRuntime):
    """As a loop that ends in the middle of a call: what it handed to a thread runs after the close."""

    def __init__(self, buffer: Any) -> None:
        super().__init__()
        self.buffer = buffer

    async def offload(self, function: Callable[..., Any], *args: Any) -> Any:
        self.buffer.close()
        return function(*args)


def test_a_read_that_was_asked_for_before_a_close_leaves_no_file_open(tmp_path: Path) -> None:
    buffer: Any = open_buffer(f"sqlite:///{tmp_path}/x.db", "s")
    append(buffer, "a")
    assert drive(buffer.stats(LateThreads(buffer))).dirty == 1
    assert not open_files(tmp_path)


def test_a_write_that_was_asked_for_before_a_close_leaves_no_file_open(tmp_path: Path) -> None:
    buffer: Any = open_buffer(f"sqlite:///{tmp_path}/x.db", "s")
    append(buffer, "a")
    with buffer._file._turn:
        late = threading.Thread(target=append, args=(buffer, "b"))
        late.start()
        assert wait_until(lambda: len(buffer._file._queue) == 1, 10)
        closing_it = threading.Thread(target=buffer.close)
        closing_it.start()
    closing_it.join(10)
    late.join(10)
    assert wait_until(lambda: not open_files(tmp_path), 10)
    assert drive(buffer.stats(THREADS)).dirty == 2
    buffer.close()


def test_a_task_that_hangs_in_its_saver_gives_its_claim_back_before_the_file_is_closed(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        saving = asyncio.Event()

        def load(id: str) -> int | None:
            return None

        async def save(id: str, value: int) -> None:
            saving.set()
            await asyncio.sleep(3600)

        how = WriteBehind(buffer=f"sqlite:///{tmp_path}/x.db")
        repository = Cache().repository("r", load, save=save, writes=how)
        await repository.aput("1", 1)
        await saving.wait()
        with pytest.raises(FlushTimeout):
            await repository.aclose(timeout=0.05)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*left, return_exceptions=True)
        assert not open_files(tmp_path)

    asyncio.run(work())


def open_files(folder: Path) -> list[str]:
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return [
        path
        for link in links
        if os.path.lexists(link) and (path := os.readlink(link)).startswith(str(folder))
    ]
