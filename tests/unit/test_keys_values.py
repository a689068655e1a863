"""No two values are written alike: shown by a reader that gets every value back from its text."""

from __future__ import annotations

import base64
import dataclasses
import enum
import fractions
import ipaddress
import json
import pathlib
import re
import sys
import uuid
from collections import Counter, OrderedDict, defaultdict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Context, Decimal, localcontext
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachewright.errors import InvalidKeyError
from cachewright.key_values import canonical, module_name, render

BARE = re.compile(r"[A-Za-z0-9_.-]*")
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
CONSTANTS: dict[str, Any] = {"null": None, "true": True, "false": False}
SCALARS: dict[str, Any] = {
    "float": float,
    "int": lambda text: int(text, 16),
    "bytes": base64.b64decode,
    "Decimal": Decimal,
    "UUID": uuid.UUID,
    "date": date.fromisoformat,
}


def number(word: str) -> Any:
    return int(word) if re.fullmatch(r"-?\d+", word) else float(word)


class Reader:
    """Reads what canonical() wrote, by the grammar that key_values documents."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        assert found is not None
        self.at = found.end()
        return found.group()

    def value(self) -> Any:
        mark = self.take(BARE)
        opener = self.text[self.at : self.at + 1]
        if not opener or opener not in '"[{':
            return CONSTANTS[mark] if mark in CONSTANTS else number(mark)
        if opener == '"':
            text = json.loads(self.take(QUOTED))
            return SCALARS[mark](text) if mark else text
        items = self.items()
        if opener == "{":
            return dict(items)
        makers: dict[str, Any] = {"": list, "tuple": tuple, "set": set, "frozenset": frozenset, "dict": dict}
        return makers[mark](items)

    def items(self) -> list[Any]:
        opener = self.text[self.at]
        closer = "]" if opener == "[" else "}"
        self.at += 1
        found: list[Any] = []
        while self.text[self.at] != closer:
            if found:
                assert self.text[self.at] == ","
                self.at += 1
            item = self.value()
            if opener == "{":
                assert self.text[self.at] == ":"
                self.at += 1
                item = (item, self.value())
            found.append(item)
        self.at += 1
        return found


def read(text: str) -> Any:
    reader = Reader(text)
    value = reader.value()
    assert reader.at == len(text)
    return value


def read_outer(text: str) -> Any:
    if text in ("None", "True", "False"):
        return {"None": None, "True": True, "False": False}[text]
    return text if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", text) else read(text)


def exact(value: Any) -> Any:
    """What makes a value itself: types included, 0.0 apart from -0.0, NaN equal to NaN."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, tuple(map(exact, value))
    if kind in (set, frozenset):
        return kind, frozenset(map(exact, value))
    if kind is dict:
        return kind, frozenset((exact(key), exact(item)) for key, item in value.items())
    return kind, repr(value) if kind in (float, Decimal) else value


NASTY = ["None", "null", "1", "-1", "1.0", "", "a:b", '"', "\\", "[", "tuple[1]", "a,b", "é", "set", "@m:C"]
texts = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
hashables = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.binary(max_size=8)
    | st.decimals().filter(lambda value: not value.is_snan())  # has no hash
    | st.uuids()
    | st.dates()
)
keys = st.recursive(
    hashables, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4
)
values = st.recursive(
    hashables,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(texts, inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3)
        | st.sets(keys, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=400)
@given(values)
def test_every_value_can_be_read_back(value: object) -> None:
    assert exact(read(canonical(value))) == exact(value)
    assert exact(read_outer(render(value))) == exact(value)


@given(st.dictionaries(texts | st.integers(), texts, max_size=5), st.randoms())
def test_the_order_of_dicts_and_sets_does_not_matter(mapping: dict[Any, Any], random: Any) -> None:
    shuffled = list(mapping.items())
    random.shuffle(shuffled)
    assert render(dict(shuffled)) == render(mapping)
    assert render({key for key, _ in shuffled}) == render(set(mapping))


@dataclasses.dataclass
class Point:
    x: int
    y: object = 0


@dataclasses.dataclass
class Spot(Point):
    pass


class Struct(msgspec.Struct):
    x: int


@attrs.define
class Attrs:
    x: int


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    x: int


class Color(enum.Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796 - an alias is the same member
    BLUE = "RED"


class Level(enum.IntEnum):
    LOW = 1


class Perm(enum.Flag):
    R = 1
    W = 2


class UserId(int):
    pass


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "another"


class Month(timedelta):
    months = 0

    @cached_property
    def derived(self) -> object:
        return object()


class Keyed:
    def __init__(self, key: Any) -> None:
        self.key = key

    def __cache_key__(self) -> Any:
        return self.key


Pair = namedtuple("Pair", "a b")


def month(count: int) -> Month:
    made = Month(days=30)
    made.months = count
    return made


DIFFERENT: list[Any] = [
    1, -1, 0, True, False, None, 1.0, 0.0, -0.0, 1e16, float("nan"), float("inf"), -float("inf"), 1 + 0j, 10**400, 10**401,
    "1", "None", "True", "null", "nan", "inf", "1.0", "", "a", "a:b", "a b", "-1", "[]", "é", "e\u0301", "a.b", ".a", "...",
    b"1", b"", bytearray(b"1"), [], (), {}, set(), frozenset(), [1], (1,), {1}, frozenset({1}), [[1]], [(1,)], [1, 2], [2, 1], ["1"],
    ["1", "2"], ["1,2"], ['1","2'], [None], ["None"], [True], [1.0], {1: 2}, {"1": 2}, {"a": {"b": 1}}, {"a": "b"},
    {(1, 2): 3}, [[1, 2], 3], [1, [2, 3]], ..., range(3), range(1, 3), OrderedDict(a=1, b=2), OrderedDict(b=2, a=1),
    {"a": 1, "b": 2}, defaultdict(int, a=1), Counter("a"), Pair(1, 2), (1, 2), "2024-01-01", date(2024, 1, 1),
    datetime(2024, 1, 1), datetime(2024, 1, 1, fold=1), datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, 0, 0, 0, 1),  # noqa: DTZ001
    datetime(2024, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), datetime(2024, 1, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")),
    datetime(2024, 1, 1, 1, tzinfo=ZoneInfo("Africa/Lagos")), time(1), time(1, tzinfo=UTC), time(1, tzinfo=ZoneInfo("Africa/Lagos")),
    timedelta(1), timedelta(-1), timedelta(0, 1), timedelta(0, 0, 1), month(0), month(1), Decimal(1), Decimal("1.0"), Decimal("1E+3"),
    Decimal(1000), Decimal("NaN"), Decimal("sNaN"), uuid.UUID(int=1), str(uuid.UUID(int=1)), fractions.Fraction(1, 2),
    pathlib.PurePosixPath("/a"), "/a", ipaddress.ip_address("::1"), ipaddress.ip_network("::1"), ipaddress.ip_address(1),
    Color.RED, Color.BLUE, Level.LOW, Perm.R, Perm.W, Perm.R | Perm.W, Perm(0), UserId(1), Text("a"), int, str, Point, Point(1),
    Point(1, 1), Point(1, "1"), Point(1, Point(1)), Spot(1), Struct(1), Attrs(1), Model(x=1), Model.model_validate({"x": 1, "y": 2}), Model.model_validate({"x": 1, "z": 2}),
    Keyed("a"), Keyed("b"), [Keyed("a")],
]  # fmt: skip


def test_different_values_are_written_differently() -> None:
    for write in (render, canonical):
        seen: dict[str, Any] = {}
        for value in DIFFERENT:
            text = write(value)
            assert text not in seen, f"{value!r} and {seen[text]!r} are both {text}"
            seen[text] = value
            text.encode()


def test_equal_values_are_written_alike() -> None:
    assert render(Color.RED) == render(Color.CRIMSON)
    assert render({"a": 1, "b": [2]}) == render({"b": [2], "a": 1})
    assert render({3, 1, 2}) == render({2, 3, 1})
    assert render(Point(1, {"b", "a"})) == render(Point(1, {"a", "b"}))
    used = month(1)
    assert used.derived is not None
    assert render(used) == render(month(1))
    with localcontext(Context(capitals=0)):
        small = render(Decimal("1E+30"))
    assert small == render(Decimal("1E+30"))


def test_the_forms() -> None:
    here = __name__
    assert [render(value) for value in (1, -1, 1.0, None, True, "a-b.c_1")] == [
        "1",
        "-1",
        "1.0",
        "None",
        "True",
        "a-b.c_1",
    ]
    assert render("1") == '"1"'
    assert render("None") == '"None"'
    assert render(["a", None, True, 1, ("b",)]) == '["a",null,true,1,tuple["b"]]'
    assert render({"b": 1, "a": "x"}) == '{"a":"x","b":1}'
    assert render(Point(1, "a")) == f'@{here}:Point{{"x":1,"y":"a"}}'
    assert render(Color.RED) == f'@{here}:Color"RED"'
    assert render(UserId(1)) == f"@{here}:UserId[1]"
    assert render(Text("a")) == f'@{here}:Text["a"]'
    assert render(Keyed("k")) == f'@{here}:Keyed"k"'
    assert render(Point) == f'type"{here}:Point"'


def test_a_class_of_any_name_is_quoted() -> None:
    odd = type('a"[1]', (UserId,), {"__module__": "m"})
    assert render(odd(1)) == '@"m:a\\"[1]"[1]'


@pytest.mark.parametrize(
    "value",
    [
        object(),
        lambda: None,
        len,
        re.compile("a"),
        iter([]),
        memoryview(b"a"),
        sys,
        Ellipsis.__repr__,
        {}.keys(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_stable_form_is_refused(value: object) -> None:
    for held in (value, [value], {"a": value}, Point(1, value)):
        with pytest.raises(InvalidKeyError, match=type(value).__qualname__):
            render(held)


def test_lone_surrogates_are_refused_everywhere() -> None:
    for held in ("\ud800", ["\ud800\udc00"], {"\udfff": 1}, Keyed("\ud800")):
        with pytest.raises(InvalidKeyError, match="surrogate"):
            render(held)


def test_depth_cycles_and_size_are_limited() -> None:
    deep: list[Any] = []
    for _ in range(63):
        deep = [deep]
    assert render(deep)
    with pytest.raises(InvalidKeyError, match="nested deeper"):
        render([deep])
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(InvalidKeyError, match="contains itself"):
        render(ring)
    doubled: list[Any] = ["x" * 100]
    for _ in range(40):
        doubled = [doubled, doubled]
    with pytest.raises(InvalidKeyError, match="characters"):
        render(doubled)


def test_a_cache_key_method_must_return_a_str() -> None:
    with pytest.raises(InvalidKeyError, match=r"__cache_key__\(\) returned a int, not a str"):
        render(Keyed(1))


def test_a_field_that_is_not_set_is_named() -> None:
    point = Point(1)
    del point.x
    with pytest.raises(InvalidKeyError, match="'x' is not set"):
        render(point)


def test_a_main_module_goes_by_the_name_that_others_know_it_by(monkeypatch: pytest.MonkeyPatch) -> None:
    class Main:
        __spec__: Any = None
        __file__ = "/srv/jobs.py"

    monkeypatch.setitem(sys.modules, "__main__", Main)
    assert module_name("__main__") == "jobs"
    monkeypatch.setitem(sys.modules, "__mp_main__", Main)
    assert module_name("__mp_main__") == "jobs"
    Main.__spec__ = type("Spec", (), {"name": "shop.jobs"})
    assert module_name("__main__") == "shop.jobs"
    monkeypatch.setitem(sys.modules, "__main__", object())
    assert module_name("__main__") == "__main__"
    assert module_name("shop") == "shop"
