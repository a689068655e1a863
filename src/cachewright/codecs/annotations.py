"""The type of a loader's values, read from its return annotation."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

from cachewright.codecs.typed import is_supported

__all__ = ["loader_type"]

_AWAITABLE: Final = (Awaitable, Coroutine)
_UNTYPED: Final = (Any, object, NoneType, None, inspect.Signature.empty)


def loader_type(
    func: Callable[..., object], wrappers: tuple[type, ...] = (), *, many: bool = False
) -> Any | None:
    """Return the type that a loader's values are stored as, or None: store them as they are.

    None for a missing or unresolvable annotation, ``Any``, ``object``, type variables, and for types that cannot be
    built from bytes (their values are refused when they are stored, where a tier needs bytes at all).

    Args:
        func: the loader: a function, method, partial, callable object, sync or async, decorated or not.
        wrappers: generic classes around the value, as in ``-> Entry[User]``.
        many: the loader returns a mapping from keys to values; the values' type is wanted.
    """
    annotation = _unwrapped(_return_annotation(func), wrappers)
    if many:
        arguments = get_args(annotation)
        origin = get_origin(annotation)
        if not (isinstance(origin, type) and issubclass(origin, Mapping) and len(arguments) == 2):
            return None
        annotation = _unwrapped(arguments[1], wrappers)
    if annotation in _UNTYPED or isinstance(annotation, TypeVar):
        return None
    return annotation if is_supported(annotation) else None


def _return_annotation(func: Any) -> Any:
    while isinstance(func, functools.partial):
        func = func.func
    if inspect.isclass(func):
        return func
    if not hasattr(func, "__annotations__"):
        func = getattr(type(func), "__call__", func)  # noqa: B004 - the function itself is wanted
    func = inspect.unwrap(getattr(func, "__func__", func))
    annotation = getattr(func, "__annotations__", {}).get("return")
    if annotation is None:
        return None
    # Only the return annotation: a parameter's may name what is imported for the type checker alone.
    names = dict(getattr(func, "__globals__", {}))
    code, cells = getattr(func, "__code__", None), getattr(func, "__closure__", None) or ()
    for name, cell in zip(getattr(code, "co_freevars", ()), cells, strict=False):
        try:
            names.setdefault(name, cell.cell_contents)
        except ValueError:  # a cell that is still empty
            continue
    holder = SimpleNamespace(__annotations__={"return": annotation})
    try:
        return typing.get_type_hints(holder, globalns=names, include_extras=True)["return"]
    except Exception:
        # An annotation may be any expression and raise anything; unresolvable means untyped.
        return None


def _unwrapped(annotation: Any, wrappers: tuple[type, ...]) -> Any:
    """Strip Awaitable[…], Coroutine[…, …, …] and the wrappers, also where they stand in a union."""
    if annotation in wrappers:
        return None
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated and _unwrapped(arguments[0], wrappers) is not arguments[0]:
        return _unwrapped(arguments[0], wrappers)
    if origin in _AWAITABLE or (inspect.isclass(origin) and issubclass(origin, _AWAITABLE)):
        return _unwrapped(arguments[-1], wrappers) if arguments else None
    if origin in wrappers:
        return _unwrapped(arguments[0], wrappers)
    if origin in (Union, UnionType):
        members = [_unwrapped(member, wrappers) for member in arguments]
        if any(new is not old for new, old in zip(members, arguments, strict=True)):
            return None if None in members else Union[tuple(members)]  # noqa: UP007 - built at run time
    return annotation
