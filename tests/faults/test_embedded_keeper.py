"""``embedded:///folder`` whose keeper is killed: all who used its server find the next one, and it hears what it missed."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import psutil
import pytest

from cachewright import Cache
from cachewright.errors import TierUnavailable
from cachewright.runtime.base import drive
from cachewright.runtime.process import free_port, wait_until
from cachewright.runtime.threads import THREADS
from cachewright.tiers.base import Tier
from cachewright.tiers.embedded import EmbeddedServer
from cachewright.tiers.embedded_tier import EmbeddedTier, embedded_tier
from cachewright.tiers.redis import RedisTier

LONG = 20.0


def kill_keeper(folder: Path) -> None:
    """As the system does when memory runs out. The server goes with its keeper."""
    with EmbeddedServer(folder) as server:
        assert server.pid is not None
        process = psutil.Process(server.pid)
        keeper = process.parent()
    assert keeper is not None
    keeper.kill()
    assert wait_until(
        lambda: not any(one.is_running() and one.status() != "zombie" for one in (process, keeper)), LONG
    )


def serves(cache: Cache) -> bool:
    cache.set("probe", 1)
    return cache.get("probe") == 1


def test_users_of_a_killed_keeper_start_one_server_between_them(tmp_path: Path) -> None:
    tiers = [embedded_tier(str(tmp_path), "shop") for _ in range(2)]
    with Cache(tiers[0], namespace="shop") as one, Cache(tiers[1], namespace="shop") as other:
        one.set("k", "old")
        assert other.get("k") == "old"
        kill_keeper(tmp_path)
        one.delete("k")  # reaches nobody: remembered
        assert wait_until(lambda: serves(one), LONG)
        assert wait_until(lambda: serves(other), LONG)
        assert [other.get("k"), one.get("k")] == [None, None]
        one.set("k", "new")
        assert other.get("k") == "new"
        assert len({tier.url for tier in tiers if isinstance(tier, EmbeddedTier)}) == 1


def test_what_was_dropped_meanwhile_is_dropped_in_a_server_that_somebody_else_started(tmp_path: Path) -> None:
    with Cache(f"embedded://{tmp_path}", namespace="shop") as one:
        one.set("k", "old")
        kill_keeper(tmp_path)
        with Cache(f"embedded://{tmp_path}", namespace="shop") as late:
            assert late.get("k") == "old"  # it starts a server, whose data survived
            one.delete("k")  # at the old address; and then it goes quiet
            assert wait_until(lambda: late.get("k") is None, LONG)
            late.set("k", "new")
            assert wait_until(lambda: one.get("k") == "new", LONG)


def test_a_server_that_only_hangs_is_not_replaced(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        url, pid = server.url, server.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            assert server.find() is None
        finally:
            os.kill(pid, signal.SIGCONT)
        assert server.find() == url
        assert server.pid == pid
    assert server.find() is None


class Nowhere:
    """In the place of a server: an address where nobody listens, and a look for another that takes its time."""

    def __init__(self) -> None:
        self.url = f"redis://127.0.0.1:{free_port()}"
        self.looks = 0
        self.looking, self.go_on = threading.Event(), threading.Event()
        self.connected: list[str] = []

    def start(self) -> None: ...

    def find(self) -> str | None:
        self.looks += 1
        self.looking.set()
        assert self.go_on.wait(LONG)
        return f"redis://127.0.0.1:{free_port()}"

    def connect(self, url: str) -> Tier:
        self.connected.append(url)
        return RedisTier(host="127.0.0.1", port=int(url.rpartition(":")[2]), namespace="shop", timeout=0.5)


@pytest.mark.parametrize("closed", [False, True])
def test_nobody_waits_for_a_look_and_what_it_finds_after_a_close_is_left_alone(closed: bool) -> None:
    server = Nowhere()
    tier = EmbeddedTier("embedded", "shop", server, lambda: None, server.connect, server.find)
    try:
        for _ in range(20):
            with pytest.raises(TierUnavailable):
                drive(tier.drop(THREADS, ["k"]))
        assert server.looking.wait(LONG)
        assert server.looks == 1
        if closed:
            tier.close()
        server.go_on.set()
        assert wait_until(lambda: all(one.name != "cachewright-find" for one in threading.enumerate()), LONG)
        assert len(server.connected) == (1 if closed else 2)
        assert (tier.url is None) == closed
    finally:
        server.go_on.set()
        tier.close()
