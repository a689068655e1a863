"""The Lua scripts that change a slot, a tag's generation, and the commands that call them.

A slot is one string: header, then payload. Its header begins with its own length, so a comparison of the first
``len(expected)`` bytes is exact. The payload always travels as *one* argument together with its header:
concatenation inside Lua costs 6 to 11 times as much from 100 kB on, and holds up the whole server.

A script is called by its SHA-1. ``NOSCRIPT`` (a restart, ``SCRIPT FLUSH``) says that nothing was executed, so
sending that one call again with its source is safe even where ids must not be sent twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from cachewright.core.slot import FORMAT_VERSION, HEADER_FIXED, Slot, life_of, parse
from cachewright.errors import TierProtocolError
from cachewright.keys import physical_key
from cachewright.tiers.base import Generation, Swap, Swapped
from cachewright.tiers.redis_driver import Command, Reply, ReplyError, checked, nonsense

__all__ = [
    "LARGE",
    "compares_whole",
    "drop_call",
    "generation_call",
    "is_large",
    "is_large_store",
    "key_bytes",
    "life_argument",
    "may_hold_intents",
    "missing_scripts",
    "only_header",
    "read_done",
    "read_generation",
    "read_record",
    "read_scan",
    "read_slot",
    "read_swapped",
    "scan_pattern",
    "script",
    "store_call",
    "swap_call",
    "with_source",
]

LARGE: Final = 32 * 1024
"""From this size on a swap goes by WATCH and MULTI (`redis_large`): Lua copies arguments, and blocks the server."""
_LONGEST_LIFE: Final = 10**15  # ms; Redis refuses a life whose end does not fit into 63 bits

# An absent key, an empty string and another type under our name are one: no slot. SET replaces each of them.
_SWAP = """
local key, want, new, life, mode = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local n = #want
local have = redis.pcall('GETRANGE', key, 0, n > 0 and n - 1 or 0)
if type(have) == 'table' then have = '' end
if have ~= want or (mode == 'whole' and redis.call('STRLEN', key) ~= n) then
  local whole = redis.pcall('GET', key)
  if type(whole) == 'table' then return false end
  return whole
end
if mode == 'header' then
  redis.call('SETRANGE', key, 0, new)
  if life == '' then redis.call('PERSIST', key) else redis.call('PEXPIRE', key, life) end
elseif new == '' then
  redis.call('DEL', key)
elseif life == '' then
  redis.call('SET', key, new)
else
  redis.call('SET', key, new, 'PX', life)
end
return 1
"""

# Where write intents stand they must outlive the drop: rewritten as a header without entry or lease, contended.
# Their table follows the fixed 88 bytes. What does not look like our format has none.
_SPARE_INTENTS = """
local function spare_intents(key, head, nonce)
  if #head < 88 or head:byte(5) ~= 1 then return false end
  local n = head:byte(9)
  local size = 88 + 16 * n
  local length = ((head:byte(1) * 256 + head:byte(2)) * 256 + head:byte(3)) * 256 + head:byte(4)
  if n == 0 or length < size or redis.call('STRLEN', key) < length then return false end
  local fixed = string.char(0, 0, math.floor(size / 256), size % 256, 1, 4, 0, 0, n, 0, 0, 0)
  local intents = redis.call('GETRANGE', key, 88, size - 1)
  redis.call('SET', key, fixed .. nonce .. string.rep(string.char(0), 68) .. intents, 'KEEPTTL')
  return true
end
local key = KEYS[1]
local head = redis.pcall('GETRANGE', key, 0, 87)
if type(head) == 'table' then head = '' end
"""

_DROP = (
    _SPARE_INTENTS
    + """
local entry = #head >= 88 and head:byte(5) == 1 and head:byte(6) % 2 or 0
if not spare_intents(key, head, ARGV[1]) then redis.call('DEL', key) end
return entry
"""
)

_STORE = (
    _SPARE_INTENTS
    + """
if spare_intents(key, head, ARGV[1]) then return 0 end
if ARGV[3] == '' then redis.call('SET', key, ARGV[2]) else redis.call('SET', key, ARGV[2], 'PX', ARGV[3]) end
return 1
"""
)

_GENERATION = """
if ARGV[2] == '1' then
  local have = redis.pcall('GET', KEYS[1])
  if type(have) == 'string' and #have == 16 then return have end
end
local time = redis.call('TIME')
local ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local bytes = {}
for i = 8, 1, -1 do
  bytes[i] = string.char(ms % 256)
  ms = math.floor(ms / 256)
end
local record = ARGV[1] .. table.concat(bytes)
redis.call('SET', KEYS[1], record)
return record
"""


def _sha(source: str) -> str:
    return hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


_SOURCES: Final[dict[str, str]] = {_sha(source): source for source in (_SWAP, _DROP, _STORE, _GENERATION)}
_SWAP_SHA, _DROP_SHA, _STORE_SHA, _GENERATION_SHA = _SOURCES


def script(source: str) -> str:
    """The SHA-1 to call a script by; from now on `with_source` knows it."""
    sha = _sha(source)
    _SOURCES[sha] = source
    return sha


def key_bytes(namespace: str, kind: Any, key: str) -> bytes:
    """The physical key as it is sent, and as the cluster hashes it."""
    return physical_key(namespace, kind, key).encode()


def missing_scripts(commands: Sequence[Command], replies: Sequence[Reply]) -> list[int]:
    """The places in a batch whose script the server did not know, so that nothing was executed there."""
    return [
        at
        for at, reply in enumerate(replies)
        if isinstance(reply, ReplyError) and reply.code == "NOSCRIPT" and commands[at][0] == "EVALSHA"
    ]


def with_source(command: Command) -> Command:
    """The same call with the script's source, which makes the server know it."""
    return ("EVAL", _SOURCES[command[1]], *command[2:])


def swap_call(key: bytes, swap: Swap, now: int) -> Command:
    """The call that carries out ``swap``; its reply is for `read_swapped`."""
    expected, new = swap.expected, swap.new
    want = expected.header if expected is not None else b""
    mode = b"whole" if compares_whole(expected) else b""
    if new is None:
        return ("EVALSHA", _SWAP_SHA, 1, key, want, b"", b"", mode)
    if only_header(expected, new):
        return ("EVALSHA", _SWAP_SHA, 1, key, want, new.header, life_argument(new, now), b"header")
    return ("EVALSHA", _SWAP_SHA, 1, key, want, new.header + new.payload, life_argument(new, now), mode)


def only_header(expected: Slot | None, new: Slot) -> bool:
    """Whether the payload that stands may stay: the very bytes that were read, under a header of the same length."""
    return (
        expected is not None
        and expected.foreign is None
        and new.entry is not None
        and expected.entry is not None
        and new.entry.payload is expected.entry.payload
        and len(new.header) == len(expected.header)
    )


def compares_whole(expected: Slot | None) -> bool:
    """Whether all bytes that stand must be compared, not the first ``len(expected)`` only."""
    # Bytes without our header have no length in front: only a comparison of all of them is exact.
    return expected is not None and expected.foreign is not None and not expected.newer


def is_large(swap: Swap) -> bool:
    """Whether so many bytes travel that the swap should not go through Lua."""
    expected, new = swap.expected, swap.new
    if expected is not None and expected.foreign is not None and len(expected.foreign) >= LARGE:
        return True
    return (
        new is not None
        and new.entry is not None
        and len(new.entry.payload) >= LARGE
        and not only_header(expected, new)
    )


def is_large_store(slot: Slot) -> bool:
    """The same for a store."""
    return slot.entry is not None and len(slot.entry.payload) >= LARGE


def may_hold_intents(head: bytes) -> bool:
    """Whether a slot's first bytes leave it possible that intents stand; the scripts look closer."""
    return type(head) is bytes and len(head) == HEADER_FIXED and head[4] == FORMAT_VERSION and head[8] > 0


def life_argument(slot: Slot, now: int) -> bytes:
    """The slot's physical life in ms as an argument; empty: no expiry."""
    life = life_of(slot, now)
    return b"" if life is None else b"%d" % min(life, _LONGEST_LIFE)


def drop_call(key: bytes, nonce: bytes) -> Command:
    """`slot.drop`; replies 1 where an entry went."""
    return ("EVALSHA", _DROP_SHA, 1, key, nonce)


def store_call(key: bytes, slot: Slot, nonce: bytes, now: int) -> Command:
    """`slot.store`; replies 0 where intents stood and it acted as a drop."""
    return ("EVALSHA", _STORE_SHA, 1, key, nonce, slot.header + slot.payload, life_argument(slot, now))


def generation_call(key: bytes, mark: bytes, only_missing: bool) -> Command:
    """Sets a tag's generation with the server's time; replies with the record that stands."""
    return ("EVALSHA", _GENERATION_SHA, 1, key, mark, b"1" if only_missing else b"")


def read_slot(tier: str, reply: Reply) -> Slot | None:
    """A slot out of GET's or MGET's reply; an empty string counts as absent, as in the scripts.

    Raises:
        TierProtocolError: neither bytes nor nil.
    """
    if type(reply) is bytes:
        return parse(reply) if reply else None
    if reply is None:
        return None
    raise nonsense(tier, reply, "a string")


def read_swapped(tier: str, reply: Reply) -> Swapped:
    """What became of a swap."""
    return _DONE if type(reply) is int and reply == 1 else Swapped(False, read_slot(tier, reply))


def read_done(tier: str, reply: Reply) -> bool:
    """What a script said that answers yes or no: a drop that is not confirmed must not pass for one."""
    return bool(checked(tier, reply, int, "a number") == 1)


def read_scan(tier: str, reply: Reply, before: bytes) -> tuple[bytes, list[bytes]]:
    """SCAN's next cursor and keys; a cursor that does not move would keep its caller for ever."""
    cursor, names = checked(tier, reply, list, "a cursor and keys", 2)
    for name in checked(tier, names, list, "keys"):
        checked(tier, name, bytes, "a key")
    if checked(tier, cursor, bytes, "a cursor") == before:
        raise TierProtocolError(tier, f"SCAN does not get on: it returned the cursor {before[:40]!r} again")
    return cursor, names


_DONE: Final = Swapped(True)


def read_generation(tier: str, reply: Reply) -> Generation | None:
    """A generation out of a record; None where there is none, or none that can be read."""
    if reply is None or len(checked(tier, reply, bytes, "a string")) != 16:
        return None
    return Generation(reply[:8], int.from_bytes(reply[8:], "big"))


def read_record(tier: str, reply: Reply) -> Generation:
    """The generation that the script has just made or found."""
    raw = checked(tier, reply, bytes, "a tag's record", 16)
    return Generation(raw[:8], int.from_bytes(raw[8:], "big"))


def scan_pattern(prefix: str) -> str:
    """A SCAN pattern for all keys that begin with ``prefix``, whatever glob characters it holds."""
    return "".join(f"\\{char}" if char in "*?[]^-\\" else char for char in prefix) + "*"
