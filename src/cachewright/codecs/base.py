"""What a codec is, the frozen numbers of the codecs, and how their errors speak.

A codec turns a value into bytes and back. Its ``id`` stands in the header of every slot that it wrote, so
an id, once released, keeps its meaning for ever:

====== ================ =============================================
id     codec            safe to read from an untrusted store
====== ================ =============================================
0      none             (a slot without a value)
1      ``msgpack``      yes
2      ``json``         yes
3      ``pickle``       only by a cache that was given signing keys
4-127  reserved
128-   codecs of users  only by a cache that was given that codec
====== ================ =============================================

``context`` is what the bytes belong to: ``namespace + NUL + key``. Signatures and encryption are bound to
it, so that a payload copied to another key or namespace is refused.
"""

from __future__ import annotations

import enum
import re
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, Final, Protocol, runtime_checkable
from uuid import UUID

from cachewright.errors import DecodeError, EncodeError

__all__ = [
    "FIRST_USER_ID",
    "ID_JSON",
    "ID_MSGPACK",
    "ID_NONE",
    "ID_PICKLE",
    "MAX_DEPTH",
    "Buffer",
    "Codec",
    "decode_error",
    "make_context",
    "refuse",
    "type_name",
]

Buffer = bytes | memoryview

ID_NONE: Final = 0
ID_MSGPACK: Final = 1
ID_JSON: Final = 2
ID_PICKLE: Final = 3
FIRST_USER_ID: Final = 128

# Their subclasses become the builtin under its own annotation. (A NamedTuple is a tuple.)
_BUILTINS: Final = (
    *(int, float, str, bytes, bytearray, memoryview, list, tuple, set, frozenset, dict),
    *(date, time, timedelta, Decimal, UUID),
)

MAX_DEPTH: Final = 128
"""Containers inside containers. Fixed, so that what one caller can store, a caller with a deeper stack can read."""


@runtime_checkable
class Codec(Protocol):
    """Turns values into bytes and back. Implementations are thread-safe and hold no state per call.

    Attributes:
        id: one byte, stored beside the payload; 128 to 255 for codecs that are not cachewright's own.
        name: what ``codec=`` calls it.
    """

    @property
    def id(self) -> int: ...

    @property
    def name(self) -> str: ...

    def encode(self, value: object, context: bytes, type_: Any | None = None) -> bytes:
        """Return ``value`` as bytes.

        Args:
            value: what to store.
            context: ``namespace + NUL + key``.
            type_: the type that readers will ask for; ``None`` when values are to return as they are.

        Raises:
            EncodeError: the value cannot come back as it is (or as ``type_``).
        """

    def decode(self, data: Buffer, context: bytes, type_: Any | None = None) -> object:
        """Return the value that ``data`` holds.

        Raises:
            DecodeError: whatever is wrong with the bytes; hostile input raises nothing else.
        """


def make_context(namespace: str, key: str) -> bytes:
    """Return the bytes that signatures and encryption are bound to."""
    return namespace.encode() + b"\0" + key.encode()


def type_name(type_: Any) -> str:
    """Name a type for a message: ``decimal.Decimal``, ``list[int]``; builtins bare."""
    if not isinstance(type_, type) or hasattr(type_, "__origin__"):
        return str(type_).replace("typing.", "")
    module = type_.__module__
    return type_.__qualname__ if module == "builtins" else f"{module}.{type_.__qualname__}"


SUPPORTED: Final = "dataclass, msgspec.Struct, attrs, pydantic, TypedDict, NamedTuple, Enum"


def _may_have_a_plan(cls: type) -> bool:
    """Whether a value of this class can be stored once its type is known."""
    return (
        issubclass(cls, (*_BUILTINS, enum.Enum))
        or any(
            hasattr(cls, mark) for mark in ("__dataclass_fields__", "__struct_fields__", "__attrs_attrs__")
        )
        or hasattr(cls, "__pydantic_fields__")
    )


def refuse(value: object, path: str, why: str = "") -> EncodeError:
    """Build the error for a value that no codec may store; it shows the type and the place, never the value."""
    where = f" at {path}" if path != "$" else ""
    if not why and not _may_have_a_plan(type(value)):
        # Even where a loader's annotation names it: to ask for the type again would lead nowhere.
        return EncodeError(
            f"{type_name(type(value))}{where} is not a supported class: {SUPPORTED} and builtin types can be stored; "
            "make it one of these, convert it first, or use codec='pickle' with pickle_keys="
        )
    why = why or "cannot be stored without changing its type"
    return EncodeError(
        f"{type_name(type(value))}{where} {why}; give its type (type=… or the loader's return annotation), "
        "or convert it to builtin types first"
    )


# What msgspec says beyond these openings quotes the value itself ("Invalid enum value 'secret'").
_SAFE_OPENINGS = ("Expected ", "Object missing required field", "Object contains unknown field")
_PATH = re.compile(r" - at `([^`]{0,200})`$")


def decode_error(codec: str, error: BaseException, type_: Any | None = None) -> DecodeError:
    """Turn what a decoder raised into a DecodeError that quotes no stored value."""
    said = str(error)
    if isinstance(error, RecursionError):
        detail = "nested too deeply"
    elif isinstance(error, MemoryError):
        detail = "too large to decode"
    elif said.startswith(_SAFE_OPENINGS):
        detail = said[:300]
    else:
        place = _PATH.search(said)
        detail = type(error).__name__ + (f" at {place[1]}" if place else "")
    wanted = f" as {type_name(type_)}" if type_ is not None else ""
    return DecodeError(f"stored {codec} bytes cannot be read{wanted}: {detail}")
