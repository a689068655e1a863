# ruff: noqa: DTZ001, UP045 - naive datetimes and the old spelling of unions are values under test
"""Values with a type: each kind comes back as exactly itself, wrong bytes are refused."""

from __future__ import annotations

import collections
import enum
import functools
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, Optional, ParamSpec, TypedDict, TypeVar
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from cachewright.codecs.annotations import loader_type
from cachewright.codecs.base import Codec
from cachewright.codecs.json import JsonCodec
from cachewright.codecs.msgpack import MsgpackCodec
from cachewright.codecs.typed import is_supported
from cachewright.errors import DecodeError, EncodeError

CODECS = [MsgpackCodec(), JsonCodec()]
both = pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.name)
EAST = timezone(timedelta(hours=2))


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


@dataclass
class User:
    id: int
    name: str
    born: date = date(2000, 1, 1)
    seen: datetime = datetime(2024, 5, 1, 12, tzinfo=EAST)
    tags: set[str] = field(default_factory=set)
    price: Decimal = Decimal("1.10")
    pair: tuple[int, str] = (1, "a")
    raw: bytes = b"\xff"
    ratio: float = 0.5
    friend: User | None = None


class Struct(msgspec.Struct):
    id: int
    colour: Colour = Colour.RED
    uid: UUID = UUID(int=5)


class Cat(msgspec.Struct, tag=True):
    name: str


class Dog(msgspec.Struct, tag=True):
    name: str


class Model(pydantic.BaseModel):
    id: int = pydantic.Field(alias="ID")
    when: datetime = datetime(2024, 1, 1, tzinfo=EAST)
    tags: frozenset[str] = frozenset({"a"})
    amount: Decimal = Decimal("1.10")
    colour: Colour = Colour.RED
    uid: UUID = UUID(int=1)
    blob: bytes = b"\xff\x00"


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    when: datetime = datetime(2024, 1, 1, tzinfo=UTC)
    tags: set[int] = {1}
    colour: Colour = Colour.RED


class Sub(Model):
    more: int = 1


class Twin(pydantic.BaseModel):
    id: int


class Other(pydantic.BaseModel):
    id: int


class Nest(pydantic.BaseModel):
    inner: Model


class Holder(msgspec.Struct):
    model: Model
    models: dict[str, list[Strict]]


@attrs.define
class Attr:
    id: int
    name: str = "x"


class Dict(TypedDict):
    id: int
    when: datetime


class Named(NamedTuple):
    a: int
    b: str = "b"


@dataclass
class Free:
    data: Any
    when: datetime


T = TypeVar("T")
P = ParamSpec("P")


@dataclass
class Page(Generic[T]):
    items: list[T]


KINDS: list[tuple[Any, Any]] = [
    (User, User(1, "a", tags={"x", "y"}, friend=User(2, "b"))),
    (Struct, Struct(1)),
    (Struct, Struct(2**70)),
    (Model, Model(ID=1)),
    (Strict, Strict()),
    (Nest, Nest(inner=Model(ID=2))),
    (Holder, Holder(Model(ID=1), {"k": [Strict()]})),
    (Attr, Attr(1)),
    (Dict, {"id": 1, "when": datetime(2024, 1, 1, tzinfo=EAST)}),
    (Named, Named(1)),
    (Colour, Colour.RED),
    (Level, Level.LOW),
    (Literal["a", 1], "a"),
    (Optional[User], None),
    (User | None, User(1, "a")),
    (Cat | Dog, Dog("rex")),
    (Model | None, Model(ID=1)),
    (Model | Strict, Strict()),
    (list[Model | Strict], [Strict(), Model(ID=3)]),
    (Model | int, 3),
    (list[Model], [Model(ID=1), Model(ID=2)]),
    (dict[str, Model], {"a": Model(ID=1)}),
    (dict[int, User], {1: User(1, "a"), 2: User(2, "b")}),
    (list[User], [User(1, "a")]),
    (tuple[User, ...], (User(1, "a"),)),
    (tuple[int, str], (1, "a")),
    (set[int], {1, 2}),
    (frozenset[UUID], frozenset({UUID(int=1)})),
    (Page[int], Page([1])),
    (list[Named], [Named(1), Named(2)]),
    (Free, Free({"when": datetime(2024, 1, 1), "t": Decimal("1.0")}, datetime(2024, 1, 1, tzinfo=EAST))),
    (dict[str, Any], {"s": {1}, "t": (1, 2), "d": datetime(2024, 1, 1)}),
    (dict[str, object], {"s": {1}, "t": (1, 2)}),
    (list, [1, (2,), {3}]),
    (Annotated[int, msgspec.Meta(ge=0)], 3),
    (datetime, datetime(2024, 1, 1, tzinfo=EAST)),
    (datetime, datetime(2024, 1, 1)),
    (Decimal, Decimal("1.10")),
    (UUID, UUID(int=9)),
    (timedelta, timedelta(seconds=1.5)),
    (bytes, b"\x00\xff"),
    (int, 2**80),
    (str, "\ud800"),
    (float, float("inf")),
    (float | None, float("-inf")),
    (bool, False),
]


@both
@pytest.mark.parametrize(("type_", "value"), KINDS, ids=[str(k) for k, _ in KINDS])
def test_each_kind_comes_back_as_itself(codec: Codec, type_: Any, value: Any) -> None:
    data = codec.encode(value, b"", type_)
    read: Any = codec.decode(data, b"", type_)
    assert type(read) is type(value)
    assert read == value
    assert repr(read) == repr(value) or isinstance(value, (set, frozenset, User))
    codec.decode(data, b"")  # its builtin form, whatever that is


@both
def test_an_aware_datetime_keeps_its_offset(codec: Codec) -> None:
    for type_, value in ((User, User(1, "a")), (list[datetime], [datetime(2024, 5, 1, 12, tzinfo=EAST)])):
        read: Any = codec.decode(codec.encode(value, b"", type_), b"", type_)
        moment = read.seen if type_ is User else read[0]
        assert moment.utcoffset() == timedelta(hours=2)


@both
def test_typed_then_read_without_a_type_is_the_builtin_form(codec: Codec) -> None:
    assert codec.decode(codec.encode(Attr(1), b"", Attr), b"") == {"id": 1, "name": "x"}
    assert codec.decode(codec.encode([Struct(1)], b"", list[Struct]), b"") == [
        {"id": 1, "colour": "red", "uid": str(UUID(int=5))}
    ]


@both
def test_untyped_then_read_with_a_type_is_converted_where_it_fits(codec: Codec) -> None:
    stored = codec.encode({"id": 1, "when": datetime(2024, 1, 1, tzinfo=EAST)}, b"")
    assert codec.decode(stored, b"", Dict) == {"id": 1, "when": datetime(2024, 1, 1, tzinfo=EAST)}
    assert codec.decode(codec.encode((1, "a"), b""), b"", tuple[int, str]) == (1, "a")
    assert codec.decode(codec.encode({"id": 1}, b""), b"", Attr) == Attr(1)
    assert codec.decode(codec.encode({"id": 1}, b""), b"", Model | None) == Model(ID=1)
    with pytest.raises(DecodeError, match="Expected `int`, got `str`"):
        codec.decode(codec.encode({"id": "1"}, b""), b"", Attr)


def test_a_mark_look_alike_in_typed_json_is_data() -> None:
    codec = JsonCodec()
    value = {"$tuple": [1, 2]}
    assert codec.decode(codec.encode(value, b"", dict[str, list[int]]), b"", dict[str, list[int]]) == value
    assert codec.decode(codec.encode(value, b"", dict[str, list[int]]), b"") == value


@both
@pytest.mark.parametrize(
    "type_", [t for t, _ in KINDS], ids=lambda value: re.sub(r" at 0x\w+", "", str(value))
)
def test_bytes_of_another_type_are_refused(codec: Codec, type_: Any) -> None:
    wrong = {"no": {"such": ["thing"]}}
    if type_ in (dict[str, Any], dict[str, object], Strict, Model | Strict):
        wrong = ["no"]  # type: ignore[assignment]
    with pytest.raises(DecodeError):
        codec.decode(codec.encode(wrong, b""), b"", type_)


@both
@pytest.mark.parametrize(("type_", "value"), KINDS, ids=[str(k) for k, _ in KINDS])
def test_cut_and_flipped_typed_bytes(codec: Codec, type_: Any, value: Any) -> None:
    data = codec.encode(value, b"", type_)
    for end in range(len(data)):
        with pytest.raises(DecodeError):
            codec.decode(data[:end], b"", type_)
            # A shorter number is a number.
            if codec.name == "json" and data.lstrip()[:1].isdigit():
                raise DecodeError
    for bit in range(0, len(data) * 8, 1 + len(data) // 100):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            codec.decode(bytes(flipped), b"", type_)
        except DecodeError:
            pass


@both
@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (Model, Sub(ID=1)), (Twin | Model, Sub(ID=1)), (Twin | Other, Other(id=1)), (User, Attr(1)), (User, {"id": 1}), (int, True), (int, "1"),
        (str, 1), (date, datetime(2024, 1, 1)), (Colour, "red"), (Struct, None), (list[int], [object()]),
        (dict[str, Any], {"a": object()}), (dict[str, Any], collections.OrderedDict()), (list[Model], [object()]),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", str(value)),
)  # fmt: skip
def test_what_is_not_of_the_type_is_refused_at_the_store(codec: Codec, type_: Any, value: Any) -> None:
    with pytest.raises(EncodeError):
        codec.encode(value, b"", type_)


@both
def test_a_builtins_subclass_becomes_the_builtin_that_the_type_names(codec: Codec) -> None:
    read = codec.decode(codec.encode(Level.LOW, b"", int), b"", int)
    assert type(read) is int
    assert codec.decode(
        codec.encode(collections.OrderedDict(a=1), b"", dict[str, int]), b"", dict[str, int]
    ) == {"a": 1}


class Alien:
    pass


@both
def test_a_type_that_cannot_be_stored_says_so(codec: Codec) -> None:
    assert not is_supported(Alien)
    assert is_supported(Model | Strict)
    assert not is_supported(User | Attr)
    assert not is_supported(list[list[int] | set[int]])
    with pytest.raises(EncodeError, match="Alien"):
        codec.encode(Alien(), b"", Alien)
    with pytest.raises(DecodeError, match="Alien"):
        codec.decode(codec.encode({}, b""), b"", list[Alien])


@both
def test_code_of_the_user_that_raises_while_reading_is_a_decode_error(codec: Codec) -> None:
    @dataclass
    class Angry:
        id: int

        def __post_init__(self) -> None:
            if self.id > 1:
                raise RuntimeError("hunter2")

    class Grumpy(pydantic.BaseModel):
        id: int

        @pydantic.field_validator("id")
        @classmethod
        def check(cls, value: int) -> int:
            if value > 1:
                raise KeyError("hunter2")
            return value

    for type_ in (Angry, Grumpy):
        with pytest.raises(DecodeError) as caught:
            codec.decode(codec.encode({"id": 2}, b""), b"", type_)
        assert "hunter2" not in str(caught.value)


def test_pydantic_errors_do_not_quote_the_input() -> None:
    codec = MsgpackCodec()
    for type_ in (Model, Model | Nest):
        with pytest.raises(DecodeError) as caught:
            codec.decode(codec.encode({"id": "hunter2"}, b""), b"", type_)
        assert "hunter2" not in str(caught.value)
        assert "id" in str(caught.value)


def test_a_secret_field_is_not_stored_in_clear_by_accident() -> None:
    class Login(pydantic.BaseModel):
        password: pydantic.SecretStr

    with pytest.raises(EncodeError, match="SecretStr") as caught:
        MsgpackCodec().encode(Login(password=pydantic.SecretStr("hunter2")), b"", Login)
    assert "hunter2" not in str(caught.value)


# --- annotations of loaders ---------------------------------------------------------------------------------


class Entry(Generic[T]):
    pass


def plain() -> User: ...  # type: ignore[empty-body]
async def coroutine() -> list[User]: ...  # type: ignore[empty-body]
def awaitable() -> Awaitable[User]: ...  # type: ignore[empty-body]
def coro_type() -> Coroutine[Any, Any, User | None]: ...  # type: ignore[empty-body]
def entry() -> Entry[User]: ...  # type: ignore[empty-body]
def maybe_entry() -> User | Entry[User]: ...  # type: ignore[empty-body]
def bare_entry() -> Entry: ...  # type: ignore[empty-body]
def missing(): ...
def anything() -> Any: ...
def an_object() -> object: ...
def nothing() -> None: ...
def unresolvable() -> NoSuchType: ...  # type: ignore[name-defined]  # noqa: F821
def odd_parameter(db: NoSuchType) -> User: ...  # type: ignore[name-defined, empty-body]  # noqa: F821
def unsupported() -> Alien: ...  # type: ignore[empty-body]
def variable(x: T) -> T: ...  # type: ignore[empty-body]
def annotated() -> Annotated[int, msgspec.Meta(ge=0)]: ...  # type: ignore[empty-body]
def many() -> Mapping[int, User]: ...  # type: ignore[empty-body]
def many_entries() -> dict[int, Entry[User]]: ...  # type: ignore[empty-body]
async def many_async() -> dict[str, User]: ...  # type: ignore[empty-body]


def wraps(func: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(func)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return func(*args, **kwargs)

    return wrapper


def hides(func: Callable[P, T]) -> Callable[P, T]:
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return func(*args, **kwargs)

    return wrapper


class Service:
    def method(self) -> User: ...  # type: ignore[empty-body]
    @classmethod
    def class_method(cls) -> User: ...  # type: ignore[empty-body]
    @staticmethod
    def static() -> User: ...  # type: ignore[empty-body]
    def __call__(self) -> User: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("func", "expected"),
    [
        (plain, User), (coroutine, list[User]), (awaitable, User), (coro_type, User | None), (missing, None),
        (anything, None), (an_object, None), (nothing, None), (unresolvable, None), (odd_parameter, User),
        (unsupported, None), (variable, None), (annotated, Annotated[int, msgspec.Meta(ge=0)]), (wraps(plain), User),
        (hides(plain), None), (Service().method, User), (Service.class_method, User), (Service.static, User),
        (Service(), User), (functools.partial(plain), User), (functools.partial(Service().method), User),
        (lambda: 1, None), (len, None), (User, User), (Alien, None), (entry, User), (maybe_entry, User),
        (bare_entry, None),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", str(value)),
)  # fmt: skip
def test_loader_type(func: Any, expected: Any) -> None:
    assert loader_type(func, (Entry,)) == expected


def test_loader_type_of_local_classes_and_of_many() -> None:
    @dataclass
    class Local:
        id: int

    def load() -> Local:
        return Local(1)

    assert loader_type(load) is Local
    assert loader_type(many, many=True) is User
    assert loader_type(many_entries, (Entry,), many=True) is User
    assert loader_type(many_async, many=True) is User
    assert loader_type(plain, many=True) is None


class Plain:
    """A class that no codec knows."""


@dataclass
class WithPlain:
    inner: object


@both
@pytest.mark.parametrize("value", [Plain(), [Plain()], {"a": {"b": Plain()}}, object(), 1j])
def test_a_class_that_is_not_supported_is_not_asked_for_its_type(codec: Codec, value: Any) -> None:
    # Where the loader says "-> Plain", to ask for the annotation again would lead nowhere.
    with pytest.raises(
        EncodeError, match=r"is not a supported class: dataclass, msgspec\.Struct, attrs"
    ) as caught:
        codec.encode(value, b"")
    assert "give its type" not in str(caught.value)
    with pytest.raises(EncodeError, match="is not a supported class"):
        codec.encode(WithPlain(Plain()), b"", WithPlain)


@both
@pytest.mark.parametrize(
    "value",
    [Attr(1), Struct(1), Model(ID=1), Named(1, "x"), Colour.RED, collections.OrderedDict(a=1)],
    ids=lambda value: type(value).__name__,
)
def test_a_class_that_needs_its_type_is_asked_for_it(codec: Codec, value: Any) -> None:
    with pytest.raises(EncodeError, match="give its type"):
        codec.encode(value, b"")
