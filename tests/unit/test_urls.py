"""Wrong tier URLs: the message names the way out, and never a password."""

from __future__ import annotations

import pytest

from cachewright import Cache, ConfigurationError


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis:/localhost", r"redis:/localhost: write redis:// "),
        ("redis:localhost:6379", r"write redis:// "),
        ("redis", r"redis: write redis:// "),
        ("memory", r"memory: write memory:// "),
        ("rdis://localhost", r"no tier 'rdis' \(did you mean 'redis'\?\)"),
        ("localhost:6379", r"known: memory://, "),
        ("", r"known: memory://, "),
    ],
)
def test_what_is_no_url(url, said):
    with pytest.raises(ConfigurationError, match=said):
        Cache(url)


def test_a_list_of_urls_is_not_one_url():
    with pytest.raises(ConfigurationError, match="pass them as separate arguments") as caught:
        Cache(["memory://", "redis://user:secret@localhost"])  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis:/user:secret@localhost", "rdis://user:secret@localhost", "user:secret@localhost"]
)
def test_no_password_in_the_message(url):
    with pytest.raises(ConfigurationError) as caught:
        Cache(url)
    assert "secret" not in str(caught.value)
