"""What a key may be, and how it stands in a tier."""

from __future__ import annotations

import enum
import hashlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cachewright.errors import ConfigurationError, InvalidKeyError
from cachewright.keys import check_key, check_namespace, check_tag, memcached_key, physical_key
from cachewright.spelling import did_you_mean


class Name(str):
    """A str that prints itself as something else."""

    def __str__(self) -> str:
        return "printed"

    def __format__(self, spec: str) -> str:
        return "formatted"


class Color(str, enum.Enum):  # noqa: UP042 - the kind that prints itself differently
    RED = "red"


@pytest.mark.parametrize(
    "key", ["a", "user:1", "with space", "a\x00\n", "é", "東京", "𐀀", pytest.param("x" * 65_536, id="long")]
)
def test_good_keys_come_back_unchanged(key: str) -> None:
    assert check_key(key) is key


def test_a_str_subclass_counts_by_its_characters() -> None:
    for key, want in ((Name("abc"), "abc"), (Color.RED, "red")):
        got = check_key(key)
        assert got == want
        assert type(got) is str
        assert f"{got}" == want


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (1, ["key 1 is of type int", "must be a str"]),
        (None, ["None", "NoneType"]),
        (b"a", ["b'a'", "bytes"]),
        (("a", 1), ["<tuple>"]),
        pytest.param(10**5000, ["<int>"], id="long"),
        ("", ["empty"]),
        ("a\ud800", ["UTF-8", "position 1"]),
        pytest.param("x" * 65_537, ["65,537 bytes", "65,536"], id="bytes"),
        pytest.param("é" * 32_769, ["65,538 bytes", "(32,769 characters)"], id="utf8"),
    ],
)
def test_bad_keys_are_refused_with_value_and_rule(key: object, words: list[str]) -> None:
    with pytest.raises(InvalidKeyError) as caught:
        check_key(key)
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_limit_counts_bytes() -> None:
    assert check_key("é" * 32_768)
    assert check_key("abc", limit=3)
    with pytest.raises(InvalidKeyError):
        check_key("abcd", limit=3)
    with pytest.raises(InvalidKeyError):
        check_key("éé", limit=3)


def test_tags_are_short_keys() -> None:
    assert check_tag("users") == "users"
    assert check_tag("x" * 1024)
    assert check_tag("é" * 512)
    for tag in ("x" * 1025, "é" * 513, "", 1, "\udfff"):
        with pytest.raises(InvalidKeyError, match="tag"):
            check_tag(tag)


@pytest.mark.parametrize("namespace", ["cachewright", "a", "A-1_b.c", "x" * 64])
def test_good_namespaces(namespace: str) -> None:
    assert check_namespace(namespace) == namespace


@pytest.mark.parametrize("namespace", ["", "a:b", "a b", "x" * 65, "é", "a\n", "{a}", "a/b", 1, None, b"a"])
def test_bad_namespaces(namespace: object) -> None:
    with pytest.raises(ConfigurationError, match="namespace"):
        check_namespace(namespace)


def test_the_error_says_why_a_namespace_has_no_colon() -> None:
    with pytest.raises(ConfigurationError, match="two namespaces"):
        check_namespace("shop:eu")


def test_physical_keys_of_users_and_tags_never_meet() -> None:
    assert physical_key("shop", "k", "user:1") == "shop:k:user:1"
    assert physical_key("shop", "t", "users") == "shop:t:users"
    assert not physical_key("shop", "k", "t:users").startswith("shop:t:")


def test_memcached_keys_that_fit_stay() -> None:
    plain = "shop:k:" + "x" * 243
    assert memcached_key(plain) == plain.encode()
    assert memcached_key("shop:k:~!:{}") == b"shop:k:~!:{}"


@pytest.mark.parametrize(
    "key",
    ["x" * 244, "a b", "a\r\nflush_all", "\x00", "\x7f", "é", "a\n", pytest.param("東" * 9999, id="long")],
)
def test_memcached_keys_that_do_not_fit_are_hashed(key: str) -> None:
    physical = physical_key("shop", "k", key)
    assert memcached_key(physical) == b"shop:h:k" + hashlib.sha256(physical.encode()).hexdigest().encode()
    assert len(memcached_key(physical_key("n" * 64, "k", key))) <= 250


def test_a_hashed_key_keeps_its_kind_and_its_namespace() -> None:
    made = {memcached_key(f"{ns}:{kind}:a b") for ns in ("n", "m") for kind in ("k", "t")}
    assert len(made) == 4


def test_no_user_can_write_a_hashed_key() -> None:
    hashed = memcached_key(physical_key("n", "k", "a b"))
    for key in (hashed.decode(), hashed.decode().removeprefix("n:"), "h:k"):
        assert memcached_key(physical_key("n", "k", key)) != hashed


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.sampled_from(["k", "t"]))
def test_memcached_keys_are_always_legal(key: str, kind: str) -> None:
    assume(key[0] != "\0")
    made = memcached_key(physical_key("n", kind, check_key(key)))  # type: ignore[arg-type]
    assert 0 < len(made) <= 250
    assert all(0x21 <= byte <= 0x7E for byte in made)
    assert made.startswith((f"n:{kind}:".encode(), f"n:h:{kind}".encode()))


def test_did_you_mean() -> None:
    assert did_you_mean("tll", ["ttl", "tags"]) == " (did you mean 'ttl'?)"
    assert did_you_mean("STALE-IF-ERROR", ["stale_if_error"]) == " (did you mean 'stale_if_error'?)"
    assert did_you_mean("zebra", ["ttl", "tags"]) == ""
    assert did_you_mean("x", []) == ""


@pytest.mark.parametrize("tags", [["a", "b"], ("a",), {"a"}])
def test_several_tags_where_one_is_expected(tags: object) -> None:
    with pytest.raises(InvalidKeyError, match=r"pass them one by one, as in invalidate_tags\(\*tags\)"):
        check_tag(tags)
