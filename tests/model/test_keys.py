"""Keys are injective: two calls, and two keys of whatever namespace and kind, meet iff they are the same.

"The same" as the documentation has it: bound by the signature, equal values of equal types; the order of dicts, sets
and named arguments does not matter. What single values are written as is in ``tests/unit/test_keys_values.py``.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachewright.errors import ConfigurationError
from cachewright.key_template import build_key_maker
from cachewright.keys import check_key, check_namespace, memcached_key, physical_key


def pair(a: Any, b: Any) -> None: ...
def with_defaults(a: Any, b: Any = 1, c: Any = None) -> None: ...
def positional(a: Any, /, b: Any = "b") -> None: ...
def variable(*args: Any) -> None: ...
def named(*, a: Any, b: Any = True) -> None: ...
def anything(a: Any, /, *args: Any, k: Any = 1, **kw: Any) -> None: ...
def three(a: Any, b: Any, c: Any) -> None: ...


FUNCTIONS = [pair, with_defaults, positional, variable, named, anything]
how_often = pytest.mark.parametrize("examples", [150, pytest.param(5000, marks=pytest.mark.soak)])

# Few and alike, so that two draws are often equal, and more often nearly so.
scalars = st.one_of(
    st.sampled_from(
        [
            "a",
            "b",
            "1",
            "None",
            "True",
            "",
            "a:b",
            "a,b=1",
            '"',
            "é",
            "]",
            ")",
            "a=1",
            "k",
            "#",
            "(",
            "x" * 600,
        ]
    ),
    st.sampled_from(
        [0, 1, -1, 1.0, 0.0, -0.0, math.nan, True, False, None, b"a", b"", Decimal(1), Decimal("1.0")]
    ),
)
inner = st.recursive(
    scalars,
    lambda deeper: st.one_of(
        st.lists(deeper, max_size=2),
        st.lists(deeper, max_size=2).map(tuple),
        st.dictionaries(st.sampled_from(["a", "b", "1"]) | st.sampled_from([1, None]), deeper, max_size=2),
        st.frozensets(scalars, max_size=2),
    ),
    max_leaves=4,
)
more_names = st.sampled_from(["a", "b", "kw", "args", "z"])


@st.composite
def calls(draw: st.DrawFn, function: Callable[..., Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call that the function takes: by position, by name, or left to a default."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    by_name = False
    for one in inspect.signature(function).parameters.values():
        if one.kind is one.VAR_POSITIONAL:
            args += draw(st.lists(inner, max_size=2)) if not by_name else []
        elif one.kind is one.VAR_KEYWORD:
            kwargs.update(draw(st.dictionaries(more_names, inner, max_size=2)))
        elif one.default is not one.empty and draw(st.booleans()):
            by_name = True
        elif one.kind is one.POSITIONAL_ONLY and by_name:
            break
        else:
            named = one.kind is one.KEYWORD_ONLY or by_name
            by_name = named or (one.kind is not one.POSITIONAL_ONLY and draw(st.booleans()))
            if by_name:
                kwargs[one.name] = draw(inner)
            else:
                args.append(draw(inner))
    return tuple(args), kwargs


def exact(value: Any) -> Any:
    """What makes a value itself."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, tuple(map(exact, value))
    if kind in (set, frozenset):
        return kind, frozenset(map(exact, value))
    if kind is dict:
        return kind, frozenset((exact(key), exact(item)) for key, item in value.items())
    return kind, repr(value)


def bound(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The arguments as the function has them."""
    found = inspect.signature(function).bind(*args, **kwargs)
    found.apply_defaults()
    return exact(dict(found.arguments))


@how_often
@pytest.mark.parametrize("function", FUNCTIONS)
def test_automatic_keys_are_equal_iff_the_calls_are(function: Callable[..., Any], examples: int) -> None:
    maker = build_key_maker(function)

    @settings(max_examples=examples)
    @given(calls(function), calls(function))
    def check(one: Any, two: Any) -> None:
        means = [bound(function, *call) for call in (one, two)]
        assert (maker(*one) == maker(*two)) is (means[0] == means[1])

    check()


@how_often
def test_automatic_keys_of_two_functions_never_meet(examples: int) -> None:
    @settings(max_examples=examples)
    @given(st.permutations(FUNCTIONS), st.data())
    def check(functions: list[Any], data: Any) -> None:
        one, two = (build_key_maker(f)(*data.draw(calls(f))) for f in functions[:2])
        assert one != two

    check()


literals = st.text(st.sampled_from(list(':/-._x1"[]@,= é')), max_size=3)
fields = st.lists(st.sampled_from("abc"), min_size=1, max_size=4)


@how_often
def test_an_accepted_template_keeps_apart_what_it_names(examples: int) -> None:
    triples = st.tuples(inner, inner, inner)

    @settings(max_examples=2 * examples)
    @given(st.lists(literals, min_size=5, max_size=5), fields, triples, triples, st.sets(st.integers(0, 2)))
    def check(between: list[str], named: list[str], one: Any, two: Any, alike: set[int]) -> None:
        template = between[-1] + "".join(
            f"{{{name}}}{literal}" for name, literal in zip(named, between, strict=False)
        )
        ignored = [name for name in "abc" if name not in named]
        try:
            maker = build_key_maker(three, template, ignored)
        except ConfigurationError:
            return  # the tests of templates say which are refused
        two = tuple(one[n] if n in alike else value for n, value in enumerate(two))
        means = [[exact(call["abc".index(name)]) for name in named] for call in (one, two)]
        assert (maker(one, {}) == maker(two, {})) is (means[0] == means[1]), template

    check()


spaces = st.sampled_from(["a", "b", "a.k", "k", "h", "t", "A", "a-h"])
kinds = st.sampled_from(["k", "t"])
words = st.text(st.sampled_from(list("akth:.\r\n é")), min_size=1, max_size=6) | st.sampled_from(
    [
        "x" * 245,
        "x" * 246,
        "x" * 400,
        "k:a",
        "t:a",
        "h:k",
        "a:k:a",
        ":",
        "k",
        hashlib.sha256(b"a").hexdigest(),
    ]
)


@how_often
def test_physical_keys_are_equal_iff_namespace_kind_and_key_are(examples: int) -> None:
    places = st.tuples(spaces, kinds, words)

    @settings(max_examples=4 * examples)
    @given(places, places, st.booleans())
    def check(one: Any, two: Any, copied: bool) -> None:
        if copied:  # a key that is written as the other one is stored
            stored = memcached_key(physical_key(*one)).decode()
            two = (two[0], two[1], stored if len(two[2]) % 2 else stored.partition(":")[2])
        for space, _, key in (one, two):
            check_namespace(space)
            check_key(key)
        assert (physical_key(*one) == physical_key(*two)) is (one == two)
        assert (memcached_key(physical_key(*one)) == memcached_key(physical_key(*two))) is (one == two)

    check()
