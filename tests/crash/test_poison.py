"""One record among many that cannot be saved: it delays itself alone, is kept with its error, and is saved once it can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cachewright import Cache, FlushTimeout, Repository, Write, WriteBehind
from cachewright.behind.flusher import find_flusher
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS
from cachewright.testing.servers import RedisServer

MANY, BATCH, ATTEMPTS = 10_000, 100, 4
POISON = 4321


@dataclass
class Database:
    """Refuses one row, and with it whatever it comes with."""

    broken: bool = True
    rows: dict[int, str] = field(default_factory=dict)
    batches: list[list[int]] = field(default_factory=list)
    singles: list[int] = field(default_factory=list)

    def _check(self, ids: Sequence[int]) -> None:
        if self.broken and POISON in ids:
            raise ValueError(f"row {POISON} violates a constraint")

    def load(self, id: int) -> str:
        return self.rows.get(id, "")

    def save_many(self, writes: Sequence[Write]) -> None:
        self.batches.append([write.id for write in writes])
        self._check(self.batches[-1])
        self.rows.update((write.id, write.value) for write in writes)

    def save(self, id: int, value: str) -> None:
        self.singles.append(id)
        self._check([id])
        self.rows[id] = value


@pytest.fixture(params=["sqlite", "redis"])
def buffer(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a buffer."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/buffer.db"
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.url


@pytest.fixture
def make_items(namespace: str, buffer: str) -> Iterator[Callable[..., Repository[int, str]]]:
    """A repository that flushes only when it is told to."""
    cache = Cache(namespace=namespace)

    def make(database: Database, ordered_saver: bool) -> Repository[int, str]:
        how = WriteBehind(
            buffer=buffer, flusher="none", batch_size=BATCH, max_attempts=ATTEMPTS, backoff=0.05, backoff_max=0.05,
            settle=0.05,
        )  # fmt: skip
        return cache.repository(
            "item", database.load, database.save, save_many=database.save_many,
            writes=how, ordered_saver=ordered_saver,
        )  # fmt: skip

    yield make
    cache.close()


@pytest.mark.parametrize("ordered_saver", [False, True], ids=["plain", "ordered"])
def test_a_poison_record_among_ten_thousand(
    make_items: Callable[..., Repository[int, str]], namespace: str, ordered_saver: bool
) -> None:
    database = Database()
    items = make_items(database, ordered_saver)
    items.put_many({id: f"v{id}" for id in range(MANY)})
    flusher = find_flusher(namespace, "item")
    assert flusher is not None

    # As many rounds as there would be without it, and it is the only one that is left.
    for _ in range(MANY // BATCH):
        assert drive(flusher.step(THREADS)) == BATCH
    assert database.rows.keys() == set(range(MANY)) - {POISON}
    assert len(database.batches) == MANY // BATCH
    assert len(database.singles) == BATCH, "those of its batch, each alone"

    with pytest.raises(FlushTimeout, match="violates a constraint") as raised:
        items.flush(60)
    assert raised.value.dirty == [items.key_for(POISON)]
    (letter,) = items.dead_letters()
    assert (letter.id, letter.attempts) == (POISON, ATTEMPTS)
    assert letter.error == f"ValueError: row {POISON} violates a constraint"
    assert items.dirty() == []
    assert database.singles.count(POISON) == ATTEMPTS, "and it took nobody with it again"
    # An unordered saver's neighbours were in a save of unknown outcome, so each is saved once more, and no more.
    again = [id for batch in database.batches[MANY // BATCH :] for id in batch] + database.singles[BATCH:]
    assert len([id for id in again if id != POISON]) == (0 if ordered_saver else BATCH - 1)
    assert items.get(POISON) == f"v{POISON}", "reads go on seeing what was acknowledged"

    database.broken = False
    items.replay(POISON)
    items.flush(60)
    assert database.rows == {id: f"v{id}" for id in range(MANY)}
    assert items.dead_letters() == []
