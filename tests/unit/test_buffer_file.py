"""The buffer's file: where it lies, who may write it, shared transactions, forks, full disks and damage."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from contextlib import closing
from functools import partial
from typing import Any

import pytest

from cachewright.behind import buffers
from cachewright.behind.buffers import default_buffer_url, sqlite_file
from cachewright.behind.buffers.base import NewRecord
from cachewright.behind.buffers.sqlite import SQLiteBuffer
from cachewright.behind.buffers.sqlite_jobs import Job
from cachewright.errors import BufferFull, BufferUnavailable, ConfigurationError
from cachewright.runtime.aio import AIO
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS


def open_buffer(url: str, scope: str, **bounds: int) -> SQLiteBuffer:
    buffer = buffers.open_buffer(url, scope, **bounds)
    assert isinstance(buffer, SQLiteBuffer)
    return buffer


def new(key: str, value: bytes = b"v") -> NewRecord:
    return NewRecord(key, key.encode(), value)


def append(buffer, *records):
    return drive(buffer.append(THREADS, records))


def depth(buffer) -> int:
    return drive(buffer.stats(THREADS)).dirty


def test_default_place(monkeypatch, tmp_path):
    monkeypatch.delenv("CACHEWRIGHT_BUFFER", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "a b%2Fc?d"))
    buffer = open_buffer(default_buffer_url("shop/../eu", "user"), "s")
    append(buffer, new("a"))
    found = list(tmp_path.rglob("*.db"))
    assert found == [tmp_path / "a b%2Fc?d" / "cachewright" / "shop%2F..%2Feu" / "user.db"]
    assert stat.S_IMODE(found[0].stat().st_mode) == 0o600
    assert stat.S_IMODE(found[0].parent.stat().st_mode) == 0o700
    buffer.close()
    monkeypatch.setenv("CACHEWRIGHT_BUFFER", "sqlite:///x.db")
    assert default_buffer_url("n", "r") == "sqlite:///x.db"


def test_making_and_asking_a_buffer_makes_no_file(tmp_path):
    buffer = open_buffer(f"sqlite:///{tmp_path}/sub/x.db", "s")
    assert not buffer.exists
    assert drive(buffer.read(THREADS, ["a"])) == {}
    assert drive(buffer.claim(THREADS, 10, b"flusher1", 5)) == []
    assert drive(buffer.next_due(THREADS)) is None
    assert drive(buffer.records(THREADS)) == []
    assert depth(buffer) == 0
    assert not (tmp_path / "sub").exists()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlit:///x.db", "did you mean 'sqlite'"),
        ("x.db", "sqlite:///path"),
        ("sqlite://x.db", "three slashes"),
        ("sqlite:///", "three slashes"),
        ("sqlite:///x.db?synchronus=full", "did you mean 'synchronous'"),
        ("sqlite:///x.db?synchronous=off", "expected full or normal"),
        ("sqlite:///x.db?busy=soon", "expected seconds"),
    ],
)
def test_wrong_urls(url, words):
    with pytest.raises(ConfigurationError, match=words):
        open_buffer(url, "s")


def test_a_link_or_a_folder_of_everyone_is_refused(tmp_path):
    (tmp_path / "real.db").touch()
    (tmp_path / "link.db").symlink_to(tmp_path / "real.db")
    with pytest.raises(ConfigurationError, match="symbolic link"):
        append(open_buffer(f"sqlite:///{tmp_path}/link.db", "s"), new("a"))
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    with pytest.raises(ConfigurationError, match="written by everyone"):
        append(open_buffer(f"sqlite:///{shared}/x.db", "s"), new("a"))
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(ConfigurationError, match="not a file"):
        append(open_buffer(f"sqlite:///{tmp_path}/folder.db", "s"), new("a"))


def test_another_programs_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "theirs.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs(x)")
    db.close()
    with pytest.raises(ConfigurationError, match="not a write-behind buffer"):
        append(open_buffer(f"sqlite:///{path}", "s"), new("a"))
    db = sqlite3.connect(path)
    assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
    db.close()


def test_full_is_the_default_and_normal_an_option(tmp_path):
    for option, level in [("", 2), ("?synchronous=normal", 1)]:
        buffer = open_buffer(f"sqlite:///{tmp_path}/x{level}.db{option}", "s")
        got = drive(buffer._file.write(THREADS, lambda db: db.execute("PRAGMA synchronous").fetchone()[0]))
        assert got == level
        buffer.close()


def test_a_file_that_another_makes_while_it_is_opened_is_no_stranger(tmp_path, monkeypatch):
    other, buffer = (open_buffer(f"sqlite:///{tmp_path}/{name}.db", "s") for name in "ab")
    append(other, new("a"))
    other.close()
    connect = sqlite3.connect

    class Slow(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> Any:
            found = super().execute(sql, *values)
            if sql != "PRAGMA user_version" or self.in_transaction:
                return found
            rows = found.fetchall()
            monkeypatch.setattr(sqlite3, "connect", connect)
            with closing(connect(tmp_path / "a.db")) as made, closing(connect(tmp_path / "b.db")) as here:
                made.backup(here)
            return super().execute(f"VALUES ({rows[0][0]})")

    monkeypatch.setattr(sqlite3, "connect", partial(connect, factory=Slow))
    append(buffer, new("b"))
    assert depth(buffer) == 2
    buffer.close()


def test_a_damaged_file_is_a_clear_error_and_nothing_is_accepted(tmp_path):
    (tmp_path / "x.db").write_bytes(b"this is no database, " * 500)
    (tmp_path / "x.db").chmod(0o600)
    buffer = open_buffer(f"sqlite:///{tmp_path}/x.db", "s")
    with pytest.raises(BufferUnavailable, match=r"x\.db failed, nothing was accepted"):
        append(buffer, new("a"))
    with pytest.raises(BufferUnavailable):
        drive(buffer.read(THREADS, ["a"]))


def test_a_file_locked_by_another_is_a_clear_error_and_works_again_afterwards(tmp_path):
    buffer = open_buffer(f"sqlite:///{tmp_path}/x.db?busy=0.05", "s")
    append(buffer, new("a"))
    other = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BufferUnavailable, match="locked"):
        append(buffer, new("b"))
    assert list(drive(buffer.read(THREADS, ["a", "b"]))) == ["a"]
    other.execute("ROLLBACK")
    other.close()
    append(buffer, new("b"))
    assert depth(buffer) == 2
    buffer.close()


def test_a_deleted_file_is_made_anew_rather_than_written_to_nowhere(tmp_path):
    buffer = open_buffer(f"sqlite:///{tmp_path}/x.db", "s")
    append(buffer, new("a"))
    assert list(drive(buffer.read(THREADS, ["a"]))) == ["a"]
    for path in tmp_path.glob("x.db*"):
        path.unlink()
    append(buffer, new("b"))
    assert list(drive(buffer.read(THREADS, ["a", "b"]))) == ["b"]
    buffer.close()
    again = sqlite3.connect(tmp_path / "x.db")
    assert again.execute("SELECT key FROM record").fetchall() == [("b",)]
    again.close()


def test_a_full_disk_accepts_nothing_and_loses_nothing(tmp_path):
    code = """
        import resource, sys
        from cachewright.behind.buffers import open_buffer
        from cachewright.behind.buffers.base import NewRecord
        from cachewright.errors import BufferUnavailable
        from cachewright.runtime.base import drive
        from cachewright.runtime.threads import THREADS
        buffer = open_buffer(sys.argv[1], "s")
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
        taken = []
        for n in range(1000):
            try:
                drive(buffer.append(THREADS, [NewRecord(f"k{n}", b"", b"x" * 2000)]))
                taken.append(n)
            except BufferUnavailable as error:
                print(error, file=sys.stderr)
                break
        else:
            raise SystemExit("never full")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        drive(buffer.append(THREADS, [NewRecord("after", b"", b"y")]))
        print(len(taken))
    """
    url = f"sqlite:///{tmp_path}/x.db"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), url], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "nothing was accepted" in done.stderr
    taken = int(done.stdout)
    assert taken > 10
    buffer = open_buffer(url, "s")
    assert depth(buffer) == taken + 1
    buffer.close()


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """A buffer whose transactions are counted, and whose disk is as slow as the test wants."""
    buffer = open_buffer(f"sqlite:///{tmp_path}/x.db", "s", max_dirty=150)
    file = buffer._file
    append(buffer, new("first"))
    batches: list[int] = []
    gate = threading.Event()
    original = file._commit

    def commit(batch):
        batches.append(len(batch))
        gate.wait(20)
        return original(batch)

    monkeypatch.setattr(file, "_commit", commit)
    yield buffer, batches, gate
    buffer.close()


def _wait_until(ready):
    deadline = threading.Event()
    for _ in range(2000):
        if ready():
            return
        deadline.wait(0.005)
    raise AssertionError("did not happen")


def test_concurrent_writers_share_transactions_and_get_their_own_results(counted):
    buffer, batches, gate = counted
    results: dict[int, object] = {}

    def put(n):
        try:
            results[n] = append(buffer, new(f"k{n}"))[0]
        except BufferFull as error:
            results[n] = error

    threads = [threading.Thread(target=put, args=(n,)) for n in range(200)]
    threads[0].start()
    _wait_until(lambda: len(batches) == 1)
    for thread in threads[1:]:
        thread.start()
    _wait_until(lambda: len(buffer._file._queue) == 199)
    gate.set()
    for thread in threads:
        thread.join(20)
    assert batches == [1, 199]
    taken = {n: r for n, r in results.items() if isinstance(r, int)}
    assert len(results) == 200
    assert len(taken) == 149, "one stood there already"
    assert len(set(taken.values())) == 149
    found = drive(buffer.read(THREADS, [f"k{n}" for n in range(200)]))
    assert {key: record.sequence for key, record in found.items()} == {f"k{n}": s for n, s in taken.items()}


def test_one_writer_that_cannot_be_stored_fails_only_itself(counted):
    buffer, batches, gate = counted
    outcomes: dict[str, object] = {}

    def put(key, payload):
        try:
            outcomes[key] = append(buffer, NewRecord(key, b"", payload))
        except Exception as error:
            outcomes[key] = error

    lead = threading.Thread(target=put, args=("lead", b"1"))
    lead.start()
    _wait_until(lambda: len(batches) == 1)
    rest = [threading.Thread(target=put, args=(f"k{n}", b"1")) for n in range(5)]
    rest.append(threading.Thread(target=put, args=("bad", object())))
    for thread in rest:
        thread.start()
    _wait_until(lambda: len(buffer._file._queue) == 6)
    gate.set()
    for thread in [lead, *rest]:
        thread.join(20)
    assert isinstance(outcomes.pop("bad"), Exception)
    assert all(isinstance(value, list) for value in outcomes.values())
    assert set(drive(buffer.read(THREADS, [*outcomes, "bad"]))) == set(outcomes)


async def _append(buffer, *keys):
    await asyncio.gather(*(buffer.append(AIO, [new(key)]) for key in keys))


def test_the_writer_thread_ends_with_the_buffer(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_file, "IDLE_SECONDS", 3600)
    buffer = open_buffer(f"sqlite:///{tmp_path}/x.db", "s")
    for key in "ab":
        asyncio.run(_append(buffer, key))
        thread = buffer._file._thread
        assert thread is not None
        buffer.close()
        thread.join(20)
        assert not thread.is_alive()
    assert depth(buffer) == 2
    buffer.close()


def test_work_that_comes_as_the_writer_thread_is_about_to_end_is_done(tmp_path):
    buffer = open_buffer(f"sqlite:///{tmp_path}/x.db", "s")
    file: Any = buffer._file
    job = Job(0, lambda connection: "done")
    real = file._gate

    class Gate:
        """The thread has found nothing to do. Before it looks once more, somebody queues work and sees it alive."""

        def __enter__(self):
            file._gate = real
            file._queue.append(job)
            file._call_writer()
            real.acquire()

        def __exit__(self, *_):
            real.release()

    class Wake(threading.Event):
        def wait(self, timeout=None):
            return super().wait(0)

    file._wake, file._gate = Wake(), Gate()
    file._thread = threading.current_thread()
    file._write_on(file._wake)
    assert (job.ended, file._thread) == (True, None)
    assert job.result == "done"
    buffer.close()


def test_a_writer_thread_that_ends_idle_leaves_no_write_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_file, "IDLE_SECONDS", 0)
    buffer = open_buffer(f"sqlite:///{tmp_path}/x.db", "s")

    async def main():
        async with asyncio.timeout(60):  # a write that nobody takes is looked for only every second
            for n in range(300):
                await _append(buffer, f"a{n}", f"b{n}")

    asyncio.run(main())
    assert depth(buffer) == 600
    _wait_until(lambda: buffer._file._thread is None)
    buffer.close()


def test_a_lone_writer_needs_no_second_thread(tmp_path):
    buffer = open_buffer(f"sqlite:///{tmp_path}/x.db", "s")
    append(buffer, new("a"))
    assert buffer._file._thread is None
    buffer.close()


def test_tasks_share_it_with_threads_and_over_two_loops(tmp_path):
    buffer = open_buffer(f"sqlite:///{tmp_path}/x.db", "s")

    async def put_all(name):
        sequences = await asyncio.gather(*(buffer.append(AIO, [new(f"{name}{n}")]) for n in range(100)))
        assert len({s for (s,) in sequences}) == 100
        return await buffer.read(AIO, [f"{name}{n}" for n in range(100)])

    thread = threading.Thread(target=lambda: [append(buffer, new(f"t{n}")) for n in range(50)])
    thread.start()
    assert len(asyncio.run(put_all("a"))) == 100
    assert len(asyncio.run(put_all("b"))) == 100
    thread.join()
    assert depth(buffer) == 250
    buffer.close()


def test_several_processes_share_the_file(tmp_path):
    code = """
        import sys
        from cachewright.behind.buffers import open_buffer
        from cachewright.behind.buffers.base import NewRecord
        from cachewright.runtime.base import drive
        from cachewright.runtime.threads import THREADS
        buffer = open_buffer(sys.argv[1], "s")
        for n in range(100):
            print(drive(buffer.append(THREADS, [NewRecord(f"k{n}", b"", sys.argv[2].encode())]))[0])
    """
    url = f"sqlite:///{tmp_path}/x.db"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), url, str(n)], stdout=subprocess.PIPE, text=True
        )
        for n in range(4)
    ]
    lines = [child.communicate(timeout=60)[0].split() for child in children]
    assert [child.returncode for child in children] == [0] * 4
    sequences = [int(line) for some in lines for line in some]
    assert len(set(sequences)) == 400
    buffer = open_buffer(url, "s")
    assert depth(buffer) == 100
    last = drive(buffer.records(THREADS, 1000))
    assert max(record.sequence for record in last) == max(sequences)
    buffer.close()


def test_a_forked_child_and_its_parent_both_go_on(tmp_path):
    buffer = open_buffer(f"sqlite:///{tmp_path}/x.db", "s")
    append(buffer, new("before"))
    drive(buffer.read(THREADS, ["before"]))
    stop = threading.Event()
    count = [0]

    def write_on():
        # SQLite's lock has no queue: one who never lets go keeps it from all others.
        while not stop.wait(0.0005):
            append(buffer, new(f"parent{count[0]}"))
            count[0] += 1

    writer = threading.Thread(target=write_on)
    writer.start()
    children = []
    try:
        for n in range(5):
            pid = os.fork()
            if pid == 0:
                signal.alarm(30)  # a child that hangs must not outlive the test
                code = 1
                try:
                    for m in range(20):
                        append(buffer, new(f"child{n}:{m}"))
                    code = 0 if drive(buffer.read(THREADS, ["before"])) else 2
                finally:
                    os._exit(code)
            children.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    finally:
        stop.set()
        writer.join()
    assert codes == [0] * 5
    assert depth(buffer) == 1 + 5 * 20 + count[0]
    buffer.close()
