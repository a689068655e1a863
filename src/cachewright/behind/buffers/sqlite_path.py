"""Where a buffer's file may lie: made for its owner alone, and never where others could put their own."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cachewright.errors import BufferUnavailable, ConfigurationError

__all__ = ["prepare_path"]


def prepare_path(path: Path) -> None:
    """Makes folder (0700) and file (0600), and refuses places where others could put their own file.

    Raises:
        ConfigurationError: a symbolic link, something that is not a file, or a folder or file that others may write.
        BufferUnavailable: the file system refused.
    """
    try:
        folder = path.parent
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & stat.S_IWOTH:
            raise ConfigurationError(
                f"the folder of the buffer {path} may be written by everyone: use one of your own (chmod o-w {folder})"
            )
        for suffix in ("-wal", "-shm", "-journal"):  # SQLite would follow a link there
            beside = path.with_name(path.name + suffix)
            if beside.is_symlink():
                raise ConfigurationError(f"{beside} beside the buffer is a symbolic link: remove it")
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            return
        except FileExistsError:
            found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a file"
            raise ConfigurationError(
                f"the buffer {path} is {kind}: give the path of a plain file, or of a new one"
            )
        if found.st_mode & stat.S_IWOTH:
            raise ConfigurationError(f"the buffer {path} may be written by everyone: chmod 600 {path}")
    except OSError as error:
        raise BufferUnavailable(f"the buffer {path} cannot be made: {error}") from error
