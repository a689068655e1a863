# ruff: noqa: DTZ001, DTZ901 - naive datetimes are values under test
"""Untyped values: exact round trips in both codecs, refusals, and damage."""

from __future__ import annotations

import collections
import enum
import math
import struct
import typing
import zoneinfo
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachewright.codecs import values
from cachewright.codecs.base import MAX_DEPTH, Codec
from cachewright.codecs.json import JsonCodec
from cachewright.codecs.msgpack import MsgpackCodec
from cachewright.errors import DecodeError, EncodeError

CODECS = [MsgpackCodec(), JsonCodec()]
both = pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.name)
quick = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def shape(value: Any) -> Any:
    """What must be equal: types, order, the sign of zero, the bits of NaN's kind, offset, fold and zone."""
    kind = type(value)
    if kind is float:
        return kind, "nan" if math.isnan(value) else struct.pack(">d", value)
    if kind in (list, tuple):
        return kind, [shape(v) for v in value]
    if kind in (set, frozenset):
        return kind, {shape_key(v) for v in value}
    if kind is dict:
        return kind, [(shape(k), shape(v)) for k, v in value.items()]
    if kind in (datetime, time):
        named = value.tzinfo.key if isinstance(value.tzinfo, zoneinfo.ZoneInfo) else None
        return kind, value.isoformat(), value.fold, named
    return kind, str(value) if kind is Decimal else value


def shape_key(value: Any) -> Any:
    """The same for what stands in sets, hashable."""
    kind = type(value)
    if kind in (tuple, frozenset):
        return kind, kind(map(shape_key, value))
    return kind, value


zones = st.one_of(
    st.none(),
    st.just(UTC),
    st.integers(-86399, 86399).map(lambda s: timezone(timedelta(seconds=s))),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kolkata"]).map(zoneinfo.ZoneInfo),
)
text = st.text(st.characters())  # lone surrogates included
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.integers(0, 2**20).map(lambda n: 7**n if n < 9000 else n),
    st.floats(),
    text,
    st.binary(),
    st.sampled_from(["$tuple", "$dict", "$x", " ", '{"$'])
    | st.builds(lambda z, m, f: m.replace(tzinfo=z, fold=f), zones, st.datetimes(), st.integers(0, 1)),
    st.builds(lambda z, m, f: m.replace(tzinfo=z, fold=f), zones, st.times(), st.integers(0, 1)),
    st.dates(),
    st.timedeltas(),
    st.decimals(allow_nan=True, allow_infinity=True),
    st.uuids(),
)
# Keys without NaN: equal only to itself, by identity.
plain_keys = st.one_of(
    st.none(), st.booleans(), st.integers(), text, st.binary(), st.sampled_from(["$set", "$"])
)
keys = st.recursive(
    plain_keys, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=4).map(tuple),
        st.sets(keys, max_size=4),
        st.frozensets(keys, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(st.sampled_from(["a", "$tuple", "$dict", "$int", "$x"]), inner, max_size=2),
    ),
    max_leaves=25,
)


@both
@quick
@given(value=trees)
def test_every_builtin_value_comes_back_as_it_is(codec: Codec, value: Any) -> None:
    data = codec.encode(value, b"")
    assert shape(codec.decode(data, b"")) == shape(value)
    assert shape(codec.decode(memoryview(data), b"")) == shape(value)


@both
@pytest.mark.parametrize(
    "value",
    [
        None, False, 0, "", b"", [], (), {}, set(), frozenset(), -0.0, 2**64, -(2**63) - 1, 7**20000,
        float("inf"), "\ud800", {"\udfff": 1}, {"a": {"b": (1, [2, {3}])}}, {1: "int", "1": "str"}, {(1, 2): 3},
        {None: 1, True: 2, 1.5: 3, b"k": 4}, {2**70: 1}, {"$tuple": [1, 2]}, {"$dict": []}, {"$unknown": 1},
        [{"$tuple": [1]}, (1,)], {"$int": "ff", "b": (1,)}, [{"$dict": [[1, 2]]}, {1}], ("ab", "cd"), {("a", "b"): "cd"},
        Decimal("1.10"), Decimal("-0E+7"), Decimal("sNaN12"), UUID(int=7), timedelta(-1, 1, 1), timedelta.min,
        date.min, datetime.max, datetime(2024, 10, 27, 2, 30, fold=1), time(23, 59, 59, 999999),
        datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        time(2, 30, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        datetime(1890, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Amsterdam")),
    ],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_awkward_values(codec: Codec, value: Any) -> None:
    assert shape(codec.decode(codec.encode(value, b""), b"")) == shape(value)


def test_ordinary_values_are_what_any_reader_understands() -> None:
    value = {"id": 1, "tags": ["a"], "deep": {"x": None, "y": 1.5}, "$tuple": [1]}
    assert msgspec.msgpack.decode(MsgpackCodec().encode(value, b"")) == value
    assert MsgpackCodec().encode(value, b"") == msgspec.msgpack.encode(value)
    assert JsonCodec().encode(value, b"") == msgspec.json.encode(value)
    assert msgspec.json.decode(JsonCodec().encode({"t": (1,)}, b"")) == {"t": {"$tuple": [1]}}


class Text(str):
    __slots__ = ()


class Level(enum.IntEnum):
    LOW = 1


class Point(typing.NamedTuple):
    x: int


class Rows(list[int]):
    pass


@both
@pytest.mark.parametrize(
    "odd",
    [
        collections.OrderedDict(a=1), collections.defaultdict(list), Text("x"), Level.LOW, Point(1), Rows([1]),
        object(), 1j, range(3), bytearray(b"x"), memoryview(b"x"), msgspec.msgpack.Ext(1, b"\x90"), Exception("x"),
        msgspec.Raw(b"1"), {}.keys(), int, len,
    ],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda v: v, ""),
        (lambda v: [1, {"user": v}], "at $[1].user"),
        (lambda v: ({"a": {1}}, (v,)), "at $[1][0]"),
        (lambda v: {"secret key!": v}, "at $[0]"),
    ],
)
def test_what_would_change_its_type_is_refused_with_its_place(
    codec: Codec, odd: Any, wrap: Any, path: str
) -> None:
    with pytest.raises(EncodeError) as caught:
        codec.encode(wrap(odd), b"")
    assert type(odd).__name__ in str(caught.value)
    assert path in str(caught.value)
    assert "give its type" in str(caught.value) or "not a supported class" in str(caught.value)
    assert "secret" not in str(caught.value)


@both
def test_odd_keys_are_refused(codec: Codec) -> None:
    for key in (Text("x"), Level.LOW, Point(1), object()):
        with pytest.raises(EncodeError, match=type(key).__name__):
            codec.encode({"a": {key: 1}}, b"")


@both
def test_an_objects_own_dict_is_looked_into(codec: Codec) -> None:
    class Holder:
        def __init__(self) -> None:
            self.pair, self.odd = (1, 2), 1

    assert codec.decode(codec.encode(vars(Holder()), b""), b"") == {"pair": (1, 2), "odd": 1}
    assert codec.decode(codec.encode([{1: 2, 3: 4}, vars(Holder())], b""), b"")[1]["pair"] == (1, 2)  # type: ignore[index]


@quick
@given(value=trees)
def test_both_ways_of_looking_for_special_values_agree(value: Any) -> None:
    def plain(children: Any) -> bool:
        level: Any = (value,)
        while True:
            kinds = set(map(type, level))
            if not {type(None), bool, int, float, str, bytes, list, dict} >= kinds:
                return False
            if not {list, dict} & kinds:
                return True
            level = children(level, kinds)

    assert values.is_plain(value) == plain(values._children_iterated)
    if values._VISITS:
        assert values.is_plain(value) == plain(values._children_visited)


@both
def test_depth_is_bounded_and_the_same_for_all(codec: Codec) -> None:
    for wrap in (
        lambda v: [v],
        lambda v: (v,),
        lambda v: {"k": v},
        lambda v: {1: v},
        lambda v: frozenset([v]),
    ):
        value: Any = 1
        for _ in range(MAX_DEPTH):
            value = wrap(value)
        read = codec.decode(codec.encode(value, b""), b"")
        assert type(read) is type(value)
        assert read == value
        with pytest.raises(EncodeError, match=f"deeper than {MAX_DEPTH}"):
            codec.encode(wrap(value), b"")


@both
def test_a_value_inside_itself_is_refused(codec: Codec) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(EncodeError, match="in itself"):
        codec.encode(loop, b"")
    with pytest.raises(EncodeError, match="in itself"):
        codec.encode({"a": (loop,)}, b"")


def test_a_zone_that_is_unknown_here_leaves_the_instant() -> None:
    moment = datetime(2024, 6, 1, 12, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
    codec = JsonCodec()
    data = codec.encode(moment, b"")
    for key in (b"Europe/Nowhere", b"../../etc/passwd", b"Europe", b"\\u0000", b"/etc/passwd", b""):
        read = codec.decode(data.replace(b"Europe/Berlin", key), b"")
        assert read == moment
        assert isinstance(read, datetime)
        assert read.utcoffset() == timedelta(hours=2)
    # The zone's rules changed since: the instant stands, the wall clock follows the zone.
    read = codec.decode(data.replace(b"+02:00", b"+05:00"), b"")
    assert read == datetime(2024, 6, 1, 7, tzinfo=UTC)


# --- damage and hostility -----------------------------------------------------------------------------------

SAMPLES: list[Any] = [
    {"a": [1, 2.5, None, True], "b": "text", "c": b"bytes"},
    (1, {2, 3}, frozenset(["x"])),
    {"when": datetime(2024, 1, 1, tzinfo=UTC), "d": Decimal("1.5"), "u": UUID(int=3), "n": 2**70},
    {(1, 2): timedelta(1), None: date(2024, 1, 1), 1.5: time(1, 2)},
    [
        "\ud800",
        float("nan"),
        datetime(2024, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC")),
    ],
]


def decodes_or_refuses(codec: Codec, data: bytes, type_: Any = None) -> None:
    try:
        codec.decode(data, b"", type_)
    except DecodeError:
        pass


@both
@pytest.mark.parametrize("sample", SAMPLES, ids=range(len(SAMPLES)))
def test_cut_and_flipped_bytes_give_a_value_or_a_decode_error(codec: Codec, sample: Any) -> None:
    data = codec.encode(sample, b"")
    for type_ in (None, dict[str, Any], dict[str, int], tuple[int, ...]):
        for end in range(len(data)):
            decodes_or_refuses(codec, data[:end], type_)
        for bit in range(len(data) * 8):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            decodes_or_refuses(codec, bytes(flipped), type_)
    if codec.name == "msgpack":
        with pytest.raises(DecodeError):
            codec.decode(data + b"\x00", b"")


@both
@settings(max_examples=2000, deadline=None)
@given(data=st.binary(max_size=60))
def test_any_bytes_give_a_value_or_a_decode_error(codec: Codec, data: bytes) -> None:
    decodes_or_refuses(codec, data)
    decodes_or_refuses(codec, b" " + data)


def nested_tuples(depth: int) -> bytes:
    """Ext in ext, each the lone member of an array, as only a forger writes it beyond our depth."""
    data = b"\x90"
    for _ in range(depth):
        data = b"\xc9" + struct.pack(">I", len(data)) + b"\x01" + data
        data = b"\x91" + data
    return data


@pytest.mark.parametrize(
    "data",
    [
        b"\x91" * 1_000_000 + b"\xc0",
        b"\x81\xa1a" * 300_000 + b"\xc0",
        b"\x81" * 300_000,
        nested_tuples(MAX_DEPTH + 2),
        nested_tuples(3000),
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff" + b"\x01" * 100,
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xc7\x02\x02\x91\x90",  # a set with a list in it
        b"\xc7\x02\x04\x91\x01",  # pairs that are none
        b"\xc7\x01\x04\xa0",  # a text in place of pairs
        b"\xd6\x04\x91\x92\x90\x01",  # a list as a key
        b"\xd4\x05z", b"\xd4\x06z", b"\xd4\x07z", b"\xd4\x0bz", b"\xd4\x0cz", b"\xd4\x63z", b"\xd4\x80z",
        b"\xd4\x01\xc0", b"\xd4\x00z", b"\xc7\x00\x07", b"\xd4\x0b\xff",
        b"\xc7\x0c\xff" + b"\xff" * 12,
        b"\xa1\xff",
        b"",
        b"\xc1",
    ],
    ids=range(28),
)  # fmt: skip
def test_hostile_messagepack(data: bytes) -> None:
    with pytest.raises(DecodeError):
        MsgpackCodec().decode(data, b"")


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 1_000_000,
        b'{"a":' * 300_000,
        b" " + b'{"$tuple":[' * 50_000 + b"]}" * 50_000,
        b"1" * 1_000_000,
        b"1e999999999",
        b' {"$set":[[1]]}',
        b' {"$set":[{}]}',
        b' {"$dict":[1]}',
        b' {"$dict":[[[1],2]]}',
        b' {"$dict":{}}',
        b' {"$tuple":"ab"}',
        b' {"$int":"zz"}',
        b' {"$int":1}',
        b' {"$decimal":"x"}',
        b' {"$uuid":"x"}',
        b' {"$bytes":"*"}',
        b' {"$unknown":"x"}',
        b' {"$":"x"}',
        b' {"$timedelta":"999999999999999999999,0,0"}',
        b'"\xff"',
        b'"\\ud800"',
        b"",
        b" ",
    ],
    ids=range(23),
)
def test_hostile_json(data: bytes) -> None:
    with pytest.raises(DecodeError):
        JsonCodec().decode(data, b"")


@both
def test_messages_never_quote_the_payload(codec: Codec) -> None:
    class Colour(enum.Enum):
        RED = "red"

    data = codec.encode({"colour": "hunter2"}, b"")
    for type_ in (
        dict[str, Colour],
        dict[str, typing.Literal["a"]],
        dict[str, int],
        dict[str, UUID],
        dict[str, date],
    ):
        with pytest.raises(DecodeError) as caught:
            codec.decode(data, b"", type_)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__suppress_context__
