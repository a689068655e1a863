"""Values with a type: what a type needs to be stored and to come back as exactly itself.

A type is examined once and gets a ``TypePlan``. Three ways exist:

* *native*: msgspec writes and reads the type directly. Aware datetimes are written as ISO text first, since
  msgspec's MessagePack timestamp would turn 12:00+02:00 into 10:00 UTC.
* *lowered*: the type has fields of type Any, custom (pydantic) classes or the like. The value is turned into builtin
  types with datetimes, Decimals and so on kept, stored as untyped values are, and converted back on reading.
* *open*: the type is made of builtins and Any alone (``dict[str, Any]``, ``list``). The value is stored as untyped
  values are: a set under Any stays a set.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from types import NoneType
from typing import Any, Final, get_args
from uuid import UUID

import msgspec

from cachewright.codecs.base import SUPPORTED, refuse, type_name
from cachewright.errors import DecodeError, EncodeError

__all__ = ["TypePlan", "is_supported", "plan_for"]

_KEPT: Final = (bytes, datetime, date, time, timedelta, Decimal, UUID)
# Kinds of msgspec.inspect that only say how builtins are combined.
_BUILTIN_KINDS: Final = frozenset(
    f"{name}Type"
    for name in (
        *(
            "Any",
            "None",
            "Bool",
            "Int",
            "Float",
            "Str",
            "Bytes",
            "ByteArray",
            "MemoryView",
            "Decimal",
            "UUID",
        ),
        *("DateTime", "Time", "Date", "TimeDelta"),
        *("List", "Set", "FrozenSet", "VarTuple", "Tuple", "Dict", "Union"),
    )
)
_EXACT_ROOTS: Final = ("StructType", "DataclassType", "NamedTupleType", "EnumType", "CustomType")
_SCALARS: Final = frozenset({NoneType, bool, int, str, bytes, *_KEPT})


def _pydantic() -> Any | None:
    # Who has a pydantic model has imported pydantic: nothing is imported for those who do not use it.
    return sys.modules.get("pydantic")


def _is_model(type_: Any) -> bool:
    pydantic = _pydantic()
    return pydantic is not None and isinstance(type_, type) and issubclass(type_, pydantic.BaseModel)


def _mentions_model(type_: Any) -> bool:
    return _is_model(type_) or any(map(_mentions_model, get_args(type_)))


def _dump_model(value: Any) -> object:
    """The hook of msgspec for what it does not know: pydantic models, nothing else."""
    if not _is_model(type(value)):
        raise refuse(value, "$")
    # warnings="error": a field that holds a subclass's instance would be cut down to the declared fields.
    return value.model_dump(mode="python", round_trip=True, by_alias=False, warnings="error")


def _load_model(type_: type, stored: Any) -> object:
    if isinstance(stored, type_):
        return stored
    if not _is_model(type_):
        raise ValueError(f"{type_name(type_)} cannot be built from stored bytes")
    try:
        # By field name whatever its aliases; not strict, since an Enum was stored as its value.
        return type_.model_validate(stored, strict=False, by_alias=False, by_name=True)  # type: ignore[attr-defined]
    except ValueError as error:
        raise _validation(error) from None


def _validation(error: ValueError) -> ValueError:
    """Keep only kind and place of pydantic's errors, which quote the input."""
    details = getattr(error, "errors", None)
    if details is None:
        return ValueError("the model refused the stored value")
    found = details(include_url=False, include_context=False, include_input=False)
    first = found[0] if found else {"type": "invalid", "loc": ()}
    place = ".".join(str(step)[:40] for step in first["loc"][:8])
    return ValueError(f"Expected a valid model: {first['type']} at {place or '$'}")


def _kinds(info: Any, seen: set[int]) -> Iterator[Any]:
    """Yield every node of a type's description, each once (types may be recursive)."""
    if isinstance(info, tuple):
        for member in info:
            yield from _kinds(member, seen)
    elif isinstance(info, msgspec.Struct) and id(info) not in seen:
        seen.add(id(info))
        yield info
        for name in info.__struct_fields__:
            if name not in ("default", "default_factory", "extra", "extra_json_schema"):
                yield from _kinds(getattr(info, name), seen)


class TypePlan:
    """How values of one type are stored.

    Attributes:
        native: whether msgspec's own encoding of the value is exact.
    """

    def __init__(self, type_: Any) -> None:
        """Examine ``type_``.

        Raises:
            TypeError: values of this type cannot be stored.
        """
        self.type_ = type_
        self._adapter: Any | None = None
        self._root: type | None = None
        try:
            self._examine(type_)
        except TypeError:
            # msgspec takes no unions of several models, pydantic does.
            self._adapter = self._pydantic_adapter(type_)
            self.native, self._open, self._dated, self._root = False, False, False, None  # half examined

    def _examine(self, type_: Any) -> None:
        info = msgspec.inspect.type_info(type_)
        nodes = list(_kinds(info, set()))
        customs = {node.cls for node in nodes if type(node).__name__ == "CustomType"}
        unknown = [cls for cls in customs if cls is not object and not _is_model(cls)]
        if unknown:
            raise TypeError(f"{type_name(unknown[0])} cannot be stored")
        names = {"AnyType" if getattr(node, "cls", None) is object else type(node).__name__ for node in nodes}
        self.native = "AnyType" not in names and "CustomType" not in names
        self._open = not self.native and names <= _BUILTIN_KINDS
        self._dated = bool(names & {"DateTimeType", "TimeType"})
        self._root = type_ if isinstance(type_, type) and type(info).__name__ in _EXACT_ROOTS else None
        # Built here so that a type that msgspec refuses is refused now, not at the first read.
        self.from_msgpack: Callable[..., object] = msgspec.msgpack.Decoder(type_, dec_hook=_load_model).decode
        self.from_json: Callable[..., object] = msgspec.json.Decoder(type_, dec_hook=_load_model).decode

    @staticmethod
    def _pydantic_adapter(type_: Any) -> Any:
        pydantic = _pydantic()
        # Only for its own models: whether A | B of dataclasses is supported must not hang on an import elsewhere.
        if pydantic is None or not _mentions_model(type_):
            raise TypeError(f"{type_name(type_)} cannot be stored")
        try:
            return pydantic.TypeAdapter(type_)
        except Exception as error:
            # Whatever pydantic raises while it builds a schema (it has several families) means the same here.
            raise TypeError(f"{type_name(type_)} cannot be stored") from error

    def check(self, value: object) -> None:
        """Refuse a value that is certainly not of the type: it would come back as something else, or not at all.

        A subclass's instance, too: a ``Circle`` under ``-> Shape`` would return as a ``Shape``.
        """
        kind = type(value)
        if self._root is not None:
            fits = kind is self._root
        elif self.type_ in _SCALARS:
            # Under a builtin's own annotation its subclasses become the builtin, but True is not 1.
            fits = kind is self.type_ or (
                isinstance(value, self.type_) and not isinstance(value, (bool, datetime))
            )
        else:
            return
        if not fits:
            raise EncodeError(
                f"{type_name(kind)} cannot be stored as {type_name(self.type_)}; return exactly that type, "
                "or correct type=… (or the loader's return annotation)"
            )

    def lower_dates(self, value: object) -> object:
        """Return what msgspec may write natively in MessagePack."""
        return msgspec.to_builtins(value, builtin_types=(bytes,)) if self._dated else value

    def lower(self, value: object) -> object:
        """Return ``value`` in types that round-trip untyped.

        Raises:
            EncodeError: it is not of this type, or holds what cannot be stored.
        """
        if self._open:
            return value
        self.check(value)
        try:
            if self._adapter is not None:
                dump = self._adapter.dump_python
                dumped = dump(value, mode="python", round_trip=True, by_alias=False, warnings="error")
                lowered = msgspec.to_builtins(dumped, builtin_types=_KEPT, enc_hook=_dump_model)
                self._refuse_ambiguous(value, lowered)
                return lowered
            # Natively, everything but bytes has one text form that the type tells apart from text.
            kept = (bytes,) if self.native else _KEPT
            return msgspec.to_builtins(value, builtin_types=kept, enc_hook=_dump_model)
        except EncodeError:
            raise
        except Exception as error:
            # Anything: a model's own serializers run here.
            raise self.encode_error(value, error) from None

    def _refuse_ambiguous(self, value: object, lowered: object) -> None:
        # A | B with the same fields: what was a B would come back as an A. repr, since NaN equals nothing.
        back = self.lift(lowered)
        if back != value and repr(back) != repr(value):
            raise EncodeError(
                f"{type_name(type(value))} would come back from {type_name(self.type_)} as something else; "
                "give the union's models a discriminator field"
            )

    def lift(self, stored: object) -> object:
        """Return the value of this type that its stored, untyped form stands for.

        Raises:
            ValueError: it does not fit (msgspec's ValidationError is one).
        """
        if self._adapter is not None:
            try:
                return self._adapter.validate_python(stored, strict=False, by_alias=False, by_name=True)
            except ValueError as error:
                raise _validation(error) from None
        return msgspec.convert(stored, self.type_, dec_hook=_load_model)

    def encode_error(self, value: object, error: BaseException) -> EncodeError:
        """Say that ``value`` could not be written, without quoting it."""
        detail = type(error).__name__
        if isinstance(error, TypeError) and str(error).startswith("Encoding objects of type"):
            detail = str(error)[:200]
        return EncodeError(f"{type_name(type(value))} cannot be stored as {type_name(self.type_)}: {detail}")


@lru_cache(maxsize=1024)
def _cached_plan(type_: Any) -> TypePlan | str:
    try:
        return TypePlan(type_)
    except TypeError as error:
        return str(error)[:300]


def plan_for(type_: Any) -> TypePlan:
    """Return the plan of a type, examined once.

    Raises:
        EncodeError, DecodeError: as one error that is both, where values of this type cannot be stored.
    """
    try:
        plan = _cached_plan(type_)
    except TypeError:  # an annotation that cannot be hashed
        plan = _cached_plan.__wrapped__(type_)
    if isinstance(plan, str):
        raise UnsupportedTypeError(
            f"values of type {type_name(type_)} cannot be stored: {plan}; {SUPPORTED} and builtin types can"
        )
    return plan


class UnsupportedTypeError(EncodeError, DecodeError):
    """The wanted type is none that bytes can be turned into, on either way."""


def is_supported(type_: Any) -> bool:
    """Whether values of this type can be stored and read back."""
    try:
        plan_for(type_)
    except UnsupportedTypeError:
        return False
    return True
