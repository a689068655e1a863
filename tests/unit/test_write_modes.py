"""``WriteBehind`` refuses what cannot work where it is written, not where a repository is made of it."""

from __future__ import annotations

import pytest

from cachewright import ConfigurationError, WriteBehind


def test_a_flusher_that_is_not_there():
    with pytest.raises(ConfigurationError, match="flusher='thread': expected one of background, celery"):
        WriteBehind(flusher="thread")
    with pytest.raises(ConfigurationError, match="did you mean 'background'"):
        WriteBehind(flusher="backgroud")


@pytest.mark.parametrize("buffer", ["/tmp/x", "positions.db", 5])
def test_a_buffer_that_is_no_url(buffer):
    with pytest.raises(ConfigurationError, match=r"buffer=.*expected sqlite:///path"):
        WriteBehind(buffer=buffer)


def test_what_works():
    app = object()
    assert WriteBehind().flusher == "background"
    assert WriteBehind(flusher=app, buffer="sqlite:///x.db").flusher is app
