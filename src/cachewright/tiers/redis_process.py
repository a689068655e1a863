"""A Redis or Valkey server as a process of ours, whatever its binary: its configuration, address and readiness.

It is asked in plain RESP over a short-lived socket, so that starting one needs no client library.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import IO
from urllib.parse import quote

from cachewright.errors import TierProtocolError, TierUnavailable
from cachewright.runtime.process import LOOPBACK, ServerProcess, free_port

__all__ = ["RedisProcess", "Reply", "ask"]

Reply = None | int | bytes | list["Reply"]
"""What a server answers in RESP2."""


def ask(port: int, *words: str | bytes | int, password: str | None = None, timeout: float = 1.0) -> Reply:
    """Send one command to a server on the loopback interface, over a connection of its own.

    Raises:
        OSError: it cannot be reached, or did not answer within ``timeout`` seconds.
        TierProtocolError: it answered with an error; the message is its own.
    """
    with (
        socket.create_connection((LOOPBACK, port), timeout) as connection,
        connection.makefile("rb") as stream,
    ):
        if password is not None:
            connection.sendall(_command("AUTH", password))
            _read(stream)
        connection.sendall(_command(*words))
        return _read(stream)


def _command(*words: str | bytes | int) -> bytes:
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def _read(stream: IO[bytes]) -> Reply:
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("the server closed the connection")
    kind, rest = line[:1], line[1:-2]
    match kind:
        case b"+":
            return rest
        case b"-":
            raise TierProtocolError("redis", rest.decode(errors="replace"))
        case b":":
            return int(rest)
        case b"$":
            return None if rest == b"-1" else stream.read(int(rest) + 2)[:-2]
        case b"*":
            return None if rest == b"-1" else [_read(stream) for _ in range(int(rest))]
    raise TierProtocolError("redis", f"answered {line[:40]!r}, which is no RESP2")


class RedisProcess(ServerProcess):
    """A Redis or Valkey server on a loopback port.

    Args:
        name: ``"redis"`` or ``"valkey"``, for messages.
        binary: the server program.
        folder: for data, configuration and log; None: a temporary one.
        port: None: a free one, kept over restarts.
        password: the default user's; True: a random one; False: none.
        options: lines of its configuration file, over the defaults (no persistence).
        start_timeout: seconds until it must answer.
    """

    def __init__(
        self,
        name: str,
        binary: Path | str,
        *,
        folder: Path | None = None,
        port: int | None = None,
        password: str | bool = False,
        options: Mapping[str, str] | None = None,
        start_timeout: float = 15.0,
    ) -> None:
        super().__init__(name, [], folder=folder, start_timeout=start_timeout)
        self.port = free_port() if port is None else port
        self.password = (
            (secrets.token_urlsafe(24) if password else None) if isinstance(password, bool) else password
        )
        config = self.folder / "server.conf"
        self.command = [str(binary), str(config)]
        self._config = config
        self._options = {
            "bind": LOOPBACK,
            "port": str(self.port),
            "daemonize": "no",
            "dir": f'"{self.folder}"',
            "save": '""',
            "appendonly": "no",
            **(options or {}),
        }
        if self.password is not None:
            # In the file, never on the command line: that is for everyone to read in the list of processes.
            self._options |= {"requirepass": self.password, "masterauth": self.password}

    @property
    def url(self) -> str:
        """Its ``redis://`` URL, with the password if it has one: never log it."""
        credentials = "" if self.password is None else f":{quote(self.password, safe='')}@"
        return f"redis://{credentials}{self.address}/0"

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{LOOPBACK}:{self.port}"

    def option(self, name: str) -> str:
        """Return a line of its configuration."""
        return self._options[name]

    def prepare(self) -> None:
        """Write the configuration file, readable by its owner alone."""
        descriptor = os.open(self._config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(f"{name} {value}\n" for name, value in self._options.items())

    def ready(self) -> bool:
        """It answers PING, so it has also loaded its data."""
        try:
            return self.ask("PING") == b"PONG"
        except (OSError, TierProtocolError):  # not listening yet, or LOADING
            return False

    def ask(self, *words: str | bytes | int) -> Reply:
        """Send one command; see `ask`."""
        return ask(self.port, *words, password=self.password)

    def info(self, section: str) -> dict[str, str]:
        """Return a section of INFO."""
        return fields(self.ask("INFO", section))


def fields(reply: Reply) -> dict[str, str]:
    """Read the ``name:value`` lines of INFO and CLUSTER INFO."""
    if not isinstance(reply, bytes):
        raise TierUnavailable("redis", f"answered {reply!r} where lines of text were due")
    pairs = (line.partition(":") for line in reply.decode().splitlines() if not line.startswith("#"))
    return {name: value for name, colon, value in pairs if colon}
