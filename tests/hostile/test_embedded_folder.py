"""The folder of ``embedded:///folder`` where others could put theirs in its place: refused, and nothing touched."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cachewright.errors import ConfigurationError
from cachewright.tiers import embedded_folder
from cachewright.tiers.embedded import EmbeddedServer


def refused(folder: Path, match: str) -> None:
    server = EmbeddedServer(folder)
    try:
        with pytest.raises(ConfigurationError, match=match):
            server.start()
        assert server.pid is None
    finally:
        server.stop()


@pytest.mark.parametrize("to", ["a folder", "a file", "nothing", "itself"])
def test_a_link_is_refused_and_what_it_points_to_left_alone(tmp_path: Path, to: str) -> None:
    target, link = tmp_path / "target", tmp_path / "cachewright-valkey"
    if to == "a folder":
        target.mkdir()
        target.chmod(0o755)
    elif to == "a file":
        target.write_bytes(b"somebody's")
    link.symlink_to(link if to == "itself" else target)
    refused(tmp_path, r"cachewright-valkey is a symbolic link.*: remove it, or use another folder")
    if to == "a folder":
        assert stat.S_IMODE(target.stat().st_mode) == 0o755
        assert list(target.iterdir()) == []
    elif to == "a file":
        assert target.read_bytes() == b"somebody's"
    else:
        assert not target.exists()


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cachewright-valkey").write_bytes(b"somebody's")
    refused(tmp_path, "cachewright-valkey is not a folder")


@pytest.mark.parametrize("which", ["the folder given", "the one in it"])
def test_a_folder_that_everybody_may_write_is_refused(tmp_path: Path, which: str) -> None:
    given, inner = tmp_path / "given", tmp_path / "given" / "cachewright-valkey"
    inner.mkdir(parents=True)
    open_one = given if which == "the folder given" else inner
    open_one.chmod(0o777)
    refused(given, f"everybody may .* {open_one}, so the cache in it could be forged: .*chmod")
    assert stat.S_IMODE(open_one.stat().st_mode) == 0o777
    assert list(inner.iterdir()) == []


def test_a_sticky_folder_will_do_unless_somebody_else_was_there_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o1777)
    base = tmp_path / "cachewright-valkey"
    embedded_folder.private_folder(base)
    assert stat.S_IMODE(base.lstat().st_mode) == 0o700
    somebody_else = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody_else)
    refused(tmp_path, "cachewright-valkey belongs to another user: use a folder of your own")
