"""SQLite files, of the tier and of write-behind's buffer, where others could put theirs in their place: refused.

Further rules of either stand in tests/unit/test_sqlite_tier.py and tests/unit/test_buffer_file.py.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cachewright.behind.buffers import open_buffer
from cachewright.behind.buffers.base import NewRecord
from cachewright.core.slot import NEVER, Slot, StoredEntry
from cachewright.errors import ConfigurationError
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS
from cachewright.tiers.sqlite import SqliteTier


def use_tier(path: Path) -> None:
    tier = SqliteTier(path=path, namespace="shop")
    try:
        entry = StoredEntry(b"\x01", 0, NEVER, NEVER, NEVER, 0, 1)
        assert drive(tier.store(THREADS, {"a": Slot(THREADS.new_id(), entry)})) == [True]
        assert list(drive(tier.read(THREADS, ["a"]))[0]) == ["a"]
    finally:
        tier.close()


def use_buffer(path: Path) -> None:
    buffer = open_buffer(f"sqlite:///{path}", "shop/user")
    try:
        drive(buffer.append(THREADS, [NewRecord("a", b"\x01", b"\x01")]))
    finally:
        buffer.close()


both = pytest.mark.parametrize("use", [use_tier, use_buffer])
Use = Callable[[Path], None]


@both
@pytest.mark.parametrize("to", ["a file", "nothing", "a folder", "itself"])
def test_a_symbolic_link_is_refused_and_what_it_points_to_left_alone(
    use: Use, tmp_path: Path, to: str
) -> None:
    target, link = tmp_path / "target", tmp_path / "link.db"
    if to == "a file":
        target.write_bytes(b"somebody's")
    elif to == "a folder":
        target.mkdir()
    link.symlink_to(link if to == "itself" else target)
    with pytest.raises(ConfigurationError, match=r"link\.db is a symbolic link: give the path of"):
        use(link)
    if to == "a file":
        assert target.read_bytes() == b"somebody's"
    assert target.exists() == (to in ("a file", "a folder"))


@both
@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_a_link_in_the_place_of_sqlites_own_files_is_refused(use: Use, tmp_path: Path, suffix: str) -> None:
    """SQLite itself would follow it and write into the file that it points to."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"somebody's")
    Path(f"{tmp_path / 'x.db'}{suffix}").symlink_to(victim)
    with pytest.raises(ConfigurationError, match=rf"x\.db{suffix}.* a symbolic link"):
        use(tmp_path / "x.db")
    assert victim.read_bytes() == b"somebody's"


@both
def test_a_folder_where_everybody_writes_is_refused(use: Use, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ConfigurationError, match=r"chmod o-w .*shared"):
        use(folder / "x.db")
    assert list(folder.iterdir()) == []


def test_a_buffer_wants_a_folder_of_its_own_even_where_the_sticky_bit_is_set(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(ConfigurationError, match="written by everyone"):
        use_buffer(tmp_path / "x.db")
    use_tier(tmp_path / "cache.db")  # a cache may lie in /tmp, as long as it is ours


@both
def test_a_file_that_everybody_may_write_is_refused(use: Use, tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    use(path)
    path.chmod(0o666)
    with pytest.raises(ConfigurationError, match=r"chmod 600 .*x\.db"):
        use(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_that_somebody_else_put_into_a_shared_folder_is_refused(tmp_path: Path) -> None:
    """As in /tmp: its owner could change what everybody reads from the cache."""
    use_tier(tmp_path / "cache.db")
    os.chown(tmp_path / "cache.db", 65534, 65534)
    use_tier(tmp_path / "cache.db")
    tmp_path.chmod(0o1777)
    with pytest.raises(ConfigurationError, match="belongs to somebody else"):
        use_tier(tmp_path / "cache.db")


@both
@pytest.mark.parametrize("what", ["a folder", "a FIFO"])
def test_what_is_no_file_is_refused(use: Use, tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.db"
    path.mkdir() if what == "a folder" else os.mkfifo(path)
    with pytest.raises(ConfigurationError, match="not a"):
        use(path)


@both
def test_what_is_made_is_its_owners_alone(use: Use, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        use(tmp_path / "made" / "x.db")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700
    for path in (tmp_path / "made").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_rows_of_wrong_types_in_a_cache_file_are_a_miss(tmp_path: Path) -> None:
    """SQLite checks no types: any program may put text where we put bytes."""
    from cachewright import Cache

    with Cache(f"sqlite:///{tmp_path}/cache.db", namespace="shop") as cache:
        cache.set("a", 1, tags=["users"])
        for change in (
            "UPDATE slots SET header = 'text'", "UPDATE slots SET header = 7", "UPDATE slots SET payload = 'text'",
            "UPDATE slots SET flags = 'text'", "UPDATE slots SET ends = 'text'",
            "UPDATE generations SET mark = 'text'", "UPDATE generations SET mark = x'00'",
            "UPDATE generations SET changed = 'text'",
        ):  # fmt: skip
            cache.set("a", 1, tags=["users"])
            with contextlib.closing(sqlite3.connect(tmp_path / "cache.db")) as db, db:
                assert db.execute(change).rowcount > 0
            assert cache.get("a") in (None, 1)
            assert cache.get_or_set("a", lambda: 2, tags=["users"]) in (1, 2)
            cache.inspect("a")
            cache.delete("a")
            assert cache.get("a") is None
            assert cache.get_or_set("a", lambda: 3, tags=["users"]) == 3
            assert cache.get("a") == 3
