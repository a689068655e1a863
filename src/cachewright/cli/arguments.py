"""What a line of JSON says to call: arguments of a function, or an id, in the types that its annotations name.

The types matter: the key of a date is not that of the string that JSON has for it, so a key would be warmed that nobody
asks for.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from cachewright.keys import shorten

__all__ = ["WrongLine", "calls", "ids", "lines"]


class WrongLine(Exception):
    """A line that says nothing to call; the text tells why."""


def calls(function: Callable[..., Any], bound: tuple[Any, ...]) -> Callable[[str], Any]:
    """What reads a line for a function: a list of arguments, an object of them by name, or the only one."""
    signature = inspect.signature(functools.partial(function, *bound))
    hints = _hints(function)

    def read(line: str) -> Any:
        found = _json(line)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        if isinstance(found, dict):
            kwargs = found
        else:
            args = found if isinstance(found, list) else [found]
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise WrongLine(str(error)) from None
        for name, value in given.arguments.items():
            kind, hint = signature.parameters[name].kind, hints.get(name, Any)
            if kind is inspect.Parameter.VAR_POSITIONAL:
                given.arguments[name] = tuple(_converted(name, one, hint) for one in value)
            elif kind is inspect.Parameter.VAR_KEYWORD:
                given.arguments[name] = {word: _converted(word, one, hint) for word, one in value.items()}
            else:
                given.arguments[name] = _converted(name, value, hint)
        # Each as it was given, by place or by name: `Signature` gives by name what may be either only by name.
        return given.args if not given.kwargs else _by_name(signature, given)

    return read


def ids(load: Callable[..., Any], *, many: bool) -> Callable[[str], Any]:
    """What reads a line for a repository: one id. ``many``: the loader takes a list of them."""
    names = [name for name, one in inspect.signature(load).parameters.items() if one.kind < one.VAR_KEYWORD]
    hint = _hints(load).get(names[0], Any) if names else Any
    if many:
        hint = next(iter(typing.get_args(hint)), Any)

    def read(line: str) -> Any:
        return _converted("id", _json(line), hint)

    return read


def _by_name(signature: inspect.Signature, given: inspect.BoundArguments) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in given.arguments.items():
        kind = signature.parameters[name].kind
        if kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL):
            raise WrongLine("arguments by place only and arguments by name only cannot both be given")
        found |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return found


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # names that only a type checker knows
        return {}


def _json(line: str) -> Any:
    try:
        return msgspec.json.decode(line.encode())
    except (msgspec.DecodeError, UnicodeError) as error:
        hint = f'; a string is written "{line}"' if line.isidentifier() else ""
        raise WrongLine(f"{shorten(line)} is no JSON: {error}{hint}") from None


def _converted(name: str, value: Any, hint: Any) -> Any:
    if hint is Any or isinstance(hint, typing.TypeVar):
        return value
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        raise WrongLine(f"{name}: {error}") from None
    except TypeError:  # a class of the user's that msgspec does not know
        raise WrongLine(f"{name}: JSON has no word for a {getattr(hint, '__name__', hint)}") from None


def lines(texts: Iterable[str]) -> Iterable[tuple[int, str]]:
    """Number and text of those that are not empty."""
    for number, text in enumerate(texts, 1):
        if text.strip():
            yield number, text.strip()
