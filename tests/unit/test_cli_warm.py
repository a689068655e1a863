"""`cachewright warm …` as its user runs it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from cachewright.cli.arguments import WrongLine, calls, ids

SHOP = """
    import datetime, pathlib, time
    from cachewright import Cache

    HERE = pathlib.Path(__file__).parent
    cache = Cache(f"sqlite:///{HERE}/cache.db", namespace="shop")

    @cache.cached(key="rate:{base}:{day}")
    def rate(base: str, day: datetime.date) -> str:
        if base == "BAD":
            raise OSError("no answer from postgresql://me:secret@db/rates")
        return f"{base} on {day.isoformat()}"

    @cache.cached
    async def square(number: int) -> int:
        return number * number

    @cache.cached
    def slow(number: int) -> int:
        (HERE / f"began{number}").touch()
        while (HERE / ("hold" if number < 2 else "hold_more")).exists():
            time.sleep(0.005)
        return number

    def load(id: int) -> str:
        return f"user {id}"

    def load_many(ids: list[int]) -> dict[int, str]:
        with open(HERE / "calls", "a") as file:
            file.write(f"{len(ids)} ")
        return {id: f"thing {id}" for id in ids if id != 3}

    def plain():
        return cache

    users = cache.repository("user", load)
    things = cache.repository("thing", load_many=load_many)
"""


class Desk:
    """A folder with the user's module, and the command run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "shop.py").write_text(textwrap.dedent(SHOP))
        self.env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "COLUMNS": "80"}

    def line(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "cachewright", "warm", *words]

    def run(self, *words: str, text: str = "", **how: Any) -> subprocess.CompletedProcess[str]:
        given = {"input": text, "capture_output": True, **how}
        return subprocess.run(
            self.line(*words), env=self.env, cwd=self.folder, text=True, timeout=60, check=False, **given
        )


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_function_is_warmed_and_what_failed_is_told(desk: Desk):
    lines = [
        '["EUR", "2024-01-01"]',
        "",
        '{"day": "2024-01-02", "base": "USD"}',
        '["BAD", "2024-01-01"]',
        "EUR",
    ]
    (desk.folder / "calls.jsonl").write_text("\n".join(lines))
    done = desk.run("shop:rate", "--from", "calls.jsonl")
    assert done.returncode == 1
    assert done.stdout.startswith("2 loaded, 2 failed, in ")
    assert "line 5: 'EUR' is no JSON" in done.stderr
    assert 'rate:BAD:date"2024-01-01": OSError: no answer' in done.stderr
    assert "secret" not in done.stderr
    again = desk.run("shop:rate", "--from", "calls.jsonl", "--json")
    assert again.returncode == 1
    found = json.loads(again.stdout)
    assert (found["loaded"], found["skipped"], found["stopped"]) == (0, 2, False)
    assert [one["line"] for one in found["wrong_lines"]] == [5]
    assert [one["key"] for one in found["failed"]] == ['rate:BAD:date"2024-01-01"']
    code = "import datetime, shop; print(shop.rate.inspect('EUR', datetime.date(2024, 1, 1)).state)"
    seen = subprocess.run(
        [sys.executable, "-c", code],
        env=desk.env,
        cwd=desk.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout == "fresh\n", "the key of a date, not of a string"


def test_async_functions_and_repositories_from_standard_input(desk: Desk):
    numbers = "\n".join(map(str, range(1, 31)))
    assert desk.run("shop:square", "--from", "-", text=numbers).stdout.startswith("30 loaded, in ")
    done = desk.run("shop:cache", "-r", "thing", "--batch", "7", "--from", "-", text=numbers)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("29 loaded, 1 absent at the origin, in ")
    assert sorted((desk.folder / "calls").read_text().split()) == ["2", "7", "7", "7", "7"]
    done = desk.run("shop:plain", "-r", "user", "--from", "-", "--concurrency", "2", text='1\n"x"')
    assert done.returncode == 1
    assert "line 2: id: Expected `int`, got `str`" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_the_next_call_goes_on(desk: Desk, number: signal.Signals):
    hold, more = desk.folder / "hold", desk.folder / "hold_more"
    hold.touch()
    more.touch()
    (desk.folder / "n").write_text("\n".join(map(str, range(20))))
    words = ("shop:slow", "--from", "n", "--concurrency", "2")
    process = subprocess.Popen(
        desk.line(*words),
        env=desk.env,
        cwd=desk.folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    until = time.monotonic() + 30
    while len(list(desk.folder.glob("began*"))) < 2:
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(number)
    hold.unlink()
    while process.poll() is None:
        assert time.monotonic() < until
        if len(list(desk.folder.glob("began*"))) > 2:  # it had not seen the signal yet
            more.unlink(missing_ok=True)
        time.sleep(0.005)
    more.unlink(missing_ok=True)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    loaded = int(out.split()[0])
    assert 2 <= loaded < 20
    assert f"stopped after {loaded} of 20" in err
    done = desk.run(*words)
    assert done.returncode == 0
    assert done.stdout.startswith(f"{20 - loaded} loaded, {loaded} fresh already, in ")


def test_on_a_terminal_there_is_a_bar(desk: Desk):
    near, far = pty.openpty()
    try:
        done = desk.run("shop:square", "--from", "-", text="1\n2\n3", capture_output=False, stderr=far)
    finally:
        os.close(far)
    said = b""
    try:
        while part := os.read(near, 10_000):
            said += part
    except OSError:  # the other side is closed
        pass
    finally:
        os.close(near)
    assert done.returncode == 0
    assert b"warming" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("shop:cache",), "--repository user, thing"),
        (("shop:load",), "of type function: expected a function under @cache.cached"),
        (("shop:rat",), "did you mean 'rate'?"),
        (("shop.py",), "expected module:function"),
        (("shop:cache", "-r", "usr"), "did you mean 'user'?"),
    ],
)
def test_a_wrong_target_is_a_message(desk: Desk, words: tuple[str, ...], message: str):
    done = desk.run(*words, "--from", "-")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_cannot_be_read_is_a_message(desk: Desk):
    done = desk.run("shop:rate", "--from", "nowhere")
    assert done.returncode == 2
    assert "--from nowhere: cannot be read" in done.stderr


# What a line says


def example(base: str, day: date, *more: int, full: bool = False, **rest: float) -> None: ...


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ('["EUR", "2024-01-02"]', ("EUR", date(2024, 1, 2))),
        ('["EUR", "2024-01-02", 3, 4]', ("EUR", date(2024, 1, 2), 3, 4)),
        (
            '{"day": "2024-01-02", "base": "EUR", "full": true, "x": 1}',
            {"base": "EUR", "day": date(2024, 1, 2), "full": True, "x": 1.0},
        ),
    ],
)
def test_lines_of_arguments(line: str, call: Any):
    found = calls(example, ())(line)
    assert found == call


def test_the_only_argument_may_stand_alone():
    def one(id: UUID) -> None: ...

    text = "00000000-0000-0000-0000-000000000001"
    assert calls(one, ())(f'"{text}"') == (UUID(text),)

    def anything(value): ...

    assert calls(anything, ())("[[1, 2]]") == ([1, 2],)

    def method(self: object, id: int) -> None: ...

    assert calls(method, (object(),))("7") == (7,)


class Own:
    pass


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("EUR", 'a string is written "EUR"'),
        ("[1", "no JSON"),
        ('["EUR"]', "missing a required argument: 'day'"),
        ('["EUR", 3]', "day: Expected `date`"),
        ('{"base": "EUR", "day": "2024-01-02", "full": 3}', "full: Expected `bool`"),
        ('["EUR", "2024-01-02", "x"]', "more: Expected `int`"),
    ],
)
def test_lines_that_say_nothing_are_told_why(line: str, message: str):
    with pytest.raises(WrongLine, match=message):
        calls(example, ())(line)


def test_ids():
    def load(id: UUID) -> None: ...

    def load_many(ids: list[date]) -> None: ...

    def load_own(id: Own) -> None: ...

    text = "00000000-0000-0000-0000-000000000001"
    assert ids(load, many=False)(f'"{text}"') == UUID(text)
    assert ids(load_many, many=True)('"2024-01-02"') == date(2024, 1, 2)
    assert ids(lambda one: one, many=False)("7") == 7
    with pytest.raises(WrongLine, match="Expected `Own`"):
        ids(load_own, many=False)("7")
