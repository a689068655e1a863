"""Hostile bytes in a write-behind buffer: nothing of it runs, nothing of it reaches a saver, and the error says why."""

from __future__ import annotations

import contextlib
import pickle
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cachewright import Cache, WriteBehind
from cachewright.behind.buffers import open_buffer
from cachewright.errors import BufferUnavailable, DecodeError, FlushTimeout
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS

ran: list[str] = []


def explode() -> None:
    ran.append("a planted pickle was loaded")


class Boom:
    """To unpickle it is the attack."""

    def __reduce__(self) -> Any:
        return explode, ()


class Yard:
    """A cache, a repository that writes behind, and its buffer's file."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.file = folder / "buffer.db"
        self.saved: list[tuple[int, Any]] = []
        self.cache = Cache("memory://", namespace="shop", **options)
        behind = WriteBehind(
            buffer=f"sqlite:///{self.file}", delay=60, max_attempts=1, backoff=0.01, settle=0
        )
        self.buffer = open_buffer(f"sqlite:///{self.file}", "shop/user")
        self.users: Any = self.cache.repository(
            "user",
            load=lambda user_id: "from the origin",
            save=lambda user_id, value: self.saved.append((user_id, value)),
            writes=behind,
        )

    def change(self, statement: str, *values: Any) -> None:
        with contextlib.closing(sqlite3.connect(self.file)) as db, db:
            assert db.execute(statement, values).rowcount == 1


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Callable[..., Yard]]:
    made: list[Yard] = []

    def make(**options: Any) -> Yard:
        made.append(Yard(tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        try:
            one.cache.close(timeout=0.2)
        except (FlushTimeout, BufferUnavailable):
            continue


SIGNING: dict[str, Any] = {"codec": "pickle", "pickle_keys": b"k" * 32}


@pytest.mark.parametrize(
    ("options", "codec", "says"),
    [
        ({}, 3, "codec 3 is not read here"),
        ({}, 1, "msgpack bytes cannot be read"),
        ({}, 2, "json bytes cannot be read"),
        (SIGNING, 3, "no valid signature for this key and namespace; not unpickled"),
        ({"encryption_keys": b"a" * 32}, 1, "not encrypted is refused where encryption is configured"),
    ],
)
def test_a_planted_pickle_never_runs(yard: Callable[..., Yard], options: Any, codec: int, says: str) -> None:
    here = yard(**options)
    ran.clear()
    here.users.put(1, {"honest": True})
    payload = pickle.dumps(Boom())
    here.change("UPDATE record SET payload = ?, codec = ?, codec_flags = 0", payload, codec)
    # The newest state is not known, and an older one must not be served in its place.
    with pytest.raises(DecodeError, match=says):
        here.users.get(1)
    with pytest.raises(FlushTimeout, match="given up and are dead letters now"):
        here.users.flush(5)
    assert here.saved == []
    assert ran == []
    (letter,) = drive(here.buffer.records(THREADS, dead=True))
    assert letter.last_error is not None
    assert letter.last_error.startswith("DecodeError: ")
    assert says in letter.last_error


def test_a_signed_state_moved_to_another_key_is_refused(yard: Callable[..., Yard]) -> None:
    here = yard(**SIGNING)
    here.users.put(1, "mine")
    here.users.put(2, "yours")
    here.change(
        "UPDATE record SET payload = (SELECT payload FROM record WHERE key LIKE '%1') WHERE key LIKE '%2'"
    )
    with pytest.raises(DecodeError, match="no valid signature for this key"):
        here.users.get(2)
    assert here.users.get(1) == "mine"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("key", b"\xff\xfe"), ("id", "text"), ("state", 7), ("state", "x"), ("payload", "text"), ("codec", b"1"),
        ("sequence", "soon"), ("tries", None), ("not_before", "now"), ("last_error", b"\0"), ("suspect", "yes"),
    ],
)  # fmt: skip
def test_a_row_of_wrong_types_is_named_and_nothing_is_accepted(
    yard: Callable[..., Yard], column: str, value: Any
) -> None:
    here = yard()
    here.users.put(1, "v")
    try:
        here.change(f"UPDATE record SET {column} = ?", value)
    except sqlite3.IntegrityError:  # the schema itself refuses it
        return
    with pytest.raises(BufferUnavailable, match="damaged record"):
        drive(here.buffer.stats(THREADS))
        drive(here.buffer.next_due(THREADS))
        drive(here.buffer.records(THREADS))
        drive(here.buffer.claim(THREADS, 1, b"a token", 5.0, hurry=True))
    assert here.saved == []


def test_a_name_with_a_path_in_it_stays_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("CACHEWRIGHT_BUFFER", raising=False)
    with Cache("memory://", namespace="..") as cache:
        saved: list[int] = []
        repo = cache.repository(
            "../../etc/x",
            load=str,
            save=lambda user_id, value: saved.append(user_id),
            writes=WriteBehind(delay=60),
        )
        repo.put(1, "v")
        repo.flush(5)
    assert saved == [1]
    (found,) = (path.relative_to(tmp_path) for path in tmp_path.rglob("*.db"))
    assert found.parts[:2] == ("cachewright", "%2E%2E")
    assert len(found.parts) == 3
