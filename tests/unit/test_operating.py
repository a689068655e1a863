"""Looking after a buffer by program: what waits, what was given up, replay, discard, figures; and repositories by name."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

import pytest

import cachewright
from cachewright import (
    Cache,
    CeleryFlusher,
    ConfigurationError,
    FlushTimeout,
    NotDirtyError,
    NotSaved,
    WriteBehind,
)
from cachewright.behind.buffers import open_buffer
from cachewright.behind.buffers.base import BufferStats
from cachewright.behind.buffers.sqlite import SQLiteBuffer
from cachewright.behind.operating import hosted, safe_text
from cachewright.behind.worker import Worker
from cachewright.errors import BufferUnavailable
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS


class Shop:
    """A cache over memory, a repository that writes behind, and an origin that can be told to refuse."""

    def __init__(self, folder, **behind) -> None:
        self.origin: dict[object, object] = {}
        self.refuses: set[object] = set()
        self.cache = Cache(namespace="shop")
        self.buffer = f"sqlite:///{folder}/buffer.db"
        behind = {"flusher": "none", "max_attempts": 1, "buffer": self.buffer, **behind}
        self.users: Any = self.cache.repository(
            "user", self.origin.get, self.save, self.delete, writes=WriteBehind(**behind)
        )

    def save(self, id, value):
        if id in self.refuses:
            raise NotSaved(f"no room for {id}")
        self.origin[id] = value

    def delete(self, id):
        self.origin.pop(id, None)

    def die(self, *ids):
        """Makes dead letters."""
        self.refuses.update(ids)
        for id in ids:
            self.users.put(id, f"value {id}")
        with pytest.raises(FlushTimeout):
            self.users.flush(5)


@pytest.fixture
def shop(tmp_path):
    made = []

    def make(**behind):
        made.append(Shop(tmp_path, **behind))
        return made[-1]

    yield make
    for one in made:
        one.users.behind.flusher.where = "worker"  # what a test left dirty is not to be saved
        one.cache.close()


def test_what_is_dirty_is_listed_oldest_first(shop):
    users = shop(delay=60).users
    assert users.dirty() == []
    before = time.time()
    users.put(1, "one")
    users.put("x", "two")
    users.delete(1)
    first, second = users.dirty()
    assert (first.id, first.key, first.state, first.deleted) == (1, "user:1", "dirty", True)
    assert (second.id, second.key, second.state, second.deleted) == ("x", "user:x", "dirty", False)
    assert first.sequence > second.sequence > 0
    assert before - 1 < first.first_dirty <= second.first_dirty < time.time() + 1
    assert second.next_try == pytest.approx(second.first_dirty + 60, abs=1)
    assert (first.attempts, first.error, first.claimed_by) == (0, None, None)
    assert second.size > len("two")
    assert users.dirty(limit=1) == [first]
    assert users.dead_letters() == []


def test_a_claimed_write_names_its_holder(shop):
    users = shop().users
    users.put(1, "one")
    seen = []
    users.behind.flusher.savers._save = lambda _, value: seen.extend(users.dirty())
    users.flush(5)
    assert [(one.state, one.next_try) for one in seen] == [("claimed", None)]
    assert f"/{os.getpid()}/" in seen[0].claimed_by


def test_a_dead_letter_is_listed_replayed_and_saved(shop):
    desk = shop()
    desk.die(1, 2)
    assert desk.users.dirty() == []
    first, second = desk.users.dead_letters()
    assert (first.id, first.state, first.attempts, first.next_try) == (1, "dead", 1, None)
    assert first.error == "NotSaved: no room for 1"
    desk.refuses.clear()
    desk.users.replay(1)
    assert [one.id for one in desk.users.dead_letters()] == [second.id]
    assert [(one.id, one.attempts) for one in desk.users.dirty()] == [(1, 0)]
    desk.users.flush(5)
    assert desk.origin == {1: "value 1"}


def test_a_replayed_dead_letter_starts_the_background_flusher(shop):
    desk = shop(flusher="background")
    desk.refuses.add(1)
    desk.users.put(1, "one")
    deadline = time.monotonic() + 20
    while not desk.users.dead_letters():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    desk.users.close()  # its flusher ends, so that only replay can start it
    desk.refuses.clear()
    desk.users.replay(1)
    while not desk.origin:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert desk.origin == {1: "one"}


def test_a_discarded_dead_letter_is_gone_from_every_tier(shop):
    desk = shop()
    desk.origin[1] = "old"
    desk.die(1)
    assert desk.users.get(1) == "value 1", "reads see what waits, a dead letter too"
    gone = desk.users.discard(1)
    assert (gone.id, gone.state, gone.error) == (1, "dead", "NotSaved: no room for 1")
    assert desk.users.get(1) == "old"
    assert desk.users.dead_letters() == []


def test_what_is_no_dead_letter_is_neither_replayed_nor_discarded(shop):
    users = shop(delay=60).users
    for act in (users.replay, users.discard):
        with pytest.raises(NotDirtyError, match="no dead letter of the key 'user:7'"):
            act(7)
    users.put(7, "dirty")
    for act in (users.replay, users.discard):
        with pytest.raises(NotDirtyError):
            act(7)
    assert [one.id for one in users.dirty()] == [7]


def test_twins(shop):
    desk = shop()
    desk.die(1, 2)
    asyncio.run(_twins(desk))


async def _twins(desk):
    users = desk.users
    assert await users.adead_letters() == users.dead_letters()
    await users.areplay(1)
    assert await users.adirty() == users.dirty() != []
    assert (await users.adiscard(2)).id == 2
    assert (await users.abehind_stats()).buffer.dirty == 1
    assert (await desk.cache.astats())["write_behind"]["user"]["dirty"] == 1


def test_figures(shop):
    desk = shop()
    assert desk.cache.stats()["write_behind"]["user"]["dirty"] == 0
    desk.users.put(3, "three")
    desk.users.flush(5)
    desk.die(1)
    desk.users.put(2, "two")
    desk.users.delete(4)
    stats = desk.users.behind_stats()
    assert isinstance(stats, cachewright.FlusherStats)
    assert isinstance(stats.buffer, cachewright.BufferStats)
    assert (stats.buffer.dirty, stats.buffer.dead) == (2, 1)
    assert (stats.saved, stats.failed, stats.dead_letters) == (1, 1, 1)
    found = desk.cache.stats()["write_behind"]["user"]
    assert found.pop("bytes") == stats.buffer.bytes > 0
    assert 0 <= found.pop("lag") < 60
    assert found == {
        "flusher": "none", "buffer": desk.buffer, "dirty": 2, "settling": 0, "dead": 1,
        "saved": 1, "failed": 1, "dead_letters": 1,
    }  # fmt: skip


class Away(SQLiteBuffer):
    """A buffer that hangs until it is let go, then fails."""

    exists = True

    def __init__(self, folder) -> None:
        super().__init__(folder / "never.db", "shop/user")
        self.url = "redis://user:secret@buffer.example:6379/0"
        self.gate = threading.Event()
        self.asked = 0

    async def stats(self, rt) -> BufferStats:
        self.asked += 1
        self.gate.wait(30)
        raise BufferUnavailable("no way to redis://user:secret@buffer.example:6379/0 now")

    def close(self) -> None:
        self.gate.set()


def test_a_buffer_that_is_away_holds_up_no_figures(tmp_path):
    away = Away(tmp_path)
    with Cache() as cache:
        users: Any = cache.repository(
            "user", str, lambda _, value: None, writes=WriteBehind(buffer=away, flusher="worker")
        )
        cache.repository("order", str, lambda _, value: None)
        for _ in range(2):
            found = cache.stats()["write_behind"]
            assert found["user"] == {
                "flusher": "worker",
                "buffer": "redis://buffer.example:6379/0",
                "error": "the buffer did not answer within 0.5 s",
            }
            assert list(found) == ["user"], "only what writes behind"
        assert away.asked == 1, "one question at a time"
        away.gate.set()
        users.behind.begin_look().done.wait(20)
        error = cache.stats()["write_behind"]["user"]["error"]
        assert error == "BufferUnavailable: no way to redis://buffer.example:6379/0 now"


def test_who_does_not_write_behind_is_told_so():
    with Cache() as cache:
        users: Any = cache.repository("user", str, lambda _, value: None)
        for act in (users.dirty, users.dead_letters, users.behind_stats):
            with pytest.raises(ConfigurationError, match=r"'user' saves before put returns.*WriteBehind"):
                act()
        for act in (users.replay, users.discard):
            with pytest.raises(ConfigurationError, match="WriteBehind"):
                act("1")


@pytest.mark.parametrize("limit", [0, -1, True, 2.5, "3"])
def test_a_limit_is_a_number(shop, limit):
    with pytest.raises(ConfigurationError, match="limit="):
        shop().users.dirty(limit)


def test_repositories_by_name(tmp_path, shop):
    desk = shop()
    orders = desk.cache.repository("order", str)
    assert dict(desk.cache.repositories) == {"user": desk.users, "order": orders}
    with pytest.raises(TypeError):
        desk.cache.repositories["x"] = orders
    again = desk.cache.repository(
        "user", str, desk.save, writes=WriteBehind(buffer=desk.buffer, flusher="none")
    )
    assert desk.cache.repositories["user"] is again
    desk.users.put(1, "one")
    assert again.get(1) == "one", "both read the one buffer"
    again.flush(5)
    assert desk.origin == {1: "one"}


def test_one_name_has_one_buffer(tmp_path, shop):
    desk = shop()
    with pytest.raises(ConfigurationError, match=r"'user'.*through sqlite.*buffer\.db.*other\.db"):
        desk.cache.repository(
            "user", str, desk.save, writes=WriteBehind(buffer=f"sqlite:///{tmp_path}/other.db")
        )
    with pytest.raises(ConfigurationError, match=r"'user' that writes behind.*would pass what waits"):
        desk.cache.repository("user", str, desk.save)
    assert desk.cache.repositories["user"] is desk.users


def test_a_host_flushes_nothing_by_itself(tmp_path, shop):
    desk = shop(flusher="worker")
    desk.users.put(1, "one")
    with hosted():
        host = Shop(tmp_path, flusher="background")
    assert (host.users.behind.kind, host.users.behind.flusher.where) == ("background", "worker")
    host.users.put(2, "two")
    assert not host.users.behind.flusher.is_running()
    host.cache.close()
    buffer = open_buffer(desk.buffer, "shop/user")
    assert drive(buffer.stats(THREADS)).dirty == 2
    assert host.origin == {}
    buffer.close()


def test_a_host_asks_no_broker(tmp_path):
    flusher = CeleryFlusher(queue="never-made")  # its broker is named nowhere
    with hosted(), Cache() as cache:
        how = WriteBehind(buffer=f"sqlite:///{tmp_path}/buffer.db", flusher=flusher)
        users: Any = cache.repository("user", str, lambda _, value: None, writes=how)
        assert (users.behind.kind, users.behind.flusher.where) == ("celery", "worker")
        users.put(1, "one")


def test_draining_ends_though_others_go_on_writing(tmp_path):
    saved = []

    def save(n, value):
        saved.append(n)
        users.put(n + 1, value)  # while it drains; a later worker's work

    with hosted(), Cache() as cache:
        how = WriteBehind(buffer=f"sqlite:///{tmp_path}/buffer.db", flusher="worker")
        users: Any = cache.repository("user", str, save, writes=how)
        users.put(0, "x")
        worker = Worker([users.behind])
        worker.start()
        worker.drain()
        ends = time.monotonic() + 60
        while not worker.wait(1):
            assert time.monotonic() < ends, "it saves what came later, and what came after that, …"
        assert (worker.crash, worker.left()) == (None, [])
        assert saved[0] == 0
        assert len(users.dirty()) == 1


def test_text_for_people():
    assert safe_text("no redis://u:p@h:1/0?x=p here\n\x1b[31m ü") == r"no redis://h:1/0 here\n\x1b[31m ü"
