"""JSON, for stores that people or other programs read; exact for the builtin types like MessagePack.

What JSON cannot say is an object with one member, ``{"$tuple": [1, 2]}``, ``{"$decimal": "1.10"}``. A payload
that holds such marks begins with a space (still JSON), one that does not holds none, so a dict of the user's that
looks like a mark survives: alone it is plain data, beside real marks it is written as ``{"$dict": [[key, value]]}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import isfinite
from typing import Any, Final

import msgspec

from cachewright.codecs.base import ID_JSON, MAX_DEPTH, Buffer, decode_error
from cachewright.codecs.typed import plan_for
from cachewright.codecs.values import CONTAINER_MARKS, leaf_from_text, leaf_mark, locate, needs_text
from cachewright.errors import CodecError, EncodeError

__all__ = ["JsonCodec"]

_encoder: Final = msgspec.json.Encoder()
_decode_plain: Final = msgspec.json.Decoder().decode
_MARKED: Final = 0x20
_LEAVES: Final = frozenset({type(None), bool, int, float, str})
_PLAIN: Final = _LEAVES | {dict, list}
_STR: Final = frozenset({str})
_CONTAINER_NAMES: Final = {name: kind for kind, (name, _) in CONTAINER_MARKS.items()}


def _is_plain(value: object) -> bool:
    """Whether JSON says all of ``value``: keys are str, floats finite (msgspec writes NaN as null)."""
    level: Sequence[object] = (value,)
    for _ in range(MAX_DEPTH + 1):
        kinds = set(map(type, level))
        if not _PLAIN.issuperset(kinds):
            return False
        if float in kinds and not all(isfinite(o) for o in level if type(o) is float):
            return False
        dicts: list[Any] = [o for o in level if type(o) is dict] if dict in kinds else []
        lists: list[Any] = [o for o in level if type(o) is list] if list in kinds else []
        if not dicts and not lists:
            return True
        if not _STR.issuperset(map(type, chain.from_iterable(dicts))):
            return False
        level = [*chain.from_iterable(map(dict.values, dicts)), *chain.from_iterable(lists)]
    return False


def _leaf(value: object) -> dict[str, str]:
    mark = leaf_mark(value)
    return {f"${mark.name}": mark.to_text(value)}


def _marked(value: object, depth: int) -> object:
    kind = type(value)
    if kind in _LEAVES:
        odd = needs_text(value) or (kind is float and not isfinite(value))  # type: ignore[arg-type]
        return _leaf(value) if odd else value
    if kind is not list and kind not in CONTAINER_MARKS:
        return _leaf(value)
    if depth >= MAX_DEPTH:
        raise EncodeError("nested too deeply")
    if kind is dict:
        return _marked_dict(value, depth + 1)  # type: ignore[arg-type]
    members = [_marked(member, depth + 1) for member in value]  # type: ignore[attr-defined]
    return members if kind is list else {f"${CONTAINER_MARKS[kind][0]}": members}


def _marked_dict(value: dict[Any, object], depth: int) -> object:
    looks_marked = len(value) == 1 and all(isinstance(key, str) and key.startswith("$") for key in value)
    if not looks_marked and all(type(key) is str and not needs_text(key) for key in value):
        return {key: _marked(member, depth) for key, member in value.items()}
    return {"$dict": [[_marked(key, depth), _marked(member, depth)] for key, member in value.items()]}


def _unmarked(value: Any) -> Any:
    kind = type(value)
    if kind is list:
        return [_unmarked(member) for member in value]
    if kind is not dict:
        return value
    if len(value) == 1:
        [(name, member)] = value.items()
        if name.startswith("$"):
            return _unmarked_one(name[1:], member)
    return {key: _unmarked(member) for key, member in value.items()}


def _unmarked_one(name: str, member: Any) -> object:
    container = _CONTAINER_NAMES.get(name)
    if container is None:
        if type(member) is not str:
            raise ValueError("a mark without text")
        return leaf_from_text(name, member)
    if type(member) is not list:
        raise ValueError("a mark without members")
    if container is dict:
        return {_unmarked(key): _unmarked(item) for key, item in member}
    return container(map(_unmarked, member))


class JsonCodec:
    """JSON through msgspec."""

    id: Final = ID_JSON
    name: Final = "json"

    def encode(self, value: object, context: bytes, type_: Any | None = None) -> bytes:
        """See :class:`~cachewright.codecs.base.Codec`."""
        if type_ is not None:
            value = plan_for(type_).lower(value)
        if _is_plain(value):
            try:
                return _encoder.encode(value)
            except (OverflowError, ValueError):
                pass  # an int too long for decimal text, or a lone surrogate: only its mark can hold it
        try:
            return b" " + _encoder.encode(_marked(value, 0))
        except (CodecError, TypeError, ValueError, RecursionError):
            raise locate(value, "the value cannot be encoded as JSON") from None

    def decode(self, data: Buffer, context: bytes, type_: Any | None = None) -> object:
        """See :class:`~cachewright.codecs.base.Codec`."""
        plan = plan_for(type_) if type_ is not None else None
        marked = len(data) > 0 and data[0] == _MARKED
        try:
            if plan is not None and plan.native and not marked:
                return plan.from_json(data)
            value = _decode_plain(data)
            if marked:
                value = _unmarked(value)
            return value if plan is None else plan.lift(value)
        except Exception as error:
            # Anything: hostile bytes reach constructors, hashing, and with a type the user's own validators.
            raise decode_error("json", error, type_) from None
