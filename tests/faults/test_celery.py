"""Flushing by Celery: a real RabbitMQ, real worker processes, lost hints, killed children, a dead broker."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing

import celery
import psutil
import pytest

from cachewright import Cache, CeleryFlusher, Repository, WriteBehind, events
from cachewright.behind.buffers import open_buffer
from cachewright.behind.buffers.base import NewRecord
from cachewright.behind.celery import app_for, install, unsafe_settings
from cachewright.behind.flusher import Flusher
from cachewright.behind.saving import Savers
from cachewright.behind.types import BehindOptions
from cachewright.errors import ConfigurationError, FlushTimeout
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS

# The user's module: both sides import it. Saves go to a SQLite database and are appended to a journal.
SHOP = """
    import os, sqlite3, time
    from celery import Celery
    from cachewright.behind.buffers import open_buffer
    from cachewright.behind.celery import install
    from cachewright.behind.flusher import Flusher
    from cachewright.behind.saving import Savers
    from cachewright.behind.types import BehindOptions
    from cachewright.events import Hub

    FOLDER = os.environ["SHOP_FOLDER"]
    app = Celery("shop", broker=os.environ["SHOP_BROKER"])
    app.conf.broker_connection_retry_on_startup = True
    app.conf.worker_hijack_root_logger = False
    flushing = install(
        app, queue=os.environ["SHOP_QUEUE"], queue_type=os.environ.get("SHOP_QUEUE_TYPE", "classic"),
        sweep=float(os.environ.get("SHOP_SWEEP", "3600")),
    )

    def save(id, value, write):
        if value == "kill" and write.attempt == 1:
            os.kill(os.getpid(), 9)
        if value == "exit" and write.attempt == 1:
            raise SystemExit(3)
        with sqlite3.connect(f"{FOLDER}/origin.db", timeout=20) as db:
            db.execute("CREATE TABLE IF NOT EXISTS journal(id, value, pid)")
            db.execute("CREATE TABLE IF NOT EXISTS users(id PRIMARY KEY, value, seq)")
            db.execute("INSERT INTO users VALUES(?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value, seq = excluded.seq "
                       "WHERE users.seq < excluded.seq", (id, value, write.sequence))
            db.execute("INSERT INTO journal VALUES(?, ?, ?)", (id, value, os.getpid()))
        db.close()

    async def after_save(rt, keys):
        pass

    hub = Hub()
    flusher = Flusher(
        open_buffer(f"sqlite:///{FOLDER}/buffer.db", "shop/user"),
        Savers(save=save, decode=lambda r: r.payload.decode(), decode_id=lambda raw: raw.decode()),
        namespace="shop", repository="user", after_save=after_save,
        options=BehindOptions(ordered_saver=True), events=hub,
        where="celery", notify=flushing.hints("shop", "user", hub),
    )
"""

PUT = """
    import sys
    from shop import *
    from cachewright.behind.buffers.base import NewRecord
    from cachewright.runtime.base import drive
    from cachewright.runtime.threads import THREADS
    for pair in sys.argv[1:]:
        key, value = pair.split("=")
        drive(flusher.accept(THREADS, [NewRecord(key, key.encode(), value.encode())]))
    flushing.sender.drain(20)
    print(flushing.sender.sent, flushing.sender.lost)
"""


class Shop:
    """The user's module, its workers, its origin."""

    def __init__(self, folder, broker, **more) -> None:
        self.folder = folder
        (folder / "shop.py").write_text(textwrap.dedent(SHOP))
        self.env = {
            **os.environ,
            "SHOP_FOLDER": str(folder),
            "SHOP_BROKER": broker,
            "SHOP_QUEUE": f"hints-{os.urandom(4).hex()}",
            "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)]),
            **more,
        }
        self.workers: list[subprocess.Popen[bytes]] = []

    def worker(self, pool="solo", size=1):
        name = f"w{os.urandom(4).hex()}@localhost"
        with open(self.folder / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "shop", "worker", "-P", pool, "-c", str(size), "-n", name),
                    *("--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO"),
                ],
                env=self.env,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.workers.append(process)
        self.wait(lambda: "ready." in self.log(), "the worker's start", 60)
        return process

    def log(self) -> str:
        return "".join(path.read_text(errors="replace") for path in self.folder.glob("*.log"))

    def put(self, *pairs):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(PUT), *pairs],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        sent, lost = done.stdout.split()
        return int(sent), int(lost)

    def rows(self, table="users") -> list[tuple]:
        if not (self.folder / "origin.db").exists():
            return []
        with closing(sqlite3.connect(self.folder / "origin.db", timeout=20)) as db:
            try:
                return db.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall()
            except sqlite3.OperationalError:
                return []

    def users(self) -> dict[str, str]:
        return {id: value for id, value, _ in self.rows()}

    def buffer(self):
        return open_buffer(f"sqlite:///{self.folder}/buffer.db", "shop/user")

    def dirty(self) -> int:
        return drive(self.buffer().stats(THREADS)).dirty

    def wait(self, ready, what, timeout=30.0):
        deadline = time.monotonic() + timeout
        while not ready():
            for process in self.workers:
                assert process.poll() is None, self.log()
            assert time.monotonic() < deadline, f"{what} did not come\n{self.log()}"
            time.sleep(0.02)

    def close(self) -> None:
        self.buffer().close()
        for process in self.workers:
            if process.poll() is None:
                kill_all(process)


def kill_all(process) -> None:
    """A worker and its pool, at once: nothing of a test's end may depend on a kind shutdown."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for child in children:
        if child.is_running():
            child.kill()
    psutil.wait_procs(children, 5)


@pytest.fixture
def shop(tmp_path, rabbitmq_server):
    made = []

    def make(broker=None, **more):
        made.append(Shop(tmp_path, broker or rabbitmq_server.url, **more))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(("pool", "kind"), [("solo", "classic"), ("prefork", "quorum")])
def test_a_worker_saves_what_was_hinted(shop, pool, kind):
    desk = shop(SHOP_QUEUE_TYPE=kind)
    worker = desk.worker(pool, 2)
    assert desk.put("a=1", "b=2", "a=3")[1] == 0
    desk.wait(lambda: desk.dirty() == 0, "the flush")
    assert desk.users() == {"a": "3", "b": "2"}
    savers = {pid for _, _, pid in desk.rows("journal")}
    assert (worker.pid in savers) is (pool == "solo")
    assert "unsafe Celery setting" not in desk.log()


def test_a_valkey_broker_works_and_is_warned_of(shop, valkey_server):
    desk = shop(valkey_server.url, SHOP_SWEEP="0.5")
    desk.worker("prefork", 2)
    assert desk.put("a=1", "b=kill", "c=exit") == (3, 0)
    desk.wait(lambda: desk.dirty() == 0, "the flush")
    assert desk.users() == {"a": "1", "b": "kill", "c": "exit"}
    assert "visibility timeout" in desk.log()


def test_what_was_never_hinted_is_swept_up(shop):
    desk = shop(SHOP_SWEEP="0.3")
    buffer = desk.buffer()
    drive(buffer.append(THREADS, [NewRecord("a", b"a", b"1"), NewRecord("b", b"b", b"2")]))
    desk.worker()
    desk.wait(lambda: desk.dirty() == 0, "the sweep")
    assert desk.users() == {"a": "1", "b": "2"}


def test_doubled_late_and_empty_hints_do_no_harm(shop):
    desk = shop()
    desk.put("a=1")
    desk.put("a=2")
    desk.put("a=3")
    desk.worker("prefork", 2)
    desk.wait(lambda: desk.log().count("succeeded") >= 3, "three hints")
    assert desk.dirty() == 0
    assert desk.rows("journal")[-1][:2] == ("a", "3")
    assert len(desk.rows("journal")) == 1, "one record, the newest state, saved once"


def test_a_worker_that_did_not_import_the_repository_says_so(shop):
    desk = shop()
    desk.worker()
    app = app_for(desk.env["SHOP_BROKER"])
    other = install(app, queue=desk.env["SHOP_QUEUE"], sweep=0)
    other.sender.put("shop", "order", ["a"], events.Hub())
    desk.wait(lambda: "must import the module" in desk.log(), "the error")
    assert "it knows shop/user" in desk.log()
    other.close()


async def _nothing(rt, keys):
    return None


def test_put_neither_waits_for_a_broker_nor_hears_of_it(tmp_path):
    hub = events.Hub()
    told: list[events.Event] = []
    hub.subscribe(told.append)
    flushing = install(app_for("amqp://guest:guest@127.0.0.1:1//"))
    buffer = open_buffer(f"sqlite:///{tmp_path}/x.db", "shop/user")
    saved: list[str] = []
    flusher = Flusher(
        buffer,
        Savers(
            save=lambda _, value: saved.append(value), decode=lambda _: "v", decode_id=lambda raw: raw.decode()
        ),
        namespace="shop", repository="user", after_save=_nothing, options=BehindOptions(), events=hub,
        where="celery", notify=flushing.hints("shop", "user", hub),
    )  # fmt: skip
    drive(flusher.accept(THREADS, [NewRecord("a", b"a", b"1")]))
    assert flushing.sender.drain(20)
    assert [type(event) for event in told] == [events.BackgroundFailed]
    assert flushing.sender.lost == 1
    assert saved == []
    with pytest.raises(FlushTimeout):
        drive(flusher.flush(THREADS, 0.05))
    buffer.close()
    flushing.close()


def test_a_closed_cache_has_left_the_broker_and_finds_it_again(tmp_path, rabbitmq_server):
    flushing = install(celery.Celery("closing", broker=rabbitmq_server.url, set_as_current=False))
    threads = set(threading.enumerate())
    cache = Cache()
    how = WriteBehind(flusher=flushing.app, buffer=f"sqlite:///{tmp_path}/x.db")
    users: Repository[int, str] = cache.repository(
        "user", lambda _: "v", lambda _, value: None, writes=how, not_saved=[]
    )
    for n in (1, 2):
        users.put(n, "v")
        cache.close()
        assert (flushing.sender.sent, flushing.sender.lost) == (n, 0), "what waited was sent before"
        assert flushing.sender._connection is None
        assert set(threading.enumerate()) <= threads


def test_unsafe_settings_are_named():
    app = celery.Celery("x", broker="redis://127.0.0.1:1/0", set_as_current=False)
    app.conf.accept_content = ["json", "pickle"]
    app.conf.task_annotations = {"cachewright.flush": {"acks_late": False, "reject_on_worker_lost": False}}
    install(app)
    app.finalize()
    found = "\n".join(unsafe_settings(app))
    for word in ("visibility timeout (an hour", " acks_late", "reject_on_worker_lost", "pickle"):
        assert word in found
    app.conf.broker_transport_options = {"visibility_timeout": 20}
    assert "visibility timeout (20 s here)" in "\n".join(unsafe_settings(app))
    loose = celery.Celery("z", broker="memory://", set_as_current=False)
    install(loose)
    loose.finalize()
    (sentence,) = unsafe_settings(loose)
    assert "memory has no publisher confirms" in sentence
    safe = celery.Celery("y", broker="amqp://127.0.0.1:1//", set_as_current=False)
    install(safe)
    safe.finalize()
    assert unsafe_settings(safe) == []


def test_the_queue_is_the_users_choice_and_one_for_all(tmp_path, rabbitmq_server):
    app = celery.Celery("quorum", broker=rabbitmq_server.url, set_as_current=False)
    cache = Cache()

    def make(name, flusher) -> Repository[int, str]:
        how = WriteBehind(flusher=flusher, buffer=f"sqlite:///{tmp_path}/x.db")
        return cache.repository(name, lambda _: "v", lambda _, value: None, writes=how)

    name = f"hints-{os.urandom(4).hex()}"
    users = make("user", CeleryFlusher(app, queue=name, queue_type="quorum", sweep=3))
    make("order", app)
    make("bill", CeleryFlusher(app, queue=name, queue_type="quorum", sweep=3))
    flushing = install(app)
    assert (flushing.queue, flushing.queue_type, flushing.sweep_every) == (name, "quorum", 3)
    users.put(1, "v")
    assert flushing.sender.drain(20)
    assert flushing.sender.lost == 0
    with app.connection_for_read() as connection, connection.channel() as channel:
        # asking for it as it is passes; RabbitMQ refuses another type
        durable = {"durable": True, "auto_delete": False}
        channel.queue_declare(name, arguments={"x-queue-type": "quorum"}, **durable)
        assert channel.queue_purge(name) == 1
        channel.queue_delete(name)
    with pytest.raises(
        ConfigurationError, match=r"queue_type='classic': this Celery app flushes with .*'quorum'"
    ):
        make("late", CeleryFlusher(app, queue=name))
    cache.close()


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"queue_type": "quorom"}, "did you mean 'quorum'"),
        ({"queue": ""}, "1 to 255 bytes"),
        ({"queue": 3}, "1 to 255 bytes"),
        ({"sweep": -1}, "sweep=-1"),
    ],
)
def test_wrong_settings_of_the_queue(wrong, word):
    with pytest.raises(ConfigurationError, match=word):
        CeleryFlusher(**wrong)


def test_wrong_uses(monkeypatch):
    monkeypatch.delenv("CACHEWRIGHT_BROKER", raising=False)
    with pytest.raises(ConfigurationError, match="CACHEWRIGHT_BROKER"):
        app_for()
    with pytest.raises(ConfigurationError, match=r"celery\.Celery"):
        install("amqp://")
    with pytest.raises(ConfigurationError, match="quorum"):
        install(app_for("amqp://127.0.0.1:1//"), queue_type="stream")  # type: ignore[arg-type]
