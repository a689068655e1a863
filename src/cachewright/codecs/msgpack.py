"""MessagePack, the default codec: compact, quick, and exact for the builtin types.

Ordinary values (dict, list and plain leaves) are plain MessagePack that any reader understands. What
MessagePack cannot say is an extension type: containers carry their members as MessagePack, leaves carry text
(the numbers stand in ``values.py`` and are frozen).
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, Final

import msgspec

from cachewright.codecs.base import ID_MSGPACK, MAX_DEPTH, Buffer, decode_error
from cachewright.codecs.typed import plan_for
from cachewright.codecs.values import (
    CONTAINER_MARKS,
    PLAIN_LEAVES,
    is_plain,
    leaf_from_text,
    leaf_mark,
    locate,
    needs_text,
)
from cachewright.errors import CodecError, EncodeError

__all__ = ["MsgpackCodec"]

_encoder: Final = msgspec.msgpack.Encoder()
_Ext = msgspec.msgpack.Ext
_TUPLE, _SET, _FROZENSET, _DICT = (CONTAINER_MARKS[kind][1] for kind in (tuple, set, frozenset, dict))


def _leaf(value: object) -> _Ext:
    mark = leaf_mark(value)
    return _Ext(mark.code, mark.to_text(value).encode())


def _marked(value: object, depth: int) -> object:
    """Return ``value`` with everything that MessagePack cannot say turned into extensions."""
    kind = type(value)
    if kind in PLAIN_LEAVES:
        return _leaf(value) if needs_text(value) else value
    if kind is not list and kind not in CONTAINER_MARKS:
        return _leaf(value)
    if depth >= MAX_DEPTH:
        raise EncodeError("nested too deeply")
    if kind is dict:
        return _marked_dict(value, depth + 1)  # type: ignore[arg-type]
    members = [_marked(member, depth + 1) for member in value]  # type: ignore[attr-defined]
    return members if kind is list else _Ext(CONTAINER_MARKS[kind][1], _encoder.encode(members))


def _marked_dict(value: dict[object, object], depth: int) -> object:
    if all(type(key) in PLAIN_LEAVES and not needs_text(key) for key in value):
        return {key: _marked(member, depth) for key, member in value.items()}
    pairs = [[_marked(key, depth), _marked(member, depth)] for key, member in value.items()]
    return _Ext(_DICT, _encoder.encode(pairs))


def _unmark(depth: int, code: int, data: memoryview) -> object:
    if code > _DICT:
        return leaf_from_text(code, str(data, "utf-8"))
    if code <= 0 or depth >= MAX_DEPTH:
        raise ValueError("unknown extension" if code <= 0 else "nested too deeply")
    members = _decoder(depth + 1).decode(data)
    if code == _DICT:
        return _dict_from_pairs(members)
    return (tuple if code == _TUPLE else set if code == _SET else frozenset)(members)


def _dict_from_pairs(pairs: list[Any]) -> dict[Any, Any]:
    return {key: member for key, member in pairs}  # noqa: C416 - dict(pairs) takes two-letter strings for pairs


@cache
def _decoder(depth: int) -> Any:
    """One decoder per depth of containers in extensions: a hook has no other way to know how deep it is."""
    # Any for the outermost: a lone leaf may stand there; only lists inside a container's extension.
    if depth == 0:
        return msgspec.msgpack.Decoder(ext_hook=partial(_unmark, 0))
    return msgspec.msgpack.Decoder(list[Any], ext_hook=partial(_unmark, depth))


_decode_untyped: Final = _decoder(0).decode


class MsgpackCodec:
    """MessagePack through msgspec."""

    id: Final = ID_MSGPACK
    name: Final = "msgpack"

    def encode(self, value: object, context: bytes, type_: Any | None = None) -> bytes:
        """See :class:`~cachewright.codecs.base.Codec`."""
        if type_ is not None:
            plan = plan_for(type_)
            if plan.native:
                plan.check(value)
                try:
                    return _encoder.encode(plan.lower_dates(value))
                except (OverflowError, UnicodeEncodeError):
                    pass  # an int beyond 64 bits or a lone surrogate: the exact way below can write them
                except (TypeError, ValueError, RecursionError) as error:
                    raise plan.encode_error(value, error) from None
            value = plan.lower(value)
        if is_plain(value):
            try:
                return _encoder.encode(value)
            except (OverflowError, UnicodeEncodeError):
                pass  # an int beyond 64 bits or a lone surrogate: only its mark can hold it
        try:
            return _encoder.encode(_marked(value, 0))
        except (CodecError, TypeError, ValueError, RecursionError):
            raise locate(value, "the value cannot be encoded as MessagePack") from None

    def decode(self, data: Buffer, context: bytes, type_: Any | None = None) -> object:
        """See :class:`~cachewright.codecs.base.Codec`."""
        plan = plan_for(type_) if type_ is not None else None
        try:
            if plan is None:
                return _decode_untyped(data)
            if plan.native:
                try:
                    return plan.from_msgpack(data)
                except msgspec.ValidationError:
                    pass  # perhaps it was stored without a type and holds marks
            return plan.lift(_decode_untyped(data))
        except Exception as error:
            # Anything: hostile bytes reach constructors, hashing, and with a type the user's own validators.
            raise decode_error("msgpack", error, type_) from None
