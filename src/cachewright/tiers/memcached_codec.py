"""Memcached's meta protocol without I/O: requests to bytes, bytes to replies, and whether the two belong together.

Used by the blocking and the asyncio driver alike. Every request asks for exactly one reply, and for its key to be
repeated in it (flag ``k``): replies are matched by order *and* by key, so that a connection that has lost its step
is found out before it serves one key's value for another, which is the worst that a cache can do.

Spoken here: ``mg`` (value and CAS), ``ms`` (set, add, compare-and-swap), ``md`` (compare-and-delete), ``mn`` and
``stats settings``. An explicit new CAS (``E``) and ``md … x`` are not used: Memcached 1.6.18 does not know them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from cachewright.errors import TierProtocolError

__all__ = [
    "MAX_ITEM",
    "Reply",
    "ReplyParser",
    "Request",
    "add",
    "check",
    "delete",
    "get",
    "item_size",
    "noop",
    "put",
    "settings",
]

MAX_ITEM = 64 << 20
"""The largest value that a server may announce, in bytes, before it is taken for nonsense."""

MAX_LINE = 2048
"""The longest reply line: status, flags and a key of 250 bytes are far below it."""

_MAX_STATS = 1000  # `stats settings` has about 90 lines

Verb = Literal["mg", "ms", "md", "mn", "stats"]


class Request(msgspec.Struct, frozen=True):
    """One request and what its reply must look like.

    ``on`` is the connection (its generation number) that alone may carry the request, because it holds a CAS unique
    read there; 0: any. CAS uniques start over when a server restarts, so one that was read on another connection
    may by chance name a different state.
    """

    verb: Verb
    key: bytes
    wire: bytes
    on: int = 0

    @property
    def mutates(self) -> bool:
        """Whether the server may hold something else after it."""
        return self.verb in ("ms", "md")


class Reply(msgspec.Struct, frozen=True):
    """One reply. ``status`` is the protocol's word; ``text`` the rest of an error line."""

    status: bytes
    key: bytes | None = None
    cas: int = 0
    value: bytes = b""
    text: str = ""
    stats: dict[bytes, bytes] | None = None


def get(key: bytes) -> Request:
    """Value and CAS unique."""
    return Request("mg", key, b"mg %b v c k\r\n" % key)


def put(key: bytes, value: bytes, exptime: int, *, cas: int | None = None, on: int = 0) -> Request:
    """Stores; with ``cas`` only where that CAS unique still stands. The reply carries the new one."""
    compare = b"" if cas is None else b" C%d" % cas
    line = b"ms %b %d T%d%b c k\r\n" % (key, len(value), exptime, compare)
    return Request("ms", key, b"".join((line, value, b"\r\n")), on)


def add(key: bytes, value: bytes, exptime: int) -> Request:
    """Stores where nothing stands (mode E). The reply carries the new CAS unique."""
    line = b"ms %b %d T%d ME c k\r\n" % (key, len(value), exptime)
    return Request("ms", key, b"".join((line, value, b"\r\n")))


def delete(key: bytes, *, cas: int, on: int) -> Request:
    """Deletes where that CAS unique still stands."""
    return Request("md", key, b"md %b C%d k\r\n" % (key, cas), on)


def noop() -> Request:
    """Asks whether anybody is there."""
    return Request("mn", b"", b"mn\r\n")


def settings() -> Request:
    """Asks for the server's settings (``item_size_max`` among them)."""
    return Request("stats", b"", b"stats settings\r\n")


def item_size(key: bytes, value_size: int) -> int:
    """What the server counts against its item limit: the value, CR LF, key, NUL, CAS and its 48-byte item header."""
    return value_size + 2 + len(key) + 1 + 8 + 48


_EXPECTED: dict[str, frozenset[bytes]] = {
    "mg": frozenset((b"VA", b"EN")),
    "ms": frozenset((b"HD", b"NS", b"EX", b"NF")),
    "md": frozenset((b"HD", b"NS", b"EX", b"NF")),
    "mn": frozenset((b"MN",)),
    "stats": frozenset((b"END",)),
}


def check(tier: str, request: Request, reply: Reply) -> None:
    """Raises `TierProtocolError` unless ``reply`` can be the answer to ``request``; `OSError` if the server is full."""
    status = reply.status
    if status == b"SERVER_ERROR":
        return
    if status == b"ERROR" and reply.text.startswith("Too many open connections"):
        raise ConnectionRefusedError(reply.text)
    if status not in _EXPECTED[request.verb]:
        told = f"{status.decode()} {reply.text}".strip()
        hint = "; the meta protocol needs Memcached 1.6 or newer" if status == b"ERROR" else ""
        raise TierProtocolError(tier, f"a {request.verb} was answered with {told!r}{hint}")
    if reply.key is None:
        # A hit or a confirmation must name its key. Of a plain "no", older and newer servers leave it out.
        if status in (b"VA", b"HD"):
            raise TierProtocolError(tier, f"a {request.verb} was answered with {status.decode()} and no key")
    elif reply.key != request.key:
        raise TierProtocolError(
            tier, f"the answer to a {request.verb} of {request.key!r} is about {reply.key[:250]!r}"
        )
    if status == b"VA" and not reply.cas:
        # `memcached -C`. A compare with number 0 would be no compare at all there.
        raise TierProtocolError(
            tier, "the server keeps no CAS uniques: start memcached without -C (--disable-cas)"
        )


class ReplyParser:
    """Bytes in, whole replies out. A reply may come in any number of pieces.

    What it keeps is bounded by what has really arrived: an announced length reserves nothing. Pieces of a long value
    are joined once, when it is complete.
    """

    def __init__(self, tier: str, max_item: int = MAX_ITEM) -> None:
        self._tier = tier
        self._max_item = max_item
        self._pieces: list[bytes] = []
        self._held = 0
        self._need = 0
        self._stats: dict[bytes, bytes] = {}

    @property
    def pending(self) -> bool:
        """Whether a part of a reply is waiting for its rest."""
        return bool(self._held or self._stats)

    def feed(self, data: bytes) -> list[Reply]:
        """The replies that ``data`` completes.

        Raises:
            TierProtocolError: no server of this protocol sends that. The connection is of no more use.
        """
        if self._held:
            self._pieces.append(data)
            self._held += len(data)
            if self._held < self._need:
                return []
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._held = 0
        replies: list[Reply] = []
        at, size = 0, len(data)
        while at < size:
            end = data.find(b"\r\n", at, at + MAX_LINE)
            if end < 0:
                if size - at >= MAX_LINE:
                    raise self._nonsense(f"a line longer than {MAX_LINE} bytes", data[at : at + 40])
                self._keep(data, at, size - at + 1)
                break
            after = end + 2
            if data.startswith(b"VA ", at):
                length, key, cas = self._value_line(data[at + 3 : end])
                stop = after + length
                if stop + 2 > size:
                    self._keep(data, at, stop + 2 - at)
                    break
                if data[stop : stop + 2] != b"\r\n":
                    raise self._nonsense("a value that does not end where it should", data[at:end])
                replies.append(Reply(b"VA", key, cas, data[after:stop]))
                at = stop + 2
            else:
                reply = self._line(data[at:end])
                if reply is not None:
                    replies.append(reply)
                at = after
        return replies

    def _keep(self, data: bytes, at: int, need: int) -> None:
        rest = data[at:]
        self._pieces.append(rest)
        self._held = len(rest)
        self._need = need

    def _value_line(self, line: bytes) -> tuple[int, bytes | None, int]:
        size, *flags = line.split(b" ")
        length = self._number(size, line)
        if length > self._max_item:
            raise self._nonsense(f"a value of {length:,} bytes, and the limit is {self._max_item:,}", line)
        key, cas = self._flags(flags, line)
        return length, key, cas

    def _line(self, line: bytes) -> Reply | None:
        status, _, rest = line.partition(b" ")
        if status in (b"HD", b"EN", b"NF", b"NS", b"EX", b"MN"):
            key, cas = self._flags(rest.split(b" "), line) if rest else (None, 0)
            return Reply(status, key, cas)
        if status == b"STAT":
            name, _, value = rest.partition(b" ")
            self._stats[name] = value
            if len(self._stats) > _MAX_STATS:
                raise self._nonsense("endless statistics", line)
            return None
        if status == b"END" and not rest:
            stats, self._stats = self._stats, {}
            return Reply(status, stats=stats)
        if status in (b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR"):
            return Reply(status, text=rest.decode("latin-1"))
        raise self._nonsense("an answer that the meta protocol does not have", line)

    def _flags(self, flags: list[bytes], line: bytes) -> tuple[bytes | None, int]:
        key, cas = None, 0
        for flag in flags:
            mark = flag[:1]
            if mark == b"k":
                key = flag[1:]
            elif mark == b"c":
                cas = self._number(flag[1:], line)
        return key, cas

    def _number(self, digits: bytes, line: bytes) -> int:
        # bytes.isdigit is ASCII only, so that int() cannot meet a sign, a blank or an underscore.
        if not digits.isdigit() or len(digits) > 20:
            raise self._nonsense("something else in a number's place", line)
        return int(digits)

    def _nonsense(self, what: str, line: bytes) -> TierProtocolError:
        return TierProtocolError(self._tier, f"the server sent {what}: {line[:100]!r}")
