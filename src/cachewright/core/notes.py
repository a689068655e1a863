"""Notes: what a loader leaves beside its value for the next load of the key, such as an ETag.

A note stands in the slot's header, so that an entry can get a new life, and another note, while its payload stays where
it is. It is encoded, signed and encrypted as the cache's payloads are: an ETag may be a hash of the value.
"""

from __future__ import annotations

from typing import Any

from cachewright.codecs.base import make_context
from cachewright.codecs.pipeline import Pipeline
from cachewright.core.header import MAX_NOTE
from cachewright.errors import DecodeError, EncodeError
from cachewright.keys import shorten

__all__ = ["pack_note", "read_note"]


def _context(namespace: str, key: str) -> bytes:
    # No namespace holds a space: a note can never be passed off as a payload, nor the other way about.
    return make_context(f"{namespace} note", key)


def pack_note(pipeline: Pipeline, namespace: str, key: str, note: Any) -> bytes:
    """A note as the header keeps it: codec and flags, one byte each, then as a payload of its own; None is no note.

    Raises:
        EncodeError: no plain value, or larger than a note may be.
    """
    if note is None:
        return b""
    codec, flags, payload = pipeline.encode(note, _context(namespace, key), None)
    if len(payload) + 2 > MAX_NOTE:
        raise EncodeError(
            f"the note of {shorten(key)} has {len(payload) + 2} bytes, and {MAX_NOTE} is the most: a note is small; "
            "keep what is larger in the value"
        )
    return bytes((codec, flags)) + payload


def read_note(pipeline: Pipeline, namespace: str, key: str, packed: bytes) -> Any:
    """The note; None where there is none.

    Raises:
        DecodeError: damaged or forged, or written by a cache with another codec or other keys.
    """
    if not packed:
        return None
    if len(packed) < 3:
        raise DecodeError(f"a note of {len(packed)} bytes")
    return pipeline.decode(packed[0], packed[1], packed[2:], _context(namespace, key), None)
