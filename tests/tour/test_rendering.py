"""What the tour shows, of a result that is made up."""

from __future__ import annotations

import io
import re
from typing import Any, cast

import pytest
from rich.console import Console

from cachewright import Cache
from cachewright.events import Loaded
from cachewright.tour.model import Comparison, SceneResult, Side, Span, Step, TourResult
from cachewright.tour.origin import User, marks
from cachewright.tour.recorder import Recorder, _short
from cachewright.tour.render_html import page
from cachewright.tour.render_plain import WIDTH, PlainListener
from cachewright.tour.render_rich import RichListener
from cachewright.tour.timeline import KINDS

LONG = "a put returns as soon as the write is durable in the buffer " * 4


def made_up(*oks: bool) -> TourResult:
    result = TourResult("0.1", "SQLite")
    for number, ok in enumerate(oks, 1):
        scene = SceneResult(number, f"strategy {number}", LONG, "it breaks", engine="Valkey 9", seconds=1.25)
        kinds = ["miss", "load", "buffer", "hit"]
        scene.ours.steps = [
            Step(0.1, 0.2, "caller", f"users.get({n})", kind, LONG, [Span("caller", 0.1 + n, 0.2, kind)])
            for n, kind in enumerate(kinds)
        ]
        scene.comparisons.append(Comparison("the crash", "a write is lost", "none is lost", ok))
        result.scenes.append(scene)
    result.seconds = 3.0
    return result


def played(listener, result: TourResult) -> None:
    listener.begin(result, len(result.scenes))
    for scene in result.scenes:
        listener.scene_begins(scene)
        listener.scene_ends(scene)
    listener.end(result)


def plain(*oks: bool) -> str:
    out = io.StringIO()
    played(PlainListener(out), made_up(*oks))
    return out.getvalue()


def rich(*oks: bool) -> str:
    out = io.StringIO()
    played(RichListener(Console(file=out, width=120)), made_up(*oks))
    return out.getvalue()


@pytest.mark.parametrize("show", [plain, rich])
def test_the_tour_ends_with_a_table_of_its_scenes(show):
    end = show(True, False)
    end = end[end.rindex("verdict") :]
    assert re.search(r"1\W+strategy 1 +Valkey 9 +ok +1\.25", end)
    assert re.search(r"2\W+strategy 2 +Valkey 9 +FAILED +1\.25", end)
    assert end.rstrip().endswith("scene 2 FAILED in 3 s")


@pytest.mark.parametrize("show", [plain, rich])
def test_one_scene_is_one_scene(show):
    assert show(True).rstrip().endswith("1 scene ok in 3 s")
    assert "1 scenes" not in show(True)
    assert show(True, True).rstrip().endswith("2 scenes ok in 3 s")
    assert "scenes 1, 2 FAILED" in show(False, False)


def test_the_verdict_stands_on_our_line():
    lines = plain(True).splitlines()
    assert [line.strip() for line in lines if "as promised" in line] == [
        "cachewright: none is lost  ✓ as promised"
    ]
    assert "cachewright: none is lost  ✗ NOT AS PROMISED" in plain(False)


def test_plain_lines_are_wrapped():
    text = plain(True)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert " ".join(LONG.split()) in " ".join(text.split())


def test_every_kind_of_span_has_a_colour_of_its_own():
    text = page(made_up(True))
    for colours in re.findall(r":root \{(.*?)\}", text, re.DOTALL):
        named = dict(re.findall(r"--(\w+): (#\w+)", colours))
        assert len({named[kind] for kind in KINDS}) == len(KINDS)
    for kind in ("miss", "load", "buffer"):
        assert f'<rect class="{kind}"' in text
        assert f"var(--{kind})" in text


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("redis(127.0.0.1:6379)", "redis:6379"),
        ("redis(localhost:1)", "redis:localhost:1"),
        ("redis(127.0.0.1:6379)#2", "redis:6379#2"),
        ("redis+cluster(a:1,b:2)", "redis+cluster"),
        ("memory", "memory"),
    ],
)
def test_a_tier_is_named_with_its_place(name, short):
    assert _short(name) == short


class _Database:
    """Counts; asked by the loader or not."""

    read_seconds = 1.0
    loads = failures = 0
    queries = ()

    def load_user(self, user_id: int) -> User:
        self.loads += 1
        return User(user_id, "Ada", "Porto", 1)


@pytest.mark.parametrize(("asks", "word"), [(True, "load"), (False, "buffer")])
def test_a_load_that_did_not_ask_the_database_came_from_the_buffer(asks, word):
    database, side = _Database(), Side()
    load = database.load_user if asks else lambda user_id: User(user_id, "Ada", "Porto", 1)
    with Cache("memory://") as cache:
        cache.events.subscribe(lambda event: marks.seen.add("loaded") if isinstance(event, Loaded) else None)
        users = cache.repository("user", load=load)
        recorder = Recorder(side, cast(Any, database), lambda: 0.0)
        recorder.call(users.get, 1)
        recorder.call(users.get, 1)
    assert [step.result for step in side.steps] == [word, "hit"]
