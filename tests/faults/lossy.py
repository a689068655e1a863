"""A proxy that loses answers and holds requests up, and both faces of a buffer for the tests that need it."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Any, Self

from cachewright.behind.buffers.base import Ack, Failure, NewRecord, Record
from cachewright.behind.buffers.redis import RedisBuffer
from cachewright.behind.buffers.redis_urls import open_redis
from cachewright.runtime.aio import AIO
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS

TOKEN = b"flusher1"


class Lossy:
    """Forwards to a port of this machine."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._held: list[tuple[socket.socket, bytes]] = []
        self._holding = False
        self._losing = False

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for sock in [self._listener, *self._sockets]:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(10)

    def lose_next_reply(self) -> None:
        """The next answer is not passed on; its connection ends instead."""
        self._losing = True

    def hold(self) -> None:
        """From now on requests stay here, whatever becomes of their senders."""
        self._holding = True

    def let_go(self) -> None:
        """Passes on what was held."""
        with self._lock:
            self._holding = False
            held, self._held = self._held, []
        assert held, "nothing was held up"
        for server, data in held:
            server.sendall(data)

    def refuse(self) -> None:
        """Takes no more connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _start(self, work: Any, *args: Any) -> None:
        thread = threading.Thread(target=work, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                self._sockets += [client, server]
                self._start(self._up, client, server)
                self._start(self._down, client, server)

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 20):
                with self._lock:
                    if self._holding:
                        self._held.append((server, data))
                        continue
                server.sendall(data)

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 20):
                if self._losing:
                    self._losing = False
                    break
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)


class Face:
    """A buffer in Redis, called plainly; an event loop lives as long as this."""

    def __init__(self, name: str, url: str, scope: str, **options: Any) -> None:
        self.loop = asyncio.new_event_loop() if name == "asyncio" else None
        self.rt: Any = AIO if self.loop else THREADS
        bounds = {"max_dirty": 100_000, "max_dirty_bytes": 2**28}
        self.buffer: RedisBuffer = open_redis(url, scope, **{**bounds, **options})

    def close(self) -> None:
        self.buffer.close()
        if self.loop:
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            made = getattr(self.buffer, name)(self.rt, *args, **more)
            return self.loop.run_until_complete(made) if self.loop else drive(made)

        return call

    def put(self, *keys: str, value: bytes | None = b"v", **more: Any) -> list[int]:
        return self.append([NewRecord(key, key.encode(), value) for key in keys], **more)

    def take(self, token: bytes = TOKEN, limit: int = 100, life: float = 60.0, **more: Any) -> list[Record]:
        return self.claim(limit, token, life, **more)

    def ack(self, *records: Record, token: bytes = TOKEN) -> int:
        return self.acknowledge(token, [Ack(r.key, r.sequence) for r in records], settle=5.0).removed

    def give_up(self, *records: Record, token: bytes = TOKEN) -> tuple[str, ...]:
        failed = [Failure(r.key, r.sequence, "Boom", self.rt.now(), dead=True) for r in records]
        return self.fail(token, failed, settle=5.0).dead
