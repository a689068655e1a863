"""``WriteBehind`` refuses what cannot work where it is written, not where a repository is made of it."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from datetime import timedelta

import pytest

from cachewright import Cache, ConfigurationError, FlushTimeout, Repository, WriteBehind, WriteThrough
from cachewright.behind.types import BehindOptions, CeleryFlusher


def test_a_flusher_that_is_not_there():
    with pytest.raises(ConfigurationError, match="flusher='thread': expected one of background, celery"):
        WriteBehind(flusher="thread")
    with pytest.raises(ConfigurationError, match="did you mean 'background'"):
        WriteBehind(flusher="backgroud")


@pytest.mark.parametrize("buffer", ["/tmp/x", "positions.db", 5])
def test_a_buffer_that_is_no_url(buffer):
    with pytest.raises(ConfigurationError, match=r"buffer=.*expected sqlite:///path"):
        WriteBehind(buffer=buffer)


@pytest.mark.parametrize("make", [WriteBehind, BehindOptions])
def test_an_option_that_is_not_there(make):
    with pytest.raises(ConfigurationError, match=r"no option 'on_ful' \(did you mean 'on_full'\?\)"):
        make(on_ful="raise")


def test_options_that_are_not_there():
    with pytest.raises(ConfigurationError, match=r"CeleryFlusher: .*did you mean 'queue_type'"):
        CeleryFlusher(None, queuetype="quorum")  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match="WriteThrough: there is no option 'keep'; there are none"):
        WriteThrough(keep=True)  # type: ignore[call-arg]


def test_they_can_be_copied():
    how = WriteBehind(delay=1, on_full="raise")
    assert pickle.loads(pickle.dumps(how)) == copy.copy(how) == replace(how) == how
    assert replace(how, delay=2).delay == 2


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "10", True])
@pytest.mark.parametrize("name", ["flush", "close"])
def test_a_timeout_that_is_none(tmp_path, name, timeout):
    with Cache(namespace="shop") as cache:
        behind = WriteBehind(buffer=f"sqlite:///{tmp_path}/b.db")
        users = cache.repository("user", str, lambda *_: None, writes=behind)
        with pytest.raises(ConfigurationError, match=r"timeout=.*(expected|must be)"):
            getattr(users, name)(timeout)
        getattr(users, name)(timedelta(seconds=5))


def test_a_batch_that_was_taken_in_part_is_dropped(tmp_path):
    origin = {1: "old", 2: "old", 3: "old"}

    def save(id, value):
        raise ValueError(id)

    behind = WriteBehind(
        buffer=f"sqlite:///{tmp_path}/b.db", flusher="none", on_full="through", max_dirty=1, full_timeout=0
    )
    cache = Cache(namespace="shop")
    users = cache.repository("user", origin.get, save, writes=behind)
    users.put(1, "first")
    assert users.get_many([1, 2, 3]) == {1: "first", 2: "old", 3: "old"}
    with pytest.raises(ValueError, match="2"):
        users.put_many({1: "new", 2: "new", 3: "new"})  # 1 is dirty already: its state is taken
    assert users.get_many([1, 2, 3]) == {1: "new", 2: "old", 3: "old"}
    with pytest.raises(FlushTimeout):
        cache.close(0.0)


def test_a_put_after_close_opens_anew(tmp_path):
    saved: dict[int, str] = {}
    cache = Cache(namespace="shop")
    how = WriteBehind(buffer=f"sqlite:///{tmp_path}/b.db")
    users: Repository[int, str] = cache.repository("user", lambda _: "", saved.__setitem__, writes=how)
    behind = users.behind
    assert behind is not None
    cache.close()
    users.put(1, "a")
    assert behind.flusher.is_running()
    cache.close()
    assert saved == {1: "a"}
    assert not behind.flusher.is_running()


def test_what_works():
    app = object()
    assert WriteBehind().flusher == "background"
    assert WriteBehind(flusher=app, buffer="sqlite:///x.db").flusher is app
