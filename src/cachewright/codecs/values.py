"""The values that round-trip without a type, and the quick test for those that need no mark.

msgspec writes a tuple or set as a list and a Decimal or UUID as text, silently. Such values, and subclasses of
the builtins, have to be found *before* msgspec sees them. Most values are made of dict, list and plain leaves
only, so the test for that is what every store pays; the marked form may be slower.
"""

from __future__ import annotations

import base64
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from itertools import chain
from typing import Any, Final, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from cachewright.codecs.base import MAX_DEPTH, refuse
from cachewright.errors import EncodeError

__all__ = [
    "CONTAINER_MARKS",
    "LEAF_MARKS",
    "PLAIN_LEAVES",
    "children",
    "is_plain",
    "leaf_from_text",
    "leaf_mark",
    "locate",
    "needs_text",
]

PLAIN_LEAVES: Final = frozenset({type(None), bool, int, float, str, bytes})
_PLAIN: Final = PLAIN_LEAVES | {dict, list}
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1


def _children_iterated(objects: Sequence[object], kinds: set[type]) -> list[object]:
    """Return keys, values and items of the dicts and lists among ``objects``."""
    dicts: list[Any] = [o for o in objects if type(o) is dict] if dict in kinds else []
    lists: list[Any] = [o for o in objects if type(o) is list] if list in kinds else []
    found: list[object] = list(chain.from_iterable(map(dict.values, dicts)))
    found.extend(chain.from_iterable(dicts))
    found.extend(chain.from_iterable(lists))
    return found


def _children_visited(objects: Sequence[object], kinds: set[type]) -> list[object]:
    return gc.get_referents(*objects)


# The collector's own visit is the quickest way to all members of a whole level (half the price of iterating).
# It skips the keys of dicts whose keys are all exactly str, which need no test. From 3.13 on it also skips
# the values of an object's __dict__ that is still inlined in the object, so cache.set(k, vars(x)) would escape
# the test; other interpreters promise nothing.
_VISITS = sys.implementation.name == "cpython" and sys.version_info < (3, 13)
children: Callable[[Sequence[object], set[type]], list[object]] = (
    _children_visited if _VISITS else _children_iterated
)


def is_plain(value: object) -> bool:
    """Whether ``value`` is built of dict, list, None, bool, int, float, str and bytes alone, by exact type.

    Dict keys are leaves of these types too. Level by level, so that each level is a few calls in C. A value nested
    deeper than MAX_DEPTH (or in itself) is not plain: the slow path finds out and says so.
    """
    kind = type(value)
    if kind is not dict and kind is not list:
        return kind in PLAIN_LEAVES
    level = children((value,), {kind})
    for _ in range(MAX_DEPTH):
        kinds = set(map(type, level))
        if PLAIN_LEAVES.issuperset(kinds):
            return True
        if not _PLAIN.issuperset(kinds):
            return False
        level = children(level, kinds)
    return False


# --- leaves that are marked: name, number, to text, from text -------------------------------------------------


def _zone_suffix(value: datetime | time) -> str:
    """What isoformat leaves out: ``~`` for fold=1, ``@Europe/Berlin`` for a named zone."""
    zone = value.tzinfo
    named = f"@{zone.key}" if type(zone) is ZoneInfo and zone.key else ""
    if zone is not None and value.utcoffset() is None and not named:
        raise refuse(zone, "$", "gives no UTC offset and has no name to be stored by")
    return ("~" if value.fold else "") + named


def _moment_to_text(value: datetime | time) -> str:
    return value.isoformat() + _zone_suffix(value)


def _split_moment(text: str) -> tuple[str, int, str]:
    rest, _, key = text.partition("@")
    return rest.removesuffix("~"), int(rest.endswith("~")), key


def _zone(key: str) -> tzinfo | None:
    try:
        return ZoneInfo(key)
    except (KeyError, ValueError, OSError):  # unknown here, a path, a folder of the zone files
        return None


def _datetime_from_text(text: str) -> datetime:
    iso, fold, key = _split_moment(text)
    value = datetime.fromisoformat(iso).replace(fold=fold)
    zone = _zone(key) if key else None
    if zone is None:  # a zone that this host does not know leaves the stored offset: the same instant
        return value
    named = value.replace(tzinfo=zone)
    # The zone's rules may have changed since: the instant counts, not the wall clock.
    return named if named.utcoffset() == value.utcoffset() else value.astimezone(zone)


def _time_from_text(text: str) -> time:
    iso, fold, key = _split_moment(text)
    value = time.fromisoformat(iso).replace(fold=fold)
    if key:
        zone = _zone(key)
        if zone is None:
            raise ValueError("unknown time zone")
        value = value.replace(tzinfo=zone)
    return value


def _timedelta_from_text(text: str) -> timedelta:
    days, seconds, micros = text.split(",")
    return timedelta(int(days), int(seconds), int(micros))


def _int_from_text(text: str) -> int:
    return int(text, 16)  # hexadecimal: linear in its length, where decimal text is quadratic and capped


def _str_from_text(text: str) -> str:
    return bytes.fromhex(text).decode("utf-8", "surrogatepass")


def _bytes_from_text(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


class LeafMark(NamedTuple):
    """How one type that the wire format lacks is written as text, in either codec."""

    name: str
    code: int
    to_text: Callable[[Any], str]
    from_text: Callable[[str], object]


# Codes and names are part of the wire format: never reuse one.
LEAF_MARKS: Final[dict[type, LeafMark]] = {
    int: LeafMark("int", 5, lambda v: f"{v:x}", _int_from_text),
    str: LeafMark("str", 6, lambda v: v.encode("utf-8", "surrogatepass").hex(), _str_from_text),
    datetime: LeafMark("datetime", 7, _moment_to_text, _datetime_from_text),
    date: LeafMark("date", 8, date.isoformat, date.fromisoformat),
    time: LeafMark("time", 9, _moment_to_text, _time_from_text),
    timedelta: LeafMark(
        "timedelta", 10, lambda v: f"{v.days},{v.seconds},{v.microseconds}", _timedelta_from_text
    ),
    Decimal: LeafMark("decimal", 11, str, Decimal),
    UUID: LeafMark("uuid", 12, lambda v: v.hex, UUID),
    bytes: LeafMark("bytes", 13, lambda v: base64.b64encode(v).decode(), _bytes_from_text),
    float: LeafMark("float", 14, repr, float),
}
CONTAINER_MARKS: Final[dict[type, tuple[str, int]]] = {
    tuple: ("tuple", 1),
    set: ("set", 2),
    frozenset: ("frozenset", 3),
    dict: ("dict", 4),
}
_BY_NAME: Final = {mark.name: mark.from_text for mark in LEAF_MARKS.values()}
_BY_CODE: Final = {mark.code: mark.from_text for mark in LEAF_MARKS.values()}


def leaf_from_text(which: str | int, text: str) -> object:
    """Return the leaf that a mark's name or code and its text stand for.

    Raises:
        KeyError: no such mark.
        ValueError, ArithmeticError: the text is not of that kind (Decimal's error is an ArithmeticError).
    """
    return (_BY_NAME[which] if isinstance(which, str) else _BY_CODE[which])(text)


def needs_text(value: object) -> bool:
    """Whether an int or str, though of a plain type, is outside what msgspec can write."""
    if type(value) is int:
        return not _INT_MIN <= value <= _INT_MAX
    if type(value) is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # a lone surrogate
            return True
    return False


def leaf_mark(value: object) -> LeafMark:
    """Return the mark for a leaf that is not plain.

    Raises:
        EncodeError: there is none, so the value cannot be stored without a type.
    """
    mark = LEAF_MARKS.get(type(value))
    if mark is None:
        raise refuse(value, "$")
    return mark


def _members(value: object) -> Iterator[tuple[str, object]]:
    kind = type(value)
    if kind is dict:
        for index, (key, member) in enumerate(value.items()):  # type: ignore[attr-defined]
            # A long key, or one that is not text, is named by its place: keys may be payload as well.
            short = type(key) is str and len(key) <= 40 and key.isidentifier()
            yield f".{key}" if short else f"[{index}]", member
            if type(key) is not str:
                yield f"[key {index}]", key
    elif kind in (list, tuple):
        yield from ((f"[{i}]", member) for i, member in enumerate(value))  # type: ignore[var-annotated, arg-type]
    elif kind in (set, frozenset):
        yield from (("[…]", member) for member in value)  # type: ignore[attr-defined]


def locate(value: object, fallback: str) -> EncodeError:
    """Return the error for the first value inside ``value`` that has no untyped form, with its path.

    Only called once encoding has failed, so that nobody pays for paths otherwise.
    """
    storable = PLAIN_LEAVES | LEAF_MARKS.keys()
    stack: list[tuple[str, object, int]] = [("$", value, 0)]
    while stack:
        path, here, depth = stack.pop()
        kind = type(here)
        if kind in CONTAINER_MARKS or kind is list:
            if depth >= MAX_DEPTH:
                return EncodeError(
                    f"a value nested deeper than {MAX_DEPTH} containers (or in itself) cannot be stored"
                )
            stack.extend((path + step, member, depth + 1) for step, member in reversed(list(_members(here))))
        elif kind not in storable:
            return refuse(here, path)
    return EncodeError(fallback)
