"""Options from the environment: what is read, and what a wrong variable is told."""

from __future__ import annotations

import pytest

from cachewright import Cache, ConfigurationError
from cachewright.environment import read_environment


def test_urls_are_separated_by_spaces():
    tiers, options = read_environment(
        {"CACHEWRIGHT_TIERS": "memory://  memcached://a:1,b:2\n", "CACHEWRIGHT_TTL": "none", "HOME": "/x"}
    )
    assert tiers == ["memory://", "memcached://a:1,b:2"]
    assert options == {"ttl": None}


@pytest.mark.parametrize(
    "text",
    [
        "memory://,redis://localhost",
        "memory://, redis://localhost",
        "memory:// , redis://localhost",
        "memcached://a:1,b:2,redis://c",
    ],
)
def test_commas_between_urls_are_refused(text):
    with pytest.raises(ConfigurationError, match="CACHEWRIGHT_TIERS: separate URLs with spaces"):
        read_environment({"CACHEWRIGHT_TIERS": text})


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("CACHEWRIGHT_TIER", "CACHEWRIGHT_TIERS"),
        ("CACHEWRIGHT_TLL", "CACHEWRIGHT_TTL"),
        ("CACHEWRIGHT_PICKLE_KEY", "CACHEWRIGHT_PICKLE_KEYS"),
    ],
)
def test_a_misspelt_variable_is_told_the_whole_right_name(variable, meant):
    with pytest.raises(ConfigurationError, match=rf"{variable} names no option \(did you mean '{meant}'\?\)"):
        read_environment({variable: "1"})


def test_nothing_is_suggested_where_nothing_is_near():
    with pytest.raises(ConfigurationError, match=r"CACHEWRIGHT_XYZQ names no option$"):
        read_environment({"CACHEWRIGHT_XYZQ": "1"})


@pytest.mark.parametrize(
    ("variable", "text"),
    [("CACHEWRIGHT_TTL", "soon"), ("CACHEWRIGHT_COPY", "maybe"), ("CACHEWRIGHT_RETRIES", "1.5")],
)
def test_a_value_that_cannot_be_read_is_named(variable, text):
    with pytest.raises(ConfigurationError, match=f"{variable}='{text}': expected"):
        Cache.from_env({variable: text})


def test_a_key_that_cannot_be_read_is_not_shown():
    with pytest.raises(ConfigurationError, match="hexadecimal") as caught:
        read_environment({"CACHEWRIGHT_PICKLE_KEYS": "secret"})
    assert "secret" not in str(caught.value)
