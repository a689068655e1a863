"""Values written as key text, so that no two different values of any types are written alike.

Two forms. :func:`render` is the outer one, for a value that stands in a key by itself::

    1    -1    1.0    None    True    word    "any other text"    and canonical JSON for the rest

:func:`canonical` is the inner one, JSON with a mark before whatever JSON has no form for::

    null true 1 1.0 "text" [1,2] {"a":1} tuple[1,2] set[1,2] bytes"AQI=" datetime"2024-01-01T00:00:00"
    @module:Class{"field":1}   (dataclass, attrs, msgspec, pydantic)     @module:Color"RED"   (Enum)

Why two values never meet: bare words, numbers and marks consist of ``BARE`` characters only, and what
follows a mark is ``"``, ``[`` or ``{``, each closed by its partner. So a reader who starts at the first
character of a value can tell where it ends and what it was; the tests have such a reader.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from functools import cached_property
from typing import Any
from uuid import UUID

from cachewright.errors import InvalidKeyError

__all__ = ["BARE", "OPENERS", "canonical", "class_name", "module_name", "render"]

BARE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
"""The characters of words, numbers and marks."""

OPENERS = frozenset('"[{')
"""What follows a mark."""

MAX_DEPTH = 64
MAX_TEXT = 8 * 1024 * 1024

# \w would let non-ASCII letters stand bare, and two spellings of "é" look alike on a screen.
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*").fullmatch
_NAME = re.compile(r"[\w.<>-]+").fullmatch
# These stand for the constants.
_CONSTANTS = frozenset({"None", "True", "False"})
_quote = json.JSONEncoder(ensure_ascii=False).encode
# Value types of the standard library whose str() is the whole value; not worth importing for everyone.
_BY_STR = frozenset(
    {("fractions", "Fraction")}
    | {("pathlib", name) for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")}
    | {("ipaddress", f"IPv{v}{kind}") for v in (4, 6) for kind in ("Address", "Network", "Interface")}
)


def render(value: object) -> str:
    """Write ``value`` as it stands in a key by itself.

    Raises:
        InvalidKeyError: it has no form that is the same in every process.
    """
    if type(value) is int:
        return _int(value)
    if type(value) is str:
        return value if _WORD(value) and value not in _CONSTANTS else _text(value)
    if value is None or type(value) is bool:
        return str(value)
    return canonical(value)


def canonical(value: object, depth: int = 0) -> str:
    """Write ``value`` as JSON with marks, the inner form.

    Raises:
        InvalidKeyError: as :func:`render`.
    """
    kind = type(value)
    scalar = _SCALARS.get(kind)
    if scalar is not None:
        return scalar(value)
    if depth >= MAX_DEPTH:
        raise InvalidKeyError(f"it is nested deeper than {MAX_DEPTH} levels, or contains itself")
    container = _CONTAINERS.get(kind)
    text = container(value, depth + 1) if container is not None else _object(value, kind, depth + 1)
    # Sharing makes a small object a huge text: a list that holds one list twice, forty levels deep.
    if len(text) > MAX_TEXT:
        raise InvalidKeyError(f"it makes more than {MAX_TEXT:,} characters")
    return text


def module_name(module: str) -> str:
    """Return the name of a module that is the same however it was started.

    ``python -m shop.jobs`` calls it ``__main__`` and a spawned child ``__mp_main__``; importers say
    ``shop.jobs``. All must find the same entries. And two scripts that share a server, each of them
    ``__main__``, must not: a script goes by its file's name.
    """
    if module not in ("__main__", "__mp_main__"):
        return module
    main = sys.modules.get(module)
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name)
    file = getattr(main, "__file__", None)
    return os.path.splitext(os.path.basename(file))[0] if file else "__main__"


def class_name(cls: type) -> str:
    """Return ``module:qualified.name`` of a class (``:`` keeps class ``b.C`` of module ``a`` from ``C`` of ``a.b``)."""
    return f"{module_name(cls.__module__)}:{cls.__qualname__}"


def _mark(cls: type) -> str:
    # A class made by type() may have any name, even one that holds our brackets.
    name = class_name(cls)
    return f"@{name}" if _NAME(name.replace(":", "", 1)) else f"@{_text(name)}"


def _text(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidKeyError("it holds text that UTF-8 cannot encode (a lone surrogate)") from None
    return _quote(value)


def _int(value: int) -> str:
    # str() of a long int raises, above a limit that each process may set for itself.
    return str(value) if value.bit_length() <= 1024 else f'int"{value:x}"'


def _float(value: float) -> str:
    if value != value or value in (float("inf"), float("-inf")):
        return f'float"{value!r}"'  # bare, they would be the words nan and inf
    return repr(value).replace("+", "")


def _moment(value: datetime | time) -> str:
    text = value.isoformat()
    zone = value.tzinfo
    # 12:00+01:00 in Berlin and in Lagos are one instant, but a day later they are not.
    if zone is not None and type(zone) is not timezone:
        name = getattr(zone, "key", None) or getattr(zone, "zone", None) or value.tzname()
        text += f"[{name}]"
    return _text(text + "(fold)" if value.fold else text)


def _span(value: timedelta) -> str:
    # pandas counts further than the base that it extends.
    finer = getattr(value, "nanoseconds", 0)
    return f'timedelta"{value.days}d{value.seconds}.{value.microseconds:06}{f"{finer:03}" if finer else ""}s"'


_SCALARS: dict[type, Callable[[Any], str]] = {
    str: _text,
    int: _int,
    bool: lambda value: "true" if value else "false",
    type(None): lambda value: "null",
    float: _float,
    complex: lambda value: f'complex"{value!r}"',
    bytes: lambda value: f'bytes"{base64.b64encode(value).decode("ascii")}"',
    bytearray: lambda value: f'bytearray"{base64.b64encode(value).decode("ascii")}"',
    datetime: lambda value: f"datetime{_moment(value)}",
    date: lambda value: f'date"{value.isoformat()}"',
    time: lambda value: f"time{_moment(value)}",
    timedelta: _span,
    # 1.0 and 1.00 are equal but calculate differently, so they are two keys.
    # (And the context says whether str() writes 1E+3 or 1e+3.)
    Decimal: lambda value: f'Decimal"{Decimal.__str__(value).upper()}"',
    UUID: lambda value: f'UUID"{UUID.__str__(value)}"',
    type(...): lambda value: 'Ellipsis""',
    range: lambda value: f"range[{_int(value.start)},{_int(value.stop)},{_int(value.step)}]",
}


def _list(values: Iterable[object], depth: int) -> str:
    return f"[{','.join([canonical(value, depth) for value in values])}]"


def _set(values: Iterable[object], depth: int) -> str:
    return f"[{','.join(sorted([canonical(value, depth) for value in values]))}]"


def _dict(values: Mapping[Any, object], depth: int) -> str:
    if all(type(key) is str for key in values):
        return f"{{{','.join([f'{_text(key)}:{canonical(values[key], depth)}' for key in sorted(values)])}}}"
    pairs = sorted(f"[{canonical(key, depth)},{canonical(value, depth)}]" for key, value in values.items())
    return f"dict[{','.join(pairs)}]"


_CONTAINERS: dict[type, Callable[[Any, int], str]] = {
    list: _list,
    dict: _dict,
    tuple: lambda value, depth: f"tuple{_list(value, depth)}",
    set: lambda value, depth: f"set{_set(value, depth)}",
    frozenset: lambda value, depth: f"frozenset{_set(value, depth)}",
    # Unlike dicts, two of these are equal only in the same order.
    OrderedDict: lambda value, depth: f"OrderedDict{_list(value.items(), depth)}",
}

# For subclasses: the nearest base first (a datetime is a date).
_PLAIN: tuple[tuple[type, Callable[[Any], object]], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (complex, complex.__pos__),
    (bytes, lambda value: bytes(memoryview(value))),
    (bytearray, lambda value: bytearray(memoryview(value))),
    (tuple, lambda value: tuple(tuple.__iter__(value))),
    (list, lambda value: list(list.__iter__(value))),
    (OrderedDict, lambda value: OrderedDict(OrderedDict.items(value))),
    (dict, lambda value: dict(dict.items(value))),
    (set, lambda value: set(set.__iter__(value))),
    (frozenset, lambda value: frozenset(frozenset.__iter__(value))),
)
_TEXTUAL: tuple[type, ...] = (datetime, date, time, timedelta, Decimal, UUID)


def _object(value: Any, kind: type, depth: int) -> str:
    """Write a value that is not of a plain built-in type."""
    own = getattr(kind, "__cache_key__", None)
    if own is not None:
        text = own(value)
        if not isinstance(text, str):
            raise InvalidKeyError(
                f"{kind.__qualname__}.__cache_key__() returned a {type(text).__qualname__}, not a str"
            )
        return f"{_mark(kind)}{_text(str.__str__(text))}"
    if isinstance(value, type):
        return f"type{_text(class_name(value))}"
    if isinstance(value, Enum):
        # A combination of flags has no name of its own.
        return f"{_mark(kind)}{_list([value.value], depth) if isinstance(value, Flag) else _text(value.name)}"
    names = _field_names(value, kind)
    if names is not None:
        try:
            fields = {name: getattr(value, name) for name in names}
        except AttributeError as error:
            raise InvalidKeyError(
                f"a {kind.__qualname__} whose field {error.name!r} is not set has no key"
            ) from None
        return (
            f"{_mark(kind)}{_dict({**fields, **(getattr(value, '__pydantic_extra__', None) or {})}, depth)}"
        )
    if (kind.__module__.partition(".")[0], kind.__qualname__) in _BY_STR:
        return f"{kind.__qualname__}{_text(str(value))}"
    # A subclass is another type, and says so, with what its instances hold beside the base's value: a
    # pendulum.Duration of one month is a timedelta of thirty days and more than that.
    for base in _TEXTUAL:
        if isinstance(value, base):
            return f"{_mark(kind)}[{_SCALARS[base](value)}{_state(value, kind, depth)}]"
    for base, plain in _PLAIN:
        if isinstance(value, base):
            return f"{_mark(kind)}[{canonical(plain(value), depth)}{_state(value, kind, depth)}]"
    # A repr is no way out: it holds an address, or may leave out what does not fit on a screen.
    raise InvalidKeyError(f"a {kind.__qualname__} has no stable form for a key")


def _state(value: Any, kind: type, depth: int) -> str:
    held = getattr(value, "__dict__", None) or {}
    # What a cached_property keeps there follows from the rest.
    state = {
        name: item
        for name, item in held.items()
        if not isinstance(getattr(kind, name, None), cached_property)
    }
    return f",{_dict(state, depth)}" if state else ""


def _field_names(value: Any, kind: type) -> Iterable[str] | None:
    """Return the field names of a dataclass, msgspec, attrs or pydantic instance, else ``None``."""
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value)]
    for attribute in ("__struct_fields__", "__pydantic_fields__"):
        names = getattr(kind, attribute, None)
        if names is not None:
            return list(names)
    attributes = getattr(kind, "__attrs_attrs__", None)
    return None if attributes is None else [attribute.name for attribute in attributes]
