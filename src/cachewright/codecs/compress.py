"""Compression of large payloads, and decompression that no bomb gets past.

Output is produced in bounded steps and given up at the limit (zstd's into a buffer whose size is known and checked
first), so a few bytes that stand for gigabytes never allocate more than the limit and one step. The limit is the smaller of the greatest value allowed and a ratio of the
stored size; the encoder leaves uncompressed what the decoder would refuse for its ratio.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from cachewright.codecs.base import Buffer
from cachewright.errors import ConfigurationError, DecodeError, MissingExtraError
from cachewright.spelling import did_you_mean

__all__ = ["COMPRESSORS", "MAX_RATIO", "Compressor", "compressor", "decompress", "output_limit"]

MAX_RATIO: Final = 1000
_RATIO_FREE: Final = 1 << 20  # below this, a high ratio is harmless (and common: a page of zeros)
_STEP: Final = 1 << 18
_ZSTD_WINDOW: Final = 1 << 23  # what every decoder must support; our levels stay below it


class Compressor(NamedTuple):
    """One way to compress; ``number`` is part of the wire format (bits 0 to 3 of the flags byte)."""

    name: str
    number: int
    compress: Callable[[bytes], bytes]
    pieces: Callable[[Buffer, int], Iterator[bytes]]
    """Yields the output in steps; gets the limit; raises on damage, truncation and trailing bytes."""
    load: Callable[[], Any]
    """Imports what it needs, or raises MissingExtraError."""


def output_limit(stored: int, max_bytes: int) -> int:
    """How many bytes ``stored`` compressed bytes may become."""
    return min(max_bytes, max(_RATIO_FREE, stored * MAX_RATIO))


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise MissingExtraError("zstd compression", "compression") from None
    return zstandard


def _zstd_compress(data: bytes) -> bytes:
    compressed: bytes = _zstandard().ZstdCompressor(level=1, write_checksum=True).compress(data)
    return compressed


def _zstd_pieces(data: Buffer, limit: int) -> Iterator[bytes]:
    zstandard = _zstandard()
    frame = bytes(data)
    size = zstandard.get_frame_parameters(frame).content_size
    if size > limit:  # unknown and failed sizes are close to 2**64
        raise _too_large()
    # In one go, into a buffer of just the size that the header claims: a lie overflows it and fails. (The library's
    # stream reader ends quietly where a frame is cut off, without its checksum.)
    worker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    yield worker.decompress(frame, max_output_size=limit, allow_extra_data=False)


def _lz4_frame() -> Any:
    try:
        import lz4.frame
    except ImportError:
        raise MissingExtraError("lz4 compression", "compression") from None
    return lz4.frame


def _lz4_compress(data: bytes) -> bytes:
    compressed: bytes = _lz4_frame().compress(data, content_checksum=True)
    return compressed


def _lz4_pieces(data: Buffer, limit: int) -> Iterator[bytes]:
    worker = _lz4_frame().LZ4FrameDecompressor()
    piece = worker.decompress(bytes(data), max_length=_STEP)
    while piece:
        yield piece
        piece = b"" if worker.eof else worker.decompress(b"", max_length=_STEP)
    if not worker.eof or worker.unused_data:
        raise ValueError("cut off, or followed by other bytes")


def _zlib_pieces(data: Buffer, limit: int) -> Iterator[bytes]:
    worker = zlib.decompressobj()
    view = memoryview(data)
    for start in range(0, len(view), 1 << 16):  # fed in parts, as zlib copies the unread rest at every step
        rest: Buffer = view[start : start + (1 << 16)]
        while rest and not worker.eof:
            yield worker.decompress(rest, _STEP)
            rest = worker.unconsumed_tail
        if worker.eof:
            if worker.unused_data or start + (1 << 16) < len(view):
                raise ValueError("followed by other bytes")
            return
    yield worker.flush()
    if not worker.eof:
        raise ValueError("cut off")


def _zlib() -> Any:
    return zlib


_ALL: Final = (
    Compressor("zstd", 1, _zstd_compress, _zstd_pieces, _zstandard),
    Compressor("lz4", 2, _lz4_compress, _lz4_pieces, _lz4_frame),
    Compressor("zlib", 3, lambda data: zlib.compress(data, 1), _zlib_pieces, _zlib),
)
COMPRESSORS: Final = {one.name: one for one in _ALL}
_BY_NUMBER: Final = {one.number: one for one in _ALL}


def compressor(name: str) -> Compressor:
    """Return the compressor that ``compression=`` names.

    Raises:
        ConfigurationError: no such compression; MissingExtraError where its package is not installed.
    """
    found = COMPRESSORS.get(name)
    if found is None:
        known = ", ".join(map(repr, COMPRESSORS))
        raise ConfigurationError(
            f"compression={name!r} is none of {known}{did_you_mean(str(name), COMPRESSORS)}"
        )
    found.load()
    return found


def _too_large() -> DecodeError:
    return DecodeError("a compressed payload unpacks to more than is allowed")


def decompress(number: int, data: Buffer, max_bytes: int) -> bytes:
    """Return what ``data`` unpacks to.

    Raises:
        DecodeError: unknown compression, damage, or more output than :func:`output_limit` allows.
    """
    found = _BY_NUMBER.get(number)
    if found is None:
        raise DecodeError(f"a payload is compressed in a way that is not known here (number {number})")
    limit = output_limit(len(data), max_bytes)
    pieces: list[bytes] = []
    total = 0
    try:
        for piece in found.pieces(data, limit):
            total += len(piece)
            if total > limit:
                raise _too_large()
            pieces.append(piece)
    except DecodeError:
        raise
    except MissingExtraError as error:
        raise DecodeError(str(error)) from None
    except Exception as error:
        # Each library has errors of its own for damaged input (lz4: RuntimeError, zlib.error, ZstdError).
        raise DecodeError(f"a {found.name} payload is damaged ({type(error).__name__})") from None
    return b"".join(pieces)
