"""Memcached as a textbook uses it: set, get and delete of text, over one socket."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

__all__ = ["PlainMemcached"]


class PlainMemcached:
    """A client of one server.

    Args:
        url: ``memcached://host:port``; of several servers, the first is used.
    """

    def __init__(self, url: str) -> None:
        host, _, port = urlsplit(url).netloc.partition(",")[0].rpartition(":")
        self._socket = socket.create_connection((host, int(port)), 2.0)
        self._stream = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._socket.close()

    def get(self, key: str) -> str | None:
        """The text, or None."""
        self._socket.sendall(f"get {key}\r\n".encode())
        line = self._stream.readline()
        if not line.startswith(b"VALUE"):
            return None
        text = self._stream.read(int(line.split()[3]) + 2)[:-2]
        self._stream.readline()
        return text.decode()

    def set(self, key: str, text: str, ex: int = 0) -> None:
        """Stores it; for ever where ``ex`` is 0."""
        data = text.encode()
        self._socket.sendall(f"set {key} 0 {ex} {len(data)}\r\n".encode() + data + b"\r\n")
        self._stream.readline()

    def delete(self, key: str) -> None:
        """Deletes it."""
        self._socket.sendall(f"delete {key}\r\n".encode())
        self._stream.readline()

    def version(self) -> str:
        """The server's."""
        self._socket.sendall(b"version\r\n")
        return self._stream.readline().split()[1].decode()
