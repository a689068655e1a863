"""The wrapper of a decorated function: the shortest way from a call to the node that holds its value.

Measured against `functools.lru_cache` (in C), one int argument: this form takes about 2.5 times as long; with
``*args, **kwargs`` it would be 4, with a lock 7. So the common signatures have a wrapper of their own shape, and
everything else takes the general one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["INDEXED", "make_wrapper"]

INDEXED = frozenset((int, str, bytes, bool, type(None)))
"""The argument types that the index takes: equal and of the same type means the same key, now and always."""


class Part(Protocol):
    """What a wrapper needs of `decorator.Decorated`."""

    function: Callable[..., Any]
    maker: Any
    memory: Any
    index: dict[Any, Any]
    is_async: bool
    hits: Callable[[], int]

    def scall(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...

    async def acall(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...


_SOURCE = """
def make(index, monotonic, miss{defaults}):
    hits = 0

    {kind}def wrapper({parameters}):
        nonlocal hits
        try:
            node, kinds = index[{lookup}]
        except (KeyError, TypeError):
            return {wait}miss(({names},), NO_NAMES)
        value = node.value
        if node.deadline > monotonic() and {same}:
            if node.mark < 3:
                node.mark += 1
            hits += 1
            return value
        return {wait}miss(({names},), NO_NAMES)

    return wrapper, lambda: hits
"""


def make_wrapper(part: Part) -> Callable[..., Any]:
    """A function with the shape of ``part.function`` that answers from memory, else through the core."""
    names = part.maker.parameters
    if part.memory is None or part.memory.copy or not part.maker.simple or not 1 <= len(names) <= 4:
        return _general(part)
    parameters = inspect.signature(part.function).parameters
    defaults = {
        f"default_{n}": parameters[name].default
        for n, name in enumerate(names)
        if parameters[name].default is not inspect.Parameter.empty
    }
    taken = {"index", "monotonic", "miss", "hits", "node", "kinds", "value", "wrapper", "type", "NO_NAMES"}
    if taken & set(names) or any(name.startswith("default_") for name in names):
        return _general(part)
    single = len(names) == 1
    source = _SOURCE.format(
        defaults="".join(f", {name}" for name in defaults),
        kind="async " if part.is_async else "",
        wait="await " if part.is_async else "",
        parameters=", ".join(
            f"{name}=default_{n}" if f"default_{n}" in defaults else name for n, name in enumerate(names)
        ),
        names=", ".join(names),
        lookup=names[0] if single else f"{', '.join(names)}",
        same=f"type({names[0]}) is kinds"
        if single
        else f"({', '.join(f'type({name})' for name in names)}) == kinds",
    )
    scope: dict[str, Any] = {"NO_NAMES": {}}
    exec(compile(source, f"<cachewright wrapper of {part.maker.name}>", "exec"), scope)  # noqa: S102  names only
    miss = part.acall if part.is_async else part.scall
    wrapper, part.hits = scope["make"](part.index, part.memory.monotonic, miss, *defaults.values())
    made: Callable[..., Any] = wrapper
    return made


def _general(part: Part) -> Callable[..., Any]:
    """For any signature: makes the key, then looks."""
    if part.is_async:

        async def awrapper(*args: Any, **kwargs: Any) -> Any:
            return await part.acall(args, kwargs)

        return awrapper

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return part.scall(args, kwargs)

    return wrapper
