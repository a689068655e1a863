"""How a decorated function's call becomes a key: by template, by a callable, or by itself.

:func:`build_key_maker` checks everything that can be checked while decorating, so that a key that cannot
work is an error at import and not in production.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from cachewright.errors import ConfigurationError, InvalidKeyError
from cachewright.key_grammar import listed, parse_template, refuse_ambiguous
from cachewright.key_values import module_name, render
from cachewright.keys import check_key, shorten
from cachewright.spelling import did_you_mean

__all__ = ["KeyMaker", "build_key_maker", "function_name"]

AUTOMATIC_LIMIT = 512
"""Bytes of rendered arguments above which an automatic key holds their hash instead."""

_ORDINARY_NAME = re.compile(r"[\w.<>-]+").fullmatch
_STEADY = (int, str, bytes, bool, float, type(None))


def function_name(func: Callable[..., Any]) -> str:
    """Return ``module:qualified.name`` of a function, alike in every process that runs the same code.

    Two closures that one factory made, or two functions of one name in one module, share it.
    """
    module = module_name(getattr(func, "__module__", None) or "builtins")
    name = getattr(func, "__qualname__", None) or type(func).__qualname__
    # A name that was assigned may hold anything, also what stands between name and arguments in a key.
    return f"{module}:{name}" if _ORDINARY_NAME(name) else f"{module}:{render(name)}"


class KeyMaker:
    """Makes the key of one call. Made by :func:`build_key_maker`.

    Attributes:
        name: ``module:qualified.name`` of the function.
        template: the template, or ``None`` when the key is made otherwise.
        prefix: what all automatic keys of the function begin with (its name), or ``""`` for other keys.
        parameters: the function's parameters in order; empty where a callable makes the key.
        keyed: those that the key depends on.
        simple: whether equal arguments by position (or by keyword, in ``parameters``' order) make equal
            keys at all times, so that an index by arguments may stand in for the key.
    """

    __slots__ = ("keyed", "name", "parameters", "prefix", "simple", "template")

    name: str
    template: str | None
    prefix: str
    parameters: tuple[str, ...]
    keyed: tuple[str, ...]
    simple: bool

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """Return the key of ``func(*args, **kwargs)``.

        Raises:
            TypeError: the function does not take these arguments.
            InvalidKeyError: the arguments have no key, or too long a one.
        """
        raise NotImplementedError


class _Binder:
    """Puts a call's arguments into the order of the parameters, defaults included."""

    __slots__ = ("_binds_by_name", "_defaults", "_label", "_positional", "_signature", "_tails", "names")

    def __init__(self, func: Callable[..., Any], label: str) -> None:
        try:
            self._signature = inspect.signature(func)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"{label}: its parameters cannot be found out ({error}); give key= a callable that takes its arguments"
            ) from error
        parameters = list(self._signature.parameters.values())
        self.names = tuple(parameter.name for parameter in parameters)
        self._label = label
        fixed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self._positional = tuple(p.name for p in fixed)
        self._binds_by_name = not any(
            p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY) for p in parameters
        )
        self._defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        # For each number of arguments by position: the values of all parameters that follow.
        empty = inspect.Parameter.empty
        absent: dict[object, Any] = {inspect.Parameter.VAR_POSITIONAL: (), inspect.Parameter.VAR_KEYWORD: {}}
        ends = [self._defaults.get(p.name, absent.get(p.kind, empty)) for p in parameters]
        # By identity: a default may be an array, whose == is no bool.
        self._tails = [
            None if any(end is empty for end in ends[n:]) else tuple(ends[n:]) for n in range(len(fixed) + 1)
        ]

    def parameters(self) -> Mapping[str, inspect.Parameter]:
        return self._signature.parameters

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sequence[Any]:
        given = len(args)
        if not kwargs:
            if given < len(self._tails):
                tail = self._tails[given]
                if tail is not None:
                    return args + tail
        elif self._binds_by_name and given <= len(self._positional):
            values = list(args)
            taken = 0
            for name in self.names[given:]:
                if name in kwargs:
                    values.append(kwargs[name])
                    taken += 1
                elif name in self._defaults:
                    values.append(self._defaults[name])
                else:
                    break
            if taken == len(kwargs) and len(values) == len(self.names):
                return values
        return self._bind(args, kwargs)

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sequence[Any]:
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._label}: {error}") from None
        bound.apply_defaults()
        missing = [name for name in self.names if name not in bound.arguments]
        if missing:  # Python 3.13.0 lets a positional-only argument pass that was given by name to **kwargs
            raise TypeError(f"{self._label}: missing a required argument: {missing[0]!r}")
        return list(bound.arguments.values())


def _is_simple(binder: _Binder, keyed: Collection[str]) -> bool:
    """Say whether the key is a function of the positional arguments alone."""
    parameters = binder.parameters()
    return all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters.values()) and all(
        # A default list may be changed between two calls, and the key with it.
        parameters[name].default is inspect.Parameter.empty or type(parameters[name].default) in _STEADY
        for name in keyed
    )


class _TemplateKey(KeyMaker):
    __slots__ = ("_bind", "_fields", "_label", "_start")

    def __init__(self, func: Callable[..., Any], template: str, label: str) -> None:
        self._label = label
        self._bind = _Binder(func, label)
        self.name, self.template, self.prefix = function_name(func), template, ""
        self.parameters = self._bind.names
        pieces = parse_template(template, self._bind.names, label)
        refuse_ambiguous(pieces, template, label)
        # A literal before each field and one at the end: start, then (field, what follows it).
        self._start = pieces[0][0]
        self._fields = tuple(
            (self._bind.names.index(field), pieces[position + 1][0])
            for position, (_, field) in enumerate(pieces)
            if field is not None
        )
        self.keyed = tuple(dict.fromkeys(field for _, field in pieces if field is not None))
        self.simple = _is_simple(self._bind, self.keyed)

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        values = self._bind(args, kwargs)
        text = self._start
        index = 0
        try:
            for index, literal in self._fields:
                text += render(values[index]) + literal
        except InvalidKeyError as error:
            name = self._bind.names[index]
            raise InvalidKeyError(
                f"{self._label}: argument {name!r} cannot stand in the key {self.template!r}: {error}; take it out of "
                "the template, give key= a callable, or give its class a __cache_key__() method that returns a str"
            ) from None
        return check_key(text)


class _AutomaticKey(KeyMaker):
    __slots__ = ("_bind", "_fields", "_label")

    def __init__(
        self, func: Callable[..., Any], ignore: Collection[str], label: str, skip_first: bool
    ) -> None:
        if getattr(func, "__name__", "") == "<lambda>":
            raise ConfigurationError(
                f'{label}: a lambda has no name of its own to make a key of; give it key=, such as key="user:{{user_id}}"'
            )
        self._label = label
        self._bind = _Binder(func, label)
        self.name, self.template, self.parameters = function_name(func), None, self._bind.names
        self.prefix = self.name
        owner = getattr(func, "__self__", None)
        if owner is not None and not isinstance(owner, types.ModuleType):
            # The name of a bound method is its class's alone.
            self.prefix += f"[{self._render('self', owner)}]"
        _check_ignored(ignore, self.parameters, label)
        left_out = set(ignore)
        first = next(iter(self._bind.parameters().values()), None)
        # Of def method(*args), the first parameter is all of them.
        if (
            skip_first
            and first is not None
            and first.kind in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD)
        ):
            left_out.add(first.name)
        self.keyed = tuple(name for name in self.parameters if name not in left_out)
        self._fields = tuple((self.parameters.index(name), name) for name in self.keyed)
        self.simple = _is_simple(self._bind, self.keyed)

    def _render(self, name: str, value: object) -> str:
        try:
            return render(value)
        except InvalidKeyError as error:
            raise InvalidKeyError(
                f"{self._label}: argument {name!r} cannot be part of the key: {error}; leave it out with "
                f'ignore=("{name}",), say with key= what the key is made of, or give its class a __cache_key__() '
                "method that returns a str"
            ) from None

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        values = self._bind(args, kwargs)
        # With names, so that a version of the program that swaps two parameters does not read the wrong
        # entries. Names, "=" and "," cannot be mistaken for part of a value, see key_values.
        text = ",".join([f"{name}={self._render(name, values[index])}" for index, name in self._fields])
        size = len(text) if text.isascii() else len(text.encode())
        if size > AUTOMATIC_LIMIT:
            # An unhashed key has "(" behind the prefix and ends in ")".
            import hashlib  # few keys are that long

            return check_key(f"{self.prefix}#{hashlib.sha256(text.encode()).hexdigest()}")
        return check_key(f"{self.prefix}({text})")


class _CallableKey(KeyMaker):
    __slots__ = ("_label", "_make")

    def __init__(self, func: Callable[..., Any], make: Callable[..., str], label: str) -> None:
        if inspect.iscoroutinefunction(make):
            raise ConfigurationError(
                f"{label}: key= must be a plain function that returns a str, not an async one"
            )
        self._label, self._make = label, make
        self.name, self.template, self.prefix = function_name(func), None, ""
        self.parameters = self.keyed = ()
        # It may look at more than its arguments: a context variable with the tenant, say.
        self.simple = False

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        made = self._make(*args, **kwargs)
        try:
            return check_key(made)
        except InvalidKeyError as error:
            raise InvalidKeyError(
                f"{self._label}: what its key= callable returned cannot be a key: {error}"
            ) from None


def build_key_maker(
    func: Callable[..., Any],
    key: str | Callable[..., str] | None = None,
    ignore: Collection[str] = (),
    *,
    skip_first: bool | None = None,
) -> KeyMaker:
    """Return the maker of a function's keys.

    Args:
        func: the function, or a bound method.
        key: a template such as ``"user:{user_id}"``, a callable with the function's own arguments that
            returns a ``str``, or ``None`` for a key of the function's name and all its arguments.
        ignore: parameters that are left out of an automatic key.
        skip_first: whether the first parameter is left out as well. ``None`` means no: a method's
            ``self`` is part of the key like any argument, until the user says otherwise.

    Raises:
        ConfigurationError: the template, the names or their combination cannot work.
    """
    label = f"{getattr(func, '__qualname__', None) or type(func).__qualname__}()"
    if isinstance(ignore, str):
        raise ConfigurationError(f'{label}: ignore={ignore!r} is a str; write ignore=("{ignore}",)')
    if key is None:
        # An object with __call__ or a partial has state that its class's name does not tell.
        if not hasattr(func, "__qualname__"):
            raise ConfigurationError(
                f"{label}: a {type(func).__qualname__} has no name of its own; give it key="
            )
        return _AutomaticKey(func, ignore, label, skip_first is True)
    if isinstance(key, str):
        maker = _TemplateKey(func, key, label)
        _check_ignored(ignore, maker.parameters, label)
        both = [name for name in ignore if name in maker.keyed]
        if both:
            raise ConfigurationError(
                f"{label}: {both[0]!r} is in the key {key!r} and in ignore=; take it out of one"
            )
        left = [name for name in maker.parameters if name not in ignore]
        if left and not maker.keyed:
            raise ConfigurationError(
                f"{label}: the key {key!r} names none of {listed(left)}, so all calls would share one value; put one in, "
                f'as in "{key}:{{{left[-1]}}}", or say that it is meant: ignore={tuple(left)!r}'
            )
        return maker
    if callable(key):
        if ignore:
            raise ConfigurationError(
                f"{label}: a key= callable decides alone what is in the key, so ignore={tuple(ignore)!r} does nothing; "
                "leave it out"
            )
        return _CallableKey(func, key, label)
    raise ConfigurationError(
        f'{label}: key={shorten(key)} is neither a template such as "user:{{user_id}}" nor a callable that returns a str'
    )


def _check_ignored(ignore: Collection[str], names: Sequence[str], label: str) -> None:
    for name in ignore:
        if name not in names:
            raise ConfigurationError(
                f"{label}: ignore= names {name!r}, which is no parameter{did_you_mean(str(name), names)}; the function "
                f"has {listed(names)}"
            )
