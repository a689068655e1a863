"""`cachewright worker` as a real process: signals, deadlines, kills, async savers, an origin and a buffer that are away."""

from __future__ import annotations

import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing, contextmanager

import pytest

from cachewright.behind.buffers import open_buffer
from cachewright.runtime.base import drive
from cachewright.runtime.process import wait_until
from cachewright.runtime.threads import THREADS

# The user's module. Files in its folder steer the savers.
SHOP = """
    import asyncio, os, pathlib, sqlite3, time
    from cachewright import Cache, NotSaved, WriteBehind

    HERE = pathlib.Path(__file__).parent
    cache = Cache(namespace="shop")

    def save(id, value):
        if (HERE / "down").exists():
            raise ConnectionError("postgresql://me:secret@db is away")
        if value == "bad":
            raise NotSaved("no room for it")
        if value == "hang":
            (HERE / "hanging").touch()
            time.sleep(600)
        if value.startswith("exit"):
            raise SystemExit(9)
        with sqlite3.connect(HERE / "origin.db", timeout=20) as db:
            db.execute("CREATE TABLE IF NOT EXISTS saved(id, value, pid)")
            db.execute("INSERT INTO saved VALUES(?, ?, ?)", (str(id), value, os.getpid()))
        db.close()

    async def save_later(id, value):
        await asyncio.sleep(0)
        asyncio.get_running_loop().create_task(asyncio.sleep(0))
        save(id, f"{value} async")

    def behind(flusher="worker"):
        return WriteBehind(buffer=os.environ["SHOP_BUFFER"], flusher=flusher, backoff_max=0.2, max_attempts=100, settle=0.2)

    users = cache.repository("user", str, save, writes=behind())
    orders = cache.repository("order", str, save_later, writes=behind())
    carts = cache.repository("cart", str, save, writes=behind("background"))
    bills = cache.repository("bill", str, save, writes=behind("none"))

    def make():
        return cache
"""


class Shop:
    """A folder with the user's module, an origin and a buffer; the workers started in it."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.use(f"sqlite:///{folder}/buffer.db")
        (folder / "shop.py").write_text(textwrap.dedent(SHOP))
        self.workers: list[subprocess.Popen[str]] = []

    def use(self, buffer) -> None:
        self.buffer = buffer
        self.env = {
            **os.environ, "SHOP_BUFFER": buffer, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))
        }  # fmt: skip

    def worker(self, *words, target="shop:cache"):
        process = subprocess.Popen(
            [sys.executable, "-m", "cachewright", "worker", target, "--json", "--every", "0.2", *words],
            env=self.env, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.workers.append(process)
        return process

    def started(self, *words):
        """A worker that is at work, its signal handlers in place."""
        process = self.worker(*words)
        for line in process.stdout:
            if json.loads(line)["event"] == "status":
                return process
        raise AssertionError(process.communicate()[1])

    def end(self, process):
        """Its exit status, what it told, its standard error."""
        out, err = process.communicate(timeout=60)
        return process.returncode, {line["event"]: line for line in map(json.loads, out.splitlines())}, err

    def put(self, **values):
        """As a web process does: it only appends."""
        code = (
            "import asyncio, shop, sys\n"
            "async def put(name, id, value):\n"
            "    await getattr(shop, name).aput(id, value)\n"
            "    assert not getattr(shop, name).behind.flusher.is_running()\n"
            "for n in range(1, len(sys.argv), 3):\n"
            "    asyncio.run(put(*sys.argv[n:n + 3]))\n"
        )
        words = [
            w for name, pairs in values.items() for id, value in pairs.items() for w in (name, id, value)
        ]
        subprocess.run([sys.executable, "-c", code, *words], env=self.env, cwd=self.folder, check=True)

    def saved(self) -> list[tuple[str, str, int]]:
        if not (self.folder / "origin.db").exists():
            return []
        with closing(sqlite3.connect(self.folder / "origin.db", timeout=20)) as db:
            try:
                return db.execute("SELECT id, value, pid FROM saved ORDER BY rowid").fetchall()
            except sqlite3.OperationalError:
                return []  # the table is not there yet

    def values(self) -> dict[str, str]:
        return {id: value for id, value, _ in self.saved()}

    def dirty(self, repository="user") -> int:
        buffer = open_buffer(self.buffer, f"shop/{repository}")
        try:
            return drive(buffer.stats(THREADS)).dirty
        finally:
            buffer.close()

    def close(self) -> None:
        for process in self.workers:
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def wait(ready, what) -> None:
    assert wait_until(ready, 30), f"{what} did not come"


@pytest.fixture
def shop(tmp_path):
    shop = Shop(tmp_path)
    yield shop
    shop.close()


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_it_saves_what_others_append_and_drains_on_sigterm(shop, kind, request):
    if kind == "redis":
        shop.use(request.getfixturevalue("own_redis")().url)
    worker = shop.started()
    shop.put(users={"a": "1", "b": "2"}, orders={"c": "3"})
    wait(lambda: len(shop.saved()) == 3, "the saves")
    (shop.folder / "down").touch()
    shop.put(users={"d": "4"}, orders={"e": "5"})
    worker.send_signal(signal.SIGTERM)
    for line in worker.stdout:  # it drains, and must not give up what fails meanwhile
        if json.loads(line)["event"] == "drain":
            break
    (shop.folder / "down").unlink()
    status, told, err = shop.end(worker)
    assert status == 0, err
    assert shop.values() == {"a": "1", "b": "2", "c": "3 async", "d": "4", "e": "5 async"}
    assert {pid for _, _, pid in shop.saved()} == {worker.pid}
    assert shop.dirty() == shop.dirty("order") == 0
    figures = told["status"]["repositories"]
    assert {name: found["dirty"] for name, found in figures.items()} == {"user": 0, "order": 0, "cart": 0}
    assert told["end"]["left"] == {}


def test_an_origin_that_is_down_ends_it_at_its_deadline_with_the_list(shop):
    (shop.folder / "down").touch()
    worker = shop.started("--drain", "1")
    shop.put(users={"a": "1"}, orders={"b": "2"})
    worker.send_signal(signal.SIGINT)
    status, told, err = shop.end(worker)
    assert status == 1
    assert told["drain"]["text"] == "SIGINT: saving what is dirty, for at most 1 s"
    left = told["end"]["left"]
    assert {name: (one["dirty"], one["keys"]) for name, one in left.items()} == {
        "user": (1, ["user:a"]),
        "order": (1, ["order:b"]),
    }
    assert "postgresql://db is away" in told["left"]["text"]
    assert "secret" not in json.dumps(told)
    (shop.folder / "down").unlink()
    status, _, err = shop.end(shop.worker("--once"))  # the next one has it
    assert status == 0, err
    assert shop.values() == {"a": "1", "b": "2 async"}


def test_a_saver_that_hangs_does_not_hold_the_deadline(shop):
    worker = shop.started("--drain", "0.3")
    shop.put(users={"a": "hang"}, orders={"b": "hang"})
    wait((shop.folder / "hanging").exists, "the save")
    worker.terminate()
    status, told, _ = shop.end(worker)
    assert status == 1
    assert told["end"]["left"]["user"]["keys"] == ["user:a"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(shop, number):
    worker = shop.started("--drain", "600")
    shop.put(users={"a": "hang"})
    wait((shop.folder / "hanging").exists, "the save")
    worker.send_signal(number)
    for line in worker.stdout:
        if json.loads(line)["event"] == "drain":
            break
    worker.send_signal(number)
    status, _, err = shop.end(worker)
    assert status == 128 + number
    assert "stays in the buffer" in err


def test_kill_and_restart_lose_nothing(shop):
    shop.put(users={"a": "hang", **{f"k{n}": str(n) for n in range(20)}})
    worker = shop.started()
    wait((shop.folder / "hanging").exists, "the save")
    worker.kill()
    worker.communicate()
    shop.put(users={"a": "later"})  # newest state wins; the killed save settles
    status, _, err = shop.end(shop.worker("--once"))
    assert status == 0, err
    assert shop.values() == {"a": "later", **{f"k{n}": str(n) for n in range(20)}}
    assert shop.dirty() == 0


def test_a_saver_that_exits_ends_neither_the_worker_nor_the_saves_of_others(shop):
    worker = shop.started("--drain", "0.3")
    shop.put(users={"a": "exit"}, orders={"a": "exit async"})
    wait(lambda: shop.dirty() == shop.dirty("order") == 1, "the records")
    shop.put(users={"b": "1"}, orders={"c": "2"})
    wait(lambda: shop.values() == {"b": "1", "c": "2 async"}, "the saves of others")
    worker.send_signal(signal.SIGTERM)
    status, told, _ = shop.end(worker)
    assert status == 1
    left = told["end"]["left"]
    assert (left["user"]["keys"], left["order"]["keys"]) == (["user:a"], ["order:a"])
    assert "SystemExit: 9" in told["left"]["text"]


def test_once_tells_of_what_it_had_to_give_up(shop):
    module = (shop.folder / "shop.py").read_text().replace("max_attempts=100", "max_attempts=2")
    (shop.folder / "shop.py").write_text(module)
    shop.put(users={"a": "bad", "b": "2"})
    status, told, _ = shop.end(shop.worker("--once"))
    assert status == 1
    assert told["end"]["left"]["user"]["died"] == ["user:a"]
    assert shop.values() == {"b": "2"}


@contextmanager
def _hanging(server):
    server.pause()
    yield
    server.resume()


@contextmanager
def _no_table(path):
    with closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE record RENAME TO away")
    yield
    with closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE away RENAME TO record")


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_buffer_that_is_away_for_a_while_is_waited_for(shop, kind, own_redis):
    server = own_redis() if kind == "redis" else None
    if server is not None:
        shop.use(server.url)
    shop.put(users={"a": "1"})
    with _hanging(server) if server is not None else _no_table(shop.folder / "buffer.db"):
        worker = shop.started()
        for line in worker.stdout:
            found = json.loads(line)
            if found["event"] == "status":
                assert "error" in found["repositories"]["user"], found
                break
        assert worker.poll() is None
    wait(lambda: shop.values() == {"a": "1"}, "the save")
    worker.terminate()
    status, told, _ = shop.end(worker)
    assert status == 0, told


def test_which_repositories_it_takes(shop):
    shop.put(users={"a": "1"}, bills={"b": "2"})
    status, told, _ = shop.end(shop.worker("--once", target="shop:make"))
    assert status == 0
    assert told["start"]["repositories"] == ["user", "order", "cart"]
    assert "--repository bill" in told["notice"]["text"]
    assert (shop.values(), shop.dirty("bill")) == ({"a": "1"}, 1)
    status, told, _ = shop.end(shop.worker("--once", "--repository", "bill"))
    assert status == 0
    assert told["start"]["repositories"] == ["bill"]
    assert shop.values() == {"a": "1", "b": "2"}


def test_it_keeps_one_line_up_to_date_on_a_terminal(shop):
    shop.put(users={"a": "1"}, orders={"b": "2"})
    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "cachewright", "worker", "shop:cache", "--once"]
    env = {**shop.env, "TERM": "xterm", "COLUMNS": "200"}
    try:
        done = subprocess.run(
            line, env=env, cwd=shop.folder, stderr=theirs, stdout=theirs, timeout=60, check=False
        )
        os.set_blocking(ours, False)
        shown = os.read(ours, 1 << 20).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0, shown
    assert "user: 0 dirty, lag 0.0 s, 1 saved" in shown
    assert "everything that was dirty is saved" in shown


def test_it_saves_on_when_nobody_reads_what_it_says(shop):
    worker = shop.started()
    worker.stdout.close()
    shop.put(users={"a": "1"})
    wait(lambda: shop.values() == {"a": "1"}, "the save")
    worker.terminate()
    assert worker.wait(60) == 0
    assert worker.stderr.read() == ""


def test_flush_elsewhere_waits_for_the_worker(shop):
    worker = shop.started()
    code = "import shop; shop.users.put('a', '1'); shop.users.flush(30); shop.cache.close(); print(shop.users.dirty())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=shop.env, cwd=shop.folder, capture_output=True, text=True, timeout=60
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert shop.saved() == [("a", "1", worker.pid)]
