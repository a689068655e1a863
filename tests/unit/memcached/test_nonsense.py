"""Servers that lie: nothing of it is believed, and the connection is given up."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cachewright.errors import TierProtocolError, TierTimeout, TierUnavailable
from cachewright.runtime.threads import THREADS

ID = THREADS.new_id


# ----------------------------------------------------------------------------------------- lying servers


@contextlib.contextmanager
def lying(*answers: bytes, wait: bool = True) -> Iterator[int]:
    """A server that gives each connection one of the answers, whatever it is asked, and then says nothing more."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def serve() -> None:
        for answer in [*answers, *[b""] * 20]:
            try:
                conn, _ = listener.accept()
            except OSError:
                return
            held.append(conn)
            try:
                if wait:
                    conn.recv(65536)
                conn.sendall(answer)
            except OSError:
                continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        for conn in held:
            conn.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"ERROR\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"VA 5 c1 kother:k:a\r\nhello\r\n",
        b"VA 5 c1\r\nhello\r\n",
        b"VA 99999999999 c1 kx\r\n",
        b"HD\r\n",
        b"EN\r\nEN\r\n",
        b"EN\r\nVA 5 c1 ",
        b"\0" * 5000,
    ],
)
def test_nonsense_closes_the_connection(make_tier, face: Any, answer: bytes):
    with lying(answer) as port:
        tier = make_tier(("127.0.0.1", port))
        with pytest.raises(TierProtocolError):
            face(tier.read, ["a"])
        assert tier.describe()["connections"] == 0


def test_an_announced_value_that_never_comes_ends_at_the_deadline(make_tier, face: Any, namespace: str):
    with lying(b"VA 67108864 c1 k%b:k:a\r\nabc" % namespace.encode()) as port:
        tier = make_tier(("127.0.0.1", port), timeout=0.3)
        with pytest.raises(TierTimeout):
            face(tier.read, ["a"])


def test_too_many_connections_is_an_outage(make_tier, face: Any):
    with lying(b"ERROR Too many open connections\r\n") as port:
        tier = make_tier(("127.0.0.1", port))
        with pytest.raises(TierUnavailable, match="Too many open connections"):
            face(tier.read, ["a"])
