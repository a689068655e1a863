"""Hostile bytes out of honest ones, by a seed: flips, cuts, splices, lies about lengths, and noise.

Most random bytes are refused by the first check. What gets deep into a parser is nearly right, so every input starts
from a valid sample and is changed in few places.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

__all__ = ["mutated", "mutated_text"]

_NUMBERS = (0, 1, 2, 7, 15, 16, 88, 127, 128, 255, 256, 0x7FFF, 0xFFFF, 0x10000, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)  # fmt: skip
_TOKENS = (
    b"\r\n", b"\n", b"\0", b" ", b"\x7f", b"\xff", b"-1", b"0", b"{", b"}", b"[", b'"', b"$", b"*3\r\n", b"%1\r\n",
    b"$-1\r\n", b":1\r\n", b"+OK\r\n", b"-ERR x\r\n", b"_\r\n", b"VA ", b"EN\r\n", b"HD\r\n", b"SERVER_ERROR x\r\n",
    b"\xc1", b"\xc7", b"\xd8", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b'{"$tuple": ', b"\x80\x05",
)  # fmt: skip
_DIGITS = re.compile(rb"\d+")
# Not 10**8 to 4 * 10**9: hiredis makes an empty list of whatever length a server announces. That takes no memory,
# but seconds to let go of.
_WRITTEN = (b"0", b"1", b"-1", b"00", b"65536", b"99999", b"16384", b"1e3", b"9" * 20, b"9" * 400, b"")
_ODD = ("\r\n", "\0", " ", "\x7f", "é", "\u202e", "\ud800", "{0.__class__}", "{}", "%s", "@", "#", "?", "/", ":", "²", "℀", "[", "]", "://", ",", "9" * 30)  # fmt: skip


def _flip(data: bytearray, rng: Random, others: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _byte(data: bytearray, rng: Random, others: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((0, 1, 2, 3, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _cut(data: bytearray, rng: Random, others: Sequence[bytes]) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _drop(data: bytearray, rng: Random, others: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.randrange(1, 17)]


def _again(data: bytearray, rng: Random, others: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = data[at : at + rng.randrange(1, 65)] * rng.choice((1, 1, 2, 40))


def _splice(data: bytearray, rng: Random, others: Sequence[bytes]) -> None:
    other = rng.choice(others)
    at = rng.randrange(len(other) + 1)
    data[rng.randrange(len(data) + 1) :] = other[at:]


def _lie(data: bytearray, rng: Random, others: Sequence[bytes]) -> None:
    """Another number where one may stand, in binary."""
    size = rng.choice((1, 2, 4, 8))
    at = rng.randrange(max(1, len(data) - size + 1))
    number = (rng.choice(_NUMBERS) + rng.choice((-1, 0, 0, 1))) % (1 << (8 * size))
    data[at : at + size] = number.to_bytes(size, rng.choice(("big", "big", "little")))


def _lie_in_digits(data: bytearray, rng: Random, others: Sequence[bytes]) -> None:
    numbers = list(_DIGITS.finditer(data))
    if numbers:
        found = rng.choice(numbers)
        data[found.start() : found.end()] = rng.choice(_WRITTEN)


def _token(data: bytearray, rng: Random, others: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice(_TOKENS)


def _noise(data: bytearray, rng: Random, others: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    size = rng.randrange(1, 33)
    data[at : at + size] = rng.randbytes(size)


_CHANGES: tuple[Callable[[bytearray, Random, Sequence[bytes]], None], ...] = (
    _flip, _flip, _byte, _byte, _cut, _drop, _again, _splice, _lie, _lie, _lie_in_digits, _lie_in_digits, _token, _noise,
)  # fmt: skip


def mutated(samples: Sequence[bytes], rng: Random) -> bytes:
    """A sample with up to four changes; one in a hundred is noise from end to end."""
    if rng.random() < 0.01:
        return rng.randbytes(rng.randrange(200))
    data = bytearray(rng.choice(samples))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 4))):
        rng.choice(_CHANGES)(data, rng, samples)
    return bytes(data)


def mutated_text(samples: Sequence[str], rng: Random) -> str:
    """The same for text, lone surrogates included."""
    text = rng.choice(samples)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        at = rng.randrange(len(text) + 1)
        how = rng.randrange(5)
        if how == 0:
            text = text[:at] + rng.choice(_ODD) + text[at:]
        elif how == 1:
            text = text[:at]
        elif how == 2:
            text = text[:at] + text[at + rng.randrange(1, 5) :]
        elif how == 3:
            text = text[:at] + rng.choice(samples)[rng.randrange(len(text) + 1) :]
        else:
            text = text[:at] + chr(rng.randrange(1, 0x3000)) + text[at:]
    return text
