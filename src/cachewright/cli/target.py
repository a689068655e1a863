"""What a command works on: the user's cache, named as ``module:cache``, and those of its repositories that write behind."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from cachewright.behind.operating import Operating, hosted, safe_text
from cachewright.cache import _CACHES, Cache
from cachewright.core.engine import Engine
from cachewright.errors import ConfigurationError
from cachewright.spelling import did_you_mean

__all__ = ["behind_parts", "cache_of", "load_cache", "load_object", "opened"]


@contextmanager
def opened(target: str, names: Sequence[str] = ()) -> Iterator[tuple[Cache, list[Operating]]]:
    """The cache and its write-behind repositories, where nothing flushes by itself; closes it at the end.

    Raises:
        ConfigurationError: there is no such cache or repository.
    """
    with hosted():
        cache = load_cache(target)
        try:
            yield cache, behind_parts(cache, target, names)
        finally:
            cache.close(1.0)


def load_cache(target: str) -> Cache:
    """What ``module:cache`` names, the module looked for in the current folder first.

    Raises:
        ConfigurationError: it names no cache.
    """
    module, found = load_object(target, "cache", "a Cache")
    if not isinstance(found, Cache) and callable(found):
        found = _call(target, found)
    if not isinstance(found, Cache):
        raise ConfigurationError(
            f"{target!r} is of type {type(found).__name__}: expected a Cache, or a function without arguments that "
            f"returns one{_caches(module)}"
        )
    return found


def load_object(target: str, word: str, what: str) -> tuple[ModuleType, Any]:
    """The module of a target and the object that it names, the module looked for in the current folder first.

    Args:
        target: ``module:name``, or ``module:name.name``.
        word: such a name, for the message.
        what: what the object should be, for the message.

    Raises:
        ConfigurationError: there is no such module or attribute.
    """
    module_name, colon, path = target.partition(":")
    if not colon or not module_name or not path or "/" in target or module_name.endswith(".py"):
        hint = module_name.removesuffix(".py").replace("/", ".").strip(".") or "shop"
        raise ConfigurationError(
            f"{target!r}: expected module:{word}, such as {hint}:{path or word}, where the module is importable from "
            f"this folder and the attribute is {what}"
        )
    module = _import(target, module_name)
    found: Any = module
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise _no_attribute(target, module, name) from None
    return module, found


def _import(target: str, name: str) -> ModuleType:
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ConfigurationError:
        raise
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and (name == missing or name.startswith(f"{missing}.")):
            raise ConfigurationError(
                f"{target!r}: there is no module {missing!r} in {folder} or among the installed packages; run this in "
                f"the folder that holds it, or put that into PYTHONPATH"
            ) from None
        traceback.print_exception(error)
        raise ConfigurationError(
            f"{target!r}: importing {name} raised {safe_text(f'{type(error).__name__}: {error}')} (traceback above)"
        ) from error


def _call(target: str, factory: Any) -> Any:
    try:
        inspect.signature(factory).bind()
    except TypeError:
        raise ConfigurationError(
            f"{target!r} takes arguments: expected a Cache, or a function without arguments that returns one"
        ) from None
    except ValueError:  # a builtin without a signature; calling it tells
        pass
    return factory()


def _no_attribute(target: str, module: ModuleType, name: str) -> ConfigurationError:
    named = [word for word, value in vars(module).items() if isinstance(value, Cache)]
    hint = did_you_mean(name, [*named, *(word for word in vars(module) if not word.startswith("_"))])
    return ConfigurationError(
        f"{target!r}: {module.__name__} has no attribute {name!r}{hint}{_caches(module)}"
    )


def _caches(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, Cache)]
    return f"; its caches: {', '.join(names)}" if names else ""


def cache_of(engine: Engine) -> Cache | None:
    """The cache that a decorated function belongs to; None where only the function holds on to it."""
    return next((cache for cache in _CACHES if cache.engine is engine), None)


def behind_parts(cache: Cache, target: str, names: Sequence[str]) -> list[Operating]:
    """The write-behind repositories of a cache, or those of these names.

    Raises:
        ConfigurationError: one of them is not there or does not write behind, or there is none at all.
    """
    repositories = cache.repositories
    behind = {name: one.behind for name, one in repositories.items() if one.behind is not None}
    known = (
        f"its write-behind repositories: {', '.join(behind)}" if behind else "it has none that writes behind"
    )
    for name in names:
        if name not in repositories:
            raise ConfigurationError(
                f"--repository {name}: {target} has no repository of that name"
                f"{did_you_mean(name, repositories)}; {known}"
            )
        if name not in behind:
            raise ConfigurationError(f"--repository {name}: it does not write behind; {known}")
    if not behind:
        raise ConfigurationError(
            f"{target}: none of its repositories ({', '.join(repositories) or 'it has none'}) writes behind; make one with "
            f"cache.repository(…, writes=WriteBehind(…)) in a module that importing {target.partition(':')[0]} imports"
        )
    return [behind[name] for name in dict.fromkeys(names or behind)]
