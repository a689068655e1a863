"""Write-behind under SIGKILL, SIGSTOP and an origin that is down: nothing acknowledged is lost, nothing old comes back."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing, suppress

import pytest

from cachewright.behind.buffers import open_buffer
from cachewright.behind.buffers.base import NewRecord
from cachewright.behind.flusher import Flusher
from cachewright.behind.saving import Savers
from cachewright.behind.types import BehindOptions
from cachewright.errors import FlushTimeout
from cachewright.events import Hub
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS

COMMON = """
    import os, sqlite3, sys, time
    from cachewright.behind.buffers import open_buffer
    from cachewright.behind.buffers.base import NewRecord
    from cachewright.behind.flusher import Flusher
    from cachewright.behind.saving import Savers
    from cachewright.behind.types import BehindOptions
    from cachewright.events import Hub
    from cachewright.runtime.base import drive
    from cachewright.runtime.threads import THREADS

    FOLDER = sys.argv[1]

    def save(id, value, write=None):
        db = sqlite3.connect(f"{FOLDER}/origin.db", timeout=20)
        with db:
            db.execute("INSERT INTO origin VALUES(?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", (id, value))
        db.close()

    async def after_save(rt, keys):
        pass

    def make(save=save, where="background", **options):
        return Flusher(
            open_buffer(f"sqlite:///{FOLDER}/buffer.db", "shop/user"),
            Savers(save=save, decode=lambda r: r.payload.decode(), decode_id=lambda raw: raw.decode()),
            namespace="shop", repository="user", after_save=after_save,
            options=BehindOptions(**options), events=Hub(), where=where,
        )

    def put(flusher, key, value):
        return drive(flusher.accept(THREADS, [NewRecord(key, key.encode(), value.encode())]))[0]

    def say(*words):
        print(*words, flush=True)
"""


class Yard:
    """A folder with an origin and a buffer, processes that use them, and a flusher of this process."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.children: list[subprocess.Popen[str]] = []
        self.flushers: list[Flusher] = []
        with closing(sqlite3.connect(folder / "origin.db")) as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("CREATE TABLE origin(id PRIMARY KEY, value)")

    def child(self, code: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(COMMON) + textwrap.dedent(code), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.children.append(process)
        return process

    def line(self, process) -> list[str]:
        return process.stdout.readline().split()

    def save(self, id, value):
        with closing(sqlite3.connect(self.folder / "origin.db", timeout=20)) as db, db:
            db.execute(
                "INSERT INTO origin VALUES(?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
                (id, value),
            )

    def origin(self) -> dict[str, str]:
        with closing(sqlite3.connect(self.folder / "origin.db", timeout=20)) as db:
            return dict(db.execute("SELECT id, value FROM origin"))

    def buffer(self):
        return open_buffer(f"sqlite:///{self.folder}/buffer.db", "shop/user")

    def flusher(self, where="background", save=None, **options) -> Flusher:
        async def after_save(rt, keys):
            return None

        flusher = Flusher(
            self.buffer(),
            Savers(
                save=save or self.save,
                decode=lambda record: (record.payload or b"").decode(),
                decode_id=lambda raw: raw.decode(),
            ),
            namespace="shop",
            repository="user",
            after_save=after_save,
            options=BehindOptions(**options),
            events=Hub(),
            where=where,
        )
        self.flushers.append(flusher)
        return flusher

    def finish(self, **options) -> Flusher:
        """What the next start does: it saves what was left."""
        flusher = self.flusher(**options)
        flusher.resume()
        drive(flusher.flush(THREADS, 60))
        drive(flusher.close(THREADS))
        return flusher

    def close(self) -> None:
        for process in self.children:
            process.kill()
            process.communicate()
        for flusher in self.flushers:
            with suppress(
                FlushTimeout
            ):  # a test that failed half-way leaves dirty records; its thread must go
                drive(flusher.close(THREADS, 0))
        self.buffer().close()


@pytest.fixture
def yard(tmp_path):
    yard = Yard(tmp_path)
    yield yard
    yard.close()


def test_a_kill_right_after_put_loses_nothing(yard):
    child = yard.child(
        """
        flusher = make(where="none")
        put(flusher, "a", "1")
        os.kill(os.getpid(), 9)
        """
    )
    child.wait(30)
    assert yard.origin() == {}
    flusher = yard.finish()
    assert yard.origin() == {"a": "1"}
    assert drive(flusher.stats(THREADS)).saved == 1, "nobody had begun to save it: nothing settles"


def test_a_kill_in_the_middle_of_a_save_saves_again_and_settles(yard):
    child = yard.child(
        """
        def hang(id, value):
            say("saving")
            time.sleep(600)

        flusher = make(save=hang, claim=600)
        put(flusher, "a", "1")
        time.sleep(600)
        """
    )
    assert yard.line(child) == ["saving"]
    child.kill()
    child.wait(30)
    flusher = yard.finish(settle=0.2)
    assert yard.origin() == {"a": "1"}
    stats = drive(flusher.stats(THREADS))
    assert stats.saved == 2, "the claim of the dead was free at once, and its save may have landed: once more"


def test_a_flusher_stopped_past_its_claim_does_not_bring_back_what_it_had(yard):
    """SIGSTOP in the middle of its save, and SIGCONT after a newer state was saved by another flusher."""
    child = yard.child(
        """
        def slow(id, value):
            say("saving", value)
            sys.stdin.readline()
            save(id, value)
            say("saved", value)

        flusher = make(save=slow, claim=0.5, where="none")
        put(flusher, "a", "old")
        drive(flusher.step(THREADS))
        say("done")
        """
    )
    assert yard.line(child) == ["saving", "old"]
    child.send_signal(signal.SIGSTOP)
    flusher = yard.flusher(settle=2.0)
    drive(flusher.accept(THREADS, [NewRecord("a", b"a", b"new")]))
    deadline = time.monotonic() + 20
    while yard.origin() != {"a": "new"}:
        assert time.monotonic() < deadline, "the claim of the stopped one was never taken over"
        time.sleep(0.01)
    child.send_signal(signal.SIGCONT)
    assert child.stdin is not None
    child.stdin.write("go on\n")
    child.stdin.flush()
    assert yard.line(child) == ["saved", "old"]
    assert yard.line(child) == ["done"]
    assert yard.origin() == {"a": "old"}, "the harm is done by an unordered saver"
    drive(flusher.flush(THREADS, 30))
    assert yard.origin() == {"a": "new"}, "and undone before the key counts as clean"
    drive(flusher.close(THREADS))


@pytest.mark.slow
def test_processes_share_one_buffer_and_its_keys(yard):
    """Three writers with flushers of their own over the same keys: the last acknowledged write of each key stands."""
    code = """
        flusher = make(settle=0.05)
        me = int(sys.stdin.readline())
        for n in range(150):
            key = f"k{n % 10}"
            say(key, put(flusher, key, f"{me}:{n}"), f"{me}:{n}")
        drive(flusher.close(THREADS, 60))
    """
    children = [yard.child(code) for _ in range(3)]
    newest: dict[str, tuple[int, str]] = {}
    outputs: dict[int, str] = {}

    def talk(number, child):
        outputs[number] = child.communicate(f"{number}\n", timeout=90)[0]

    threads = [threading.Thread(target=talk, args=pair) for pair in enumerate(children)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [child.returncode for child in children] == [0, 0, 0]
    for text in outputs.values():
        for line in text.splitlines():
            key, sequence, value = line.split()
            newest[key] = max(newest.get(key, (0, "")), (int(sequence), value))
    yard.finish(settle=0.05)
    assert yard.origin() == {key: value for key, (_, value) in newest.items()}


def test_a_forked_child_flushes_for_itself(yard):
    flusher = yard.flusher()
    drive(flusher.accept(THREADS, [NewRecord("parent", b"parent", b"1")]))
    drive(flusher.flush(THREADS, 30))
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # a child that hangs must not outlive the test
        code = 1
        try:
            drive(flusher.accept(THREADS, [NewRecord("child", b"child", b"2")]))
            drive(flusher.flush(THREADS, 30))
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    drive(flusher.accept(THREADS, [NewRecord("parent", b"parent", b"3")]))
    drive(flusher.close(THREADS, 30))
    assert yard.origin() == {"parent": "3", "child": "2"}
