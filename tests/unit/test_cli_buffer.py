"""`cachewright buffer …` as its user runs it, and what is said where the target is wrong."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import textwrap

import pytest

from cachewright import ConfigurationError
from cachewright.behind.buffers import open_buffer
from cachewright.behind.operating import hosted
from cachewright.cli.target import behind_parts, load_cache
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS

SHOP = """
    import pathlib
    from cachewright import Cache, NotSaved, WriteBehind

    HERE = pathlib.Path(__file__).parent
    cache = Cache("memory://", f"sqlite:///{HERE}/tier.db", namespace="shop", ttl=None)

    def load(id):
        return "origin"

    def save(id, value):
        if value.startswith("bad"):
            raise NotSaved(f"refused by postgresql://me:secret@db/shop: {id}")
        with open(HERE / "saved", "a") as file:
            file.write(f"{id}={value}\\n")

    def behind(**options):
        return WriteBehind(buffer=f"sqlite:///{HERE}/buffer.db", max_attempts=1, flusher="background", **options)

    users = cache.repository("user", load, save, writes=behind())
    orders = cache.repository("order", load, save, writes=behind())
    pages = cache.repository("page", load, save)

    def make():
        return cache

    def make_with(argument):
        return cache
"""
FILL = """
    import sys
    from cachewright import FlushTimeout
    from cachewright.behind.operating import hosted
    with hosted():
        import shop
    for pair in sys.argv[1:]:
        id, _, value = pair.partition("=")
        shop.users.put(id.encode().decode("unicode_escape"), value)
"""


class Desk:
    """A folder with the user's module, and the commands run in it."""

    def __init__(self, folder) -> None:
        self.folder = folder
        (folder / "shop.py").write_text(textwrap.dedent(SHOP))
        self.env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "COLUMNS": "60"}

    def fill(self, *pairs) -> None:
        words = [sys.executable, "-c", textwrap.dedent(FILL), *pairs]
        subprocess.run(words, env=self.env, cwd=self.folder, check=True)

    def run(self, word, *words, target="shop:cache", **how) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "cachewright", "buffer", word, target, *words]
        how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
        return subprocess.run(line, env=self.env, cwd=self.folder, text=True, timeout=60, check=False, **how)

    def json(self, *words, status=0):
        done = self.run(*words, "--json")
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout)

    def dead(self) -> int:
        buffer = open_buffer(f"sqlite:///{self.folder}/buffer.db", "shop/user")
        try:
            return drive(buffer.stats(THREADS)).dead
        finally:
            buffer.close()

    def saved(self) -> str:
        path = self.folder / "saved"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def test_looking_changes_nothing_and_shows_no_values(desk):
    desk.fill("1=payload-one", r"a\nb\u202e[red]=bad payload", "http://me@host/?q#f=three")
    rows = desk.json("list", "--limit", "2")
    assert [(row["repository"], row["key"], row["id"], row["state"]) for row in rows] == [
        ("user", 'user:"1"', "1", "dirty"),
        ("user", rows[1]["key"], "a\nb\u202e[red]", "dirty"),
    ]
    assert rows[0]["tries"] == 0
    assert rows[0]["age"] >= 0
    done = desk.run("list")
    assert done.returncode == 0
    assert "[red]" in done.stdout, "no markup"
    assert r"\u202e" in done.stdout
    assert "\u202e" not in done.stdout
    assert done.stdout.count("http://me@host/?q#f") == 2, "an id is no address of ours: all of it is shown"
    assert len(done.stdout.splitlines()) == 4, "a row each, however long: a pipe has no width"
    assert "payload" not in done.stdout + json.dumps(rows)
    assert "there is more in user" in desk.run("list", "--limit", "2").stderr
    status = desk.json("status")
    assert [(one["repository"], one["dirty"], one["dead"]) for one in status] == [
        ("user", 3, 0),
        ("order", 0, 0),
    ]
    assert status[0]["buffer"] == f"sqlite:///{desk.folder}/buffer.db"
    assert (status[0]["flusher"], desk.saved()) == ("background", ""), (
        "nothing flushes because somebody looks"
    )
    shown = desk.run("list", "--values", "--limit", "1").stdout
    assert "payload-one" in shown
    table = desk.run("status", "-r", "user").stdout.splitlines()
    assert table[0].split() == [
        "repository",
        "flusher",
        "buffer",
        "dirty",
        "settling",
        "dead",
        "bytes",
        "oldest",
    ]
    assert table[1].split()[3:6] == ["3", "0", "0"]
    assert len(table) == 2


def test_drain_replay_and_discard(desk):
    desk.fill("1=one", "2=bad two", r"3\x1b=bad three", "4=bad four")
    done = desk.run("drain", "--timeout", "20")
    assert done.returncode == 1
    assert "user: 3 record(s) were given up" in done.stderr
    assert desk.saved() == "1=one\n"
    dead = desk.json("dead", "--values")
    keys = [row["key"] for row in dead]
    assert [row["value"] for row in dead] == ["bad two", "bad three", "bad four"]
    assert dead[0]["error"] == "NotSaved: refused by postgresql://db/shop: 2"
    assert "secret" not in desk.run("dead").stdout

    module = desk.folder / "shop.py"
    module.write_text(module.read_text().replace('value.startswith("bad")', 'value == "bad four"'))
    done = desk.run("replay", keys[0], "user:nobody", keys[1])
    assert done.returncode == 1, "one of them is unknown, the others are done"
    assert done.stderr.splitlines() == [
        "user:nobody: the buffer has nothing of that key; `buffer dead` lists what there is"
    ]
    assert desk.json("replay", keys[0], status=1)["errors"][keys[0]].startswith("it is dirty, no dead letter")
    assert desk.json("drain") == {"drained": True, "left": {}}
    assert desk.saved() == "1=one\n2=bad two\n3\x1b=bad three\n"

    # what was never saved must not be read from a tier either
    read = "import shop; print(shop.users.get('4')); shop.cache.close()"
    ask = [sys.executable, "-c", read]
    assert subprocess.check_output(ask, env=desk.env, cwd=desk.folder, text=True) == "bad four\n"
    refused = desk.run("discard", "--all")
    assert (refused.returncode, "give --yes" in refused.stderr) == (2, True)
    assert desk.json("discard", "--all", "--dry-run") == {"would_be_discarded": [keys[2]], "errors": {}}
    assert desk.dead() == 1
    assert desk.json("discard", keys[2], "--yes") == {"discarded": [keys[2]], "errors": {}}
    assert subprocess.check_output(ask, env=desk.env, cwd=desk.folder, text=True) == "origin\n"
    assert desk.run("discard", "--all", "--yes").stdout == "there are no dead letters\n"


@pytest.mark.parametrize(("answer", "left"), [("n", 1), ("y", 0)])
def test_discard_asks_on_a_terminal(desk, answer, left):
    desk.fill("1=bad one")
    desk.run("drain")
    ours, theirs = pty.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        done = desk.run("discard", "--all", stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert "Discard 1 dead letter(s) for good?" in done.stderr
    assert done.returncode == left
    assert desk.dead() == left


def test_nothing_is_discarded_that_a_tier_would_not_hear_of(desk):
    desk.fill("1=bad one")
    desk.run("drain")
    module = desk.folder / "shop.py"
    module.write_text(
        module.read_text().replace('f"sqlite:///{HERE}/tier.db"', '"redis://user:secret@127.0.0.1:1/0"')
    )
    done = desk.run("discard", "--all", "--yes")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("nothing was discarded: redis(127.0.0.1:1): ")
    assert "secret" not in done.stderr
    assert desk.dead() == 1


def test_discard_says_that_it_reaches_no_other_processs_memory(desk):
    module = desk.folder / "shop.py"
    module.write_text(module.read_text().replace(', f"sqlite:///{HERE}/tier.db"', ""))
    desk.fill("1=bad one")
    desk.run("drain")
    assert "restart it" in desk.json("discard", "--all", "--dry-run")["notice"]
    done = desk.run("discard", "--all", "--yes")
    assert (done.returncode, done.stdout) == (0, 'discarded: user:"1"\n')
    assert "each process's own memory" in done.stderr
    assert "notice" not in desk.json("discard", "--all", "--yes")  # nothing was


def test_keys_as_the_tables_show_them(tmp_path, desk):
    # raw keys of another's making; our own are escaped already
    buffer = open_buffer(f"sqlite:///{tmp_path}/buffer.db", "shop/user")
    from cachewright.behind.buffers.base import Failure, NewRecord

    keys = ["user:\n", "user:ü\x07"]
    drive(buffer.append(THREADS, [NewRecord(key, b"\x01", b"x") for key in keys]))
    for record in drive(buffer.claim(THREADS, 9, b"12345678", 60.0)):
        failure = Failure(record.key, record.sequence, "no\nroom", 0.0, dead=True)
        drive(buffer.fail(THREADS, b"12345678", [failure], settle=0.0))
    buffer.close()
    shown = [line.split()[1] for line in desk.run("dead").stdout.splitlines()[1:]]
    assert shown == [r"user:\n", r"user:ü\x07"]
    assert desk.json("replay", *shown) == {"replayed": keys, "errors": {}}


def test_a_buffer_that_cannot_be_read_is_a_message(desk):
    (desk.folder / "buffer.db").write_bytes(b"no database" * 1000)
    done = desk.run("list")
    assert done.returncode == 1
    assert done.stderr.startswith("BufferUnavailable: ")
    assert "Traceback" not in done.stderr
    assert desk.run("status").returncode == 1
    assert "error" in desk.json("status", status=1)[0]


def test_a_wrong_target_is_a_message(desk):
    done = desk.run("status", target="shopp:cache")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("'shopp:cache': there is no module 'shopp' in ")
    done = desk.run("replay")
    assert (done.returncode, "name the keys" in done.stderr) == (2, True)


@pytest.fixture
def shop(desk, monkeypatch):
    monkeypatch.chdir(desk.folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (desk.folder / "broken.py").write_text("import shop_that_is_not\n")
    (desk.folder / "raises.py").write_text("raise ValueError('redis://me:secret@host is away')\n")
    (desk.folder / "bare.py").write_text("from cachewright import Cache\ncache = Cache()\n")
    with hosted():
        yield desk
    for name in ("shop", "broken", "raises", "bare"):
        module = sys.modules.pop(name, None)
        cache = getattr(module, "cache", None)
        if cache is not None:
            cache.close()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("shop", "'shop': expected module:cache, such as shop:cache"),
        ("shop.py:cache", "expected module:cache, such as shop:cache"),
        ("app/shop.py:caches", "such as app.shop:caches"),
        (":cache", "such as shop:cache"),
        ("shop:", "such as shop:cache"),
        ("shopp.settings:cache", "there is no module 'shopp'"),
        ("shop.settings:cache", "there is no module 'shop.settings'"),
        ("broken:cache", "importing broken raised ModuleNotFoundError: No module named 'shop_that_is_not'"),
        ("raises:cache", "importing raises raised ValueError: redis://host is away"),
        ("shop:cach", "no attribute 'cach' (did you mean 'cache'?); its caches: cache"),
        ("shop:users", "is of type Repository: expected a Cache, or a function without arguments"),
        ("shop:make_with", "'shop:make_with' takes arguments"),
        ("shop:HERE", "expected a Cache"),
    ],
)
def test_targets_that_name_no_cache(shop, capsys, target, said):
    with pytest.raises(ConfigurationError) as caught:
        load_cache(target)
    assert said in str(caught.value)
    assert ("Traceback" in capsys.readouterr().err) is target.startswith(("broken", "raises"))


def test_targets_that_name_one(shop):
    cache = load_cache("shop:cache")
    assert load_cache("shop:make") is cache
    assert [part.name for part in behind_parts(cache, "shop:cache", ())] == ["user", "order"]
    assert [part.name for part in behind_parts(cache, "shop:cache", ["order"])] == ["order"]
    with pytest.raises(
        ConfigurationError, match=r"no repository of that name \(did you mean 'user'\?\); its write-"
    ):
        behind_parts(cache, "shop:cache", ["usr"])
    with pytest.raises(ConfigurationError, match=r"page: it does not write behind; its .*: user, order"):
        behind_parts(cache, "shop:cache", ["page"])
    with pytest.raises(
        ConfigurationError, match=r"none of its repositories \(it has none\) writes behind; make one"
    ):
        behind_parts(load_cache("bare:cache"), "bare:cache", ())
