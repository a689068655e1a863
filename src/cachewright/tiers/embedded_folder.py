"""The folder of a shared embedded server: its owner's alone, and the locks in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from cachewright.errors import ConfigurationError, TierUnavailable

__all__ = ["locked", "open_lock", "private_folder"]


def private_folder(base: Path) -> None:
    """Make it, or make sure that nobody else has put it there or may do so later.

    Raises:
        ConfigurationError: it is a link or no folder, belongs to somebody else, or everybody may write here.
        TierUnavailable: it cannot be made.
    """
    try:
        base.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        parent = base.parent.stat().st_mode
        if parent & stat.S_IWOTH and not parent & stat.S_ISVTX:
            raise ConfigurationError(
                f"everybody may replace files in {base.parent}, so the cache in it could be forged: "
                f"chmod o-w {base.parent}, or use another folder"
            )
        with contextlib.suppress(FileExistsError):  # what is there is looked at next
            base.mkdir(mode=0o700)
        found = base.lstat()  # not what a link points to: that would be given our mode and our files
        _check(base, found)
        if found.st_mode & 0o077:
            # Nobody can have put a link there meanwhile: the folder above is not everybody's, or sticky.
            base.chmod(0o700)
    except OSError as error:
        raise TierUnavailable("embedded", f"{base} cannot be made: {error.strerror}") from error


def _check(base: Path, found: os.stat_result) -> None:
    if not stat.S_ISDIR(found.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a folder"
        raise ConfigurationError(
            f"{base} is {what}, and the embedded server keeps its data there: remove it, or use another folder"
        )
    if found.st_uid != os.geteuid():
        raise ConfigurationError(f"{base} belongs to another user: use a folder of your own")
    if found.st_mode & stat.S_IWOTH:
        raise ConfigurationError(
            f"everybody may write to {base}, so the cache in it could be forged: remove it, or chmod 700 {base} "
            "if all in it is yours"
        )


def open_lock(path: Path) -> int:
    """Open a file to lock; the lock is free when all copies of the descriptor are closed."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


@contextlib.contextmanager
def locked(path: Path, deadline: float) -> Iterator[None]:
    """Hold the exclusive lock, waited for until ``deadline`` in monotonic seconds; `TierUnavailable` after it."""
    descriptor = open_lock(path)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TierUnavailable(
                        "embedded", f"another process holds {path} and does not go on"
                    ) from None
                time.sleep(0.01)
        yield
    finally:
        # Not by closing alone: a process forked meanwhile would keep the lock through its copy of the descriptor.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
