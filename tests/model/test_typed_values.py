"""Values of whatever type come back as they were: types are drawn too, nested in each other, with values of them."""

from __future__ import annotations

import dataclasses
import enum
import itertools
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachewright.codecs.base import Codec
from cachewright.codecs.json import JsonCodec
from cachewright.codecs.msgpack import MsgpackCodec


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Drawn(NamedTuple):
    """A type, how values of it are drawn, and whether they may stand in a set."""

    type: Any
    values: st.SearchStrategy[Any]
    hashable: bool = True


# Under a type a moment is ISO text, which has its offset, and no fold; without a type it keeps that too.
zones = st.none() | st.just(UTC) | st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m)))
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
LEAVES = [
    Drawn(type(None), st.none()),
    Drawn(bool, st.booleans()),
    Drawn(int, st.integers(-(2**63), 2**64 - 1)),
    Drawn(float, st.floats(allow_nan=False)),
    Drawn(str, text),
    Drawn(bytes, st.binary(max_size=8)),
    Drawn(datetime, st.builds(lambda d, z: d.replace(tzinfo=z, fold=0), st.datetimes(), zones)),
    Drawn(date, st.dates()),
    Drawn(time, st.builds(lambda t, z: t.replace(tzinfo=z, fold=0), st.times(), zones)),
    Drawn(timedelta, st.timedeltas(timedelta(days=-99999), timedelta(days=99999))),
    Drawn(Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    Drawn(UUID, st.uuids()),
    Drawn(Colour, st.sampled_from(Colour)),
    Drawn(Level, st.sampled_from(Level)),
]
numbers = itertools.count()


def record(kind: str, parts: list[Drawn]) -> Drawn:
    """A dataclass or struct with these fields."""
    name = f"Made{next(numbers)}"
    fields = [(f"f{n}", part.type) for n, part in enumerate(parts)]
    made: Any = (
        dataclasses.make_dataclass(name, fields) if kind == "dataclass" else msgspec.defstruct(name, fields)
    )
    return Drawn(made, st.builds(made, *(part.values for part in parts)), False)


def optional(one: Drawn) -> Drawn:
    return Drawn(one.type | None, one.values | st.none(), one.hashable)


def several(one: Drawn) -> Drawn:
    return Drawn(list.__class_getitem__(one.type), st.lists(one.values, max_size=3), False)


def row(one: Drawn) -> Drawn:
    type_ = tuple.__class_getitem__((one.type, ...))
    return Drawn(type_, st.lists(one.values, max_size=3).map(tuple), one.hashable)


def couple(two: tuple[Drawn, Drawn]) -> Drawn:
    one, other = two
    type_ = tuple.__class_getitem__((one.type, other.type))
    return Drawn(type_, st.tuples(one.values, other.values), one.hashable and other.hashable)


def group(one: Drawn) -> Drawn:
    if not one.hashable:
        return several(one)
    return Drawn(frozenset.__class_getitem__(one.type), st.frozensets(one.values, max_size=3))


def mapping(one: Drawn, key: type) -> Drawn:
    keys: Any = text if key is str else st.integers(-9, 9)
    return Drawn(
        dict.__class_getitem__((key, one.type)), st.dictionaries(keys, one.values, max_size=3), False
    )


def nested(inner: st.SearchStrategy[Drawn]) -> st.SearchStrategy[Drawn]:
    return st.one_of(
        inner.filter(lambda one: one.type is not type(None)).map(optional),
        inner.map(several),
        inner.map(row),
        inner.map(group),
        st.tuples(inner, inner).map(couple),
        st.builds(mapping, inner, st.sampled_from([str, int])),
        st.builds(record, st.sampled_from(["dataclass", "struct"]), st.lists(inner, max_size=3)),
    )


drawn = st.recursive(st.sampled_from(LEAVES), nested, max_leaves=5)


@pytest.mark.parametrize("codec", [MsgpackCodec(), JsonCodec()], ids=lambda codec: codec.name)
@pytest.mark.parametrize("examples", [250, pytest.param(5000, marks=pytest.mark.soak)])
def test_a_value_of_any_type_comes_back(codec: Codec, examples: int) -> None:
    @settings(max_examples=examples)
    @given(st.data())
    def check(data: Any) -> None:
        one = data.draw(drawn)
        value = data.draw(one.values)
        stored = codec.encode(value, b"", one.type)
        read: Any = codec.decode(stored, b"", one.type)
        assert (type(read), read) == (type(value), value)
        assert repr(read) == repr(value) or "set(" in repr(value)
        codec.decode(stored, b"")  # its builtin form is a value too

    check()
