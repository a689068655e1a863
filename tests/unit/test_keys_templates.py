"""One call, one key: templates, automatic keys and callables."""

from __future__ import annotations

import functools
import inspect
import itertools
import multiprocessing
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachewright.errors import ConfigurationError, InvalidKeyError
from cachewright.key_template import KeyMaker, build_key_maker, function_name

HERE = __name__


def get_user(user_id: object, lang: str = "en") -> None: ...
def pair(a: object, b: object) -> None: ...
def single(a: object) -> None: ...
def flexible(a: object, /, *args: object, k: object = 1, **kw: object) -> None: ...
def keyword_only(*, a: object, b: object = 2) -> None: ...
def array_default(a: object, b: Any = []) -> None: ...  # noqa: B006
def nothing() -> None: ...


class Service:
    def find(self, x: object) -> None: ...

    @classmethod
    def make(cls, x: object) -> None: ...

    @staticmethod
    def check(x: object) -> None: ...

    def variadic(*args: object) -> None: ...


class Child(Service):
    pass


def call(maker: KeyMaker, *args: Any, **kwargs: Any) -> str:
    return maker(args, kwargs)


def test_a_template_is_bound_by_signature() -> None:
    maker = build_key_maker(get_user, "user:{user_id}:{lang}")
    assert (
        call(maker, 1)
        == call(maker, user_id=1)
        == call(maker, 1, lang="en")
        == call(maker, lang="en", user_id=1)
    )
    assert call(maker, 1) == "user:1:en"
    assert call(maker, "1") == 'user:"1":en'
    assert call(maker, "a", "b:c") == 'user:a:"b:c"'
    assert (maker.template, maker.prefix, maker.name) == ("user:{user_id}:{lang}", "", f"{HERE}:get_user")
    assert (maker.parameters, maker.keyed, maker.simple) == (("user_id", "lang"), ("user_id", "lang"), True)


def test_a_template_may_leave_out_repeat_and_quote() -> None:
    assert call(build_key_maker(Service.find, "find:{x}"), object(), 1) == "find:1"
    assert call(build_key_maker(single, "{a}:{a}"), 1) == "1:1"
    assert call(build_key_maker(single, "{{{a}}}"), 1) == "{1}"
    assert call(build_key_maker(nothing, "all")) == "all"
    assert call(build_key_maker(flexible, "{args}/{kw}"), 1, 2, z=3) == 'tuple[2]/{"z":3}'
    assert call(build_key_maker(lambda x: x, "l:{x}"), 1) == "l:1"
    assert call(build_key_maker(functools.partial(pair, 1), "p:{b}"), 2) == "p:2"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("u:{0}", ["{0}", "did you mean '{user_id}'"]),
        ("u:{1}", ["{1}", "did you mean '{lang}'"]),
        ("u:{}:{}", ["{}", "did you mean '{user_id}'"]),
        ("u:{²}", ["{²}"]),
        ("u:{user_id.name}", ["{user_id.name}", "did you mean '{user_id}'", "callable"]),
        ("u:{user_id[0]}", ["{user_id[0]}", "did you mean '{user_id}'"]),
        ("u:{user_id!r}", ["{user_id!r}", "did you mean '{user_id}'"]),
        ("u:{user_id:>5}", ["{user_id:>5}", "did you mean '{user_id}'"]),
        ("u:{user_id!s:{lang}}", ["did you mean '{user_id}'"]),
        ("u:{usr_id}", ["{usr_id}", "did you mean 'user_id'", "user_id, lang"]),
        ("u:{ user_id }", ["did you mean '{user_id}'"]),
        ("u:{zebra}", ["no parameter;", "user_id, lang"]),
        ("u:{user_id", ["twice"]),
        ("u:}", ["twice"]),
        ("", ["empty"]),
        ("\ud800", ["surrogate"]),
    ],
)
def test_a_wrong_template_is_refused_while_decorating(template: str, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_key_maker(get_user, template)
    for word in ("get_user()", *words):
        assert word in str(caught.value)


VALUES: list[Any] = [
    "x", "y", "x-y", "x.y", "x_y", "_", "a", "ax", "xa", "tuple", "", ":", "x:y", '"', "-", "-x", "[", "1", "é", "]", "}", "@", "None",
    1, -1, 11, 1.0, -1.0, 1e16, None, True, [], [1], ["x"], (), (1,), {}, {"x": 1}, b"", b"x", Service, [[1], 1],
]  # fmt: skip
CHARACTERS = ["-", ".", "_", "x", "1", ":", "/", "[", "]", '"', "{{", "}}", "@", ",", " ", "é", "+", "\\"]
LITERALS = ["".join(each) for n in (0, 1, 2) for each in itertools.product(CHARACTERS, repeat=n)]


def test_every_template_that_is_accepted_keeps_calls_apart() -> None:
    accepted = 0
    for literal in LITERALS:
        try:
            maker = build_key_maker(pair, f"{{a}}{literal}{{b}}{literal}")
        except ConfigurationError:
            assert all(part in "-._x1" for part in literal) or re.match(r'[-._x1]*["\[{]', literal)
            continue
        accepted += 1
        assert len({maker(both, {}) for both in itertools.product(VALUES, VALUES)}) == len(VALUES) ** 2, (
            literal
        )
    assert accepted > 200


@pytest.mark.parametrize("literal", ["", "-", ".", "_", "x", "1", "-x"])
def test_what_is_refused_would_have_collided(literal: str) -> None:
    with pytest.raises(ConfigurationError, match="two calls could make one key"):
        build_key_maker(pair, f"{{a}}{literal}{{b}}")
    assert ("x" + literal + "x") + literal + "x" == "x" + literal + ("x" + literal + "x")


@pytest.mark.parametrize("literal", ["[", '"', "{{", "x["])
def test_what_could_open_a_marked_value_does_not_separate(literal: str) -> None:
    with pytest.raises(ConfigurationError, match="separate them by"):
        build_key_maker(pair, f"{{a}}{literal}{{b}}")


nasty = st.sampled_from(VALUES) | st.text(st.sampled_from(list('x:/-"[]\\,=()'))) | st.integers()


@given(st.tuples(nasty, nasty), st.tuples(nasty, nasty))
def test_templates_and_automatic_keys_are_injective(one: tuple[Any, Any], two: tuple[Any, Any]) -> None:
    alike = [(type(value), value) for value in one] == [(type(value), value) for value in two]
    for maker in (
        build_key_maker(pair, "p:{a}:{b}"),
        build_key_maker(pair, "{a}-v1/{b}x"),
        build_key_maker(pair),
    ):
        assert (maker(one, {}) == maker(two, {})) is alike


def test_automatic_keys_of_the_usual_traps_all_differ() -> None:
    maker = build_key_maker(pair)
    assert call(maker, "a:b", "c") != call(maker, "a", "b:c")
    one = build_key_maker(single)
    assert (
        len({call(one, value) for value in (1, "1", True, "True", 1.0, "1.0", None, "None", b"1", (1,), [1])})
        == 11
    )


def test_automatic_keys_bind_as_python_does() -> None:
    maker = build_key_maker(get_user)
    assert (
        call(maker, 1)
        == call(maker, user_id=1)
        == call(maker, 1, "en")
        == f"{HERE}:get_user(user_id=1,lang=en)"
    )
    assert maker.prefix == f"{HERE}:get_user"
    assert maker.simple
    assert call(build_key_maker(nothing)) == f"{HERE}:nothing()"
    rich = build_key_maker(flexible)
    assert not rich.simple
    assert call(rich, 1, 2, z=1, y=2) == call(rich, 1, 2, y=2, z=1, k=1)
    assert call(rich, 1, a=2) != call(rich, 1, b=2)
    assert (
        len({call(rich, 1), call(rich, 1, 1), call(rich, 1, (1,)), call(rich, 1, k=2), call(rich, 1, K=1)})
        == 5
    )
    only = build_key_maker(keyword_only)
    assert not only.simple
    assert call(only, a=1) == call(only, b=2, a=1)


@pytest.mark.parametrize(
    ("func", "args", "kwargs"),
    [
        (get_user, (), {}),
        (get_user, (), {"lang": "de"}),
        (get_user, (1, 2, 3), {}),
        (get_user, (1,), {"user_id": 1}),
        (get_user, (1,), {"nope": 1}),
        (get_user, (1, 2, 3), {"lang": 1}),
        (flexible, (), {"a": 1}),
        (keyword_only, (1,), {}),
        (keyword_only, (), {"b": 1}),
        (nothing, (1,), {}),
    ],
)
@pytest.mark.parametrize("key", [None, "k"])
def test_a_call_that_the_function_would_refuse_has_no_key(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], key: str | None
) -> None:
    with pytest.raises(TypeError, match=re.escape(f"{func.__qualname__}():")):
        # A template without fields is taken only from who says that the arguments do not matter.
        ignore = tuple(inspect.signature(func).parameters) if key else ()
        build_key_maker(func, key, ignore)(args, kwargs)


def test_ignored_arguments_are_left_out() -> None:
    maker = build_key_maker(get_user, ignore=("lang",))
    assert call(maker, 1, object()) == call(maker, 1) == f"{HERE}:get_user(user_id=1)"
    assert (maker.parameters, maker.keyed) == (("user_id", "lang"), ("user_id",))
    assert call(build_key_maker(get_user, "u:{user_id}", ignore=("lang",)), 1) == "u:1"


@pytest.mark.parametrize(
    ("key", "ignore", "words"),
    [
        (None, ("lnag",), ["'lnag'", "did you mean 'lang'"]),
        (None, "lang", ['ignore=("lang",)']),
        ("{lang}", ("lang",), ["take it out of one"]),
        ("{lang}", ("lnag",), ["did you mean 'lang'"]),
        (lambda user_id, lang="": "k", ("lang",), ["callable decides alone"]),
        (5, (), ["key=5"]),
    ],
)
def test_names_that_cannot_be_ignored(key: Any, ignore: Any, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_key_maker(get_user, key, ignore)
    for word in words:
        assert word in str(caught.value)


def test_a_method_is_keyed_by_self_until_the_user_says_otherwise() -> None:
    with pytest.raises(InvalidKeyError) as caught:
        call(build_key_maker(Service.find), Service(), 1)
    for word in ("'self'", 'ignore=("self",)', "key=", "Service", "__cache_key__"):
        assert word in str(caught.value)
    assert "0x" not in str(caught.value)
    want = f"{HERE}:Service.find(x=1)"
    assert call(build_key_maker(Service.find, ignore=("self",)), Service(), 1) == want
    assert call(build_key_maker(Service.find, skip_first=True), Service(), 1) == want
    with pytest.raises(InvalidKeyError):  # all arguments would be gone
        call(build_key_maker(Service.variadic, skip_first=True), Service(), 1)


def test_classmethods_are_keyed_by_their_class() -> None:
    func = Service.__dict__["make"].__func__
    maker = build_key_maker(func)
    assert call(maker, Service, 1) != call(maker, Child, 1)
    assert call(build_key_maker(Service.make), 1) != call(build_key_maker(Child.make), 1)
    assert call(build_key_maker(Service.check), 1) == f"{HERE}:Service.check(x=1)"
    with pytest.raises(InvalidKeyError, match="self"):
        build_key_maker(Service().find)


def test_an_argument_without_a_key_is_named() -> None:
    with pytest.raises(
        InvalidKeyError, match=r"argument 'b' .* a object has no stable form .*ignore=\(\"b\",\)"
    ):
        call(build_key_maker(pair), 1, [object()])
    with pytest.raises(InvalidKeyError, match=r"argument 'a' cannot stand in the key '{b}:{a}'"):
        call(build_key_maker(pair, "{b}:{a}"), object(), 1)


def test_what_has_no_name_needs_a_key() -> None:
    for func in (lambda x: x, functools.partial(single), re.compile("a").sub):
        with pytest.raises((ConfigurationError, InvalidKeyError), match="key="):
            build_key_maker(func)


def test_a_callable_makes_the_key_of_the_functions_own_arguments() -> None:
    maker = build_key_maker(get_user, lambda user_id, lang="en": f"{lang}:{user_id}")
    assert call(maker, 1) == call(maker, user_id=1) == "en:1"
    assert not maker.simple
    bad: Any
    for bad in (1, "", None, "\ud800"):
        with pytest.raises(InvalidKeyError, match=r"single\(\): what its key= callable returned"):
            call(build_key_maker(single, lambda a: a), bad)

    async def later(a: object) -> str:
        return ""

    with pytest.raises(ConfigurationError, match="async"):
        build_key_maker(single, later)  # type: ignore[arg-type]


def test_long_automatic_keys_are_hashed_and_long_explicit_ones_refused() -> None:
    maker = build_key_maker(single)
    short, long = call(maker, "x" * 510), call(maker, "x" * 511)
    assert short == f"{HERE}:single(a={'x' * 510})"
    assert re.fullmatch(re.escape(f"{HERE}:single#") + "[0-9a-f]{64}", long)
    assert call(maker, "x" * 511) == long != call(maker, "x" * 512)
    assert "#" in call(maker, "é" * 255 + "x")  # 514 bytes of 258 characters, quotes and name included
    assert len(call(maker, list(range(100_000)))) == len(long)
    explicit = build_key_maker(single, "{a}")
    assert len(call(explicit, "x" * 65_536)) == 65_536
    with pytest.raises(InvalidKeyError, match="65,537 bytes"):
        call(explicit, "x" * 65_537)


def test_no_name_makes_a_function_look_like_another_call() -> None:
    def other(a: object) -> None: ...

    other.__qualname__ = "single(a=1)"
    other.__module__ = HERE
    assert function_name(other) == f'{HERE}:"single(a=1)"'
    assert not call(build_key_maker(other), 1).startswith(f"{HERE}:single(")


def test_an_index_by_arguments_is_offered_only_where_it_is_safe() -> None:
    assert not build_key_maker(array_default).simple  # the default list may change
    assert build_key_maker(array_default, ignore=("b",)).simple
    assert build_key_maker(array_default, "{a}").simple
    assert not build_key_maker(flexible, "{a}").simple


def test_defaults_are_never_compared() -> None:
    class Array:
        def __eq__(self, other: object) -> bool:
            raise ValueError("the truth value of an array is ambiguous")

        __hash__ = None  # type: ignore[assignment]

    def func(a: object, b: object = Array()) -> None: ...

    assert call(build_key_maker(func, "{a}"), 1) == "1"


def _key_in_child(queue: Any) -> None:
    maker = build_key_maker(pair)
    queue.put(maker(({"b", "a", "c"}, {"y": 1, "x": Service}), {}))


def test_another_process_makes_the_same_key() -> None:
    # Spawned, so with another hash seed: sets come in another order.
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_key_in_child, args=(queue,))
    child.start()
    made = queue.get(timeout=30)
    child.join(30)
    assert child.exitcode == 0
    assert made == call(build_key_maker(pair), {"c", "b", "a"}, {"x": Service, "y": 1})
