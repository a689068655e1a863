"""The SQLite tier: its file, several processes on it, forks, and what happens when it is locked, full or damaged."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from cachewright.core.slot import NEVER, Intent, Lease, Slot, StoredEntry
from cachewright.errors import ConfigurationError, TierTimeout, TierUnavailable
from cachewright.runtime.aio import AIO
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS, ThreadRuntime
from cachewright.tiers import sqlite as module
from cachewright.tiers.base import Swap
from cachewright.tiers.sqlite import SqliteTier


def ms():
    return int(time.time() * 1000)


def nonce():
    return os.urandom(8)


def slot(payload=b"v", ttl=60.0):
    fresh = NEVER if ttl is None else ms() + int(ttl * 1000)
    return Slot(nonce(), entry=StoredEntry(payload, ms(), fresh, fresh, 0))


def leased(ttl=5.0):
    return Slot(nonce(), lease=Lease(nonce(), ms() + int(ttl * 1000), int(ttl * 1000)))


def put(tier, key="k", *args, **kwargs):
    return drive(tier.store(THREADS, {key: slot(*args, **kwargs)}))[0]


def read(tier, key="k", rt=THREADS):
    return drive(tier.read(rt, [key]))[0].get(key)


def swap(tier, key, expected, new):
    return drive(tier.swap(THREADS, [Swap(key, expected, new)]))[0]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "cache.db"


@pytest.fixture
def tier(path):
    tier = SqliteTier(path=path, namespace="t")
    yield tier
    tier.close()


# --------------------------------------------------------------------------------------------------- the file


def test_the_file_is_for_its_owner_only_and_survives(tier, path):
    assert not path.exists(), "nothing is opened before first use"
    put(tier, payload=b"kept")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((path.parent / "cache.db-wal").stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    tier.close()
    assert not (path.parent / "cache.db-wal").exists(), "the last to close writes the log back"
    again = SqliteTier(path=str(path), namespace="t")
    assert read(again).entry.payload == b"kept"
    again.close()
    assert tier.describe()["bytes"] > 0


def test_namespaces_share_a_file_and_nothing_else(tier, path):
    other = SqliteTier(path=path, namespace="u")
    put(tier, payload=b"t")
    put(other, payload=b"u")
    drive(other.set_generations(THREADS, {"tag": nonce()}, only_missing=False))
    drive(tier.clear(THREADS))
    assert read(tier) is None
    assert read(other).entry.payload == b"u"
    assert drive(tier.read(THREADS, [], ["tag"]))[1] == {}
    other.close()


@pytest.mark.parametrize("bad", ["", ":memory:", "file:x.db?mode=memory"])
def test_a_path_must_be_a_file(bad):
    with pytest.raises(ConfigurationError, match="memory://"):
        SqliteTier(path=bad, namespace="t")


def test_a_symbolic_link_and_a_folder_are_refused(tmp_path):
    (tmp_path / "real.db").touch()
    (tmp_path / "link.db").symlink_to(tmp_path / "real.db")
    (tmp_path / "folder.db").mkdir()
    for name, what in (("link.db", "symbolic link"), ("folder.db", "not a regular file")):
        with pytest.raises(ConfigurationError, match=what):
            put(SqliteTier(path=tmp_path / name, namespace="t"))


def test_a_folder_where_everybody_writes_is_refused_unless_sticky(tmp_path):
    tmp_path.chmod(0o777)
    tier = SqliteTier(path=tmp_path / "cache.db", namespace="t")
    with pytest.raises(ConfigurationError, match="chmod o-w"):
        put(tier)
    tmp_path.chmod(0o1777)
    assert put(tier)
    tier.close()
    tmp_path.chmod(0o700)


def test_files_of_others_and_of_newer_releases_are_refused_untouched(tmp_path):
    foreign = sqlite3.connect(tmp_path / "foreign.db")
    foreign.execute("CREATE TABLE theirs (x)")
    foreign.close()
    before = (tmp_path / "foreign.db").read_bytes()
    with pytest.raises(ConfigurationError, match="another program"):
        put(SqliteTier(path=tmp_path / "foreign.db", namespace="t"))
    assert (tmp_path / "foreign.db").read_bytes() == before
    tier = SqliteTier(path=tmp_path / "newer.db", namespace="t")
    put(tier)
    tier.close()
    newer = sqlite3.connect(tmp_path / "newer.db")
    newer.execute("PRAGMA user_version = 2")
    newer.close()
    with pytest.raises(ConfigurationError, match="format version 2"):
        put(tier)


def test_a_damaged_file_is_reported_and_kept(path):
    path.parent.mkdir()
    path.write_bytes(b"not a database, but somebody's bytes" * 100)
    tier = SqliteTier(path=path, namespace="t")
    with pytest.raises(TierUnavailable, match=r"damaged.*move it away"):
        read(tier)
    assert path.read_bytes().startswith(b"not a database")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TierUnavailable, match="cannot be made"):
        put(SqliteTier(path=tmp_path / "file" / "cache.db", namespace="t"))


def test_a_replaced_file_is_noticed(tier, path, monkeypatch):
    monkeypatch.setattr("cachewright.tiers.sqlite_file.LOOK_EVERY", 0.0)
    put(tier)
    for left in path.parent.glob("cache.db*"):
        left.unlink()
    assert read(tier) is None
    put(tier, payload=b"new")
    other = SqliteTier(path=path, namespace="t")
    assert read(other).entry.payload == b"new"
    other.close()


FULL = """
import resource, sys, os
from cachewright.tiers.sqlite import SqliteTier
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS
from cachewright.errors import TierUnavailable
from cachewright.core.slot import Slot, StoredEntry, NEVER
tier = SqliteTier(path=sys.argv[1], namespace="t", timeout=5)
def put(key, size):
    drive(tier.store(THREADS, {key: Slot(os.urandom(8), entry=StoredEntry(os.urandom(size), 0, NEVER, 0, 0))}))
put("small", 10)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
try:
    put("large", 1_000_000)
except TierUnavailable as error:
    print("refused", error)
print(len(drive(tier.read(THREADS, ["small"]))[0]), len(drive(tier.read(THREADS, ["large"]))[0]))
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
put("large", 1_000_000)
print(len(drive(tier.read(THREADS, ["large"]))[0]))
"""


def test_a_file_that_cannot_grow_is_unavailable_and_comes_back(path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, path], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("refused sqlite(")
    assert lines[1:] == ["1 0", "1"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 200_000


# --------------------------------------------------------------------------------------------------- the slots


def test_swaps_keep_to_the_header(tier):
    lease = leased()
    assert swap(tier, "k", None, lease).done
    refused = swap(tier, "k", None, leased())
    assert not refused.done
    assert refused.current.header == lease.header
    full = slot(b"x" * 10_000)
    assert swap(tier, "k", lease, full).done
    beside = Slot(nonce(), entry=read(tier).entry, lease=leased().lease)
    seen = read(tier)
    beside = Slot(nonce(), entry=seen.entry, lease=leased().lease)
    assert swap(tier, "k", seen, beside).done, "header alone"
    assert read(tier).entry.payload == b"x" * 10_000
    assert read(tier).lease == beside.lease
    assert not swap(tier, "k", seen, None).done
    assert swap(tier, "k", beside, None).done
    assert read(tier) is None
    assert swap(tier, "k", None, None).done


def test_foreign_bytes_are_a_slot_that_can_be_swapped_away(tier, path):
    put(tier)
    raw = sqlite3.connect(path)
    raw.execute("UPDATE slots SET header = ?, payload = ?", (b"head", b"tail" * 50))
    raw.commit()
    raw.close()
    seen = read(tier)
    assert seen.foreign == b"head" + b"tail" * 50
    assert not swap(tier, "k", leased(), slot()).done
    assert swap(tier, "k", seen, slot(b"new")).done
    assert read(tier).entry.payload == b"new"


def test_expired_rows_are_absent_and_later_writes_delete_them(tier, path):
    class Clock:
        offset = 0.0

        def now(self):
            return time.time() + self.offset

        monotonic = staticmethod(time.monotonic)

    clock = Clock()
    rt = ThreadRuntime(clock)
    drive(tier.store(rt, {f"k{n}": slot(ttl=10) for n in range(150)}))
    drive(tier.store(rt, {"eternal": slot(ttl=None)}))
    assert swap(tier, "lease", None, leased(5)).done
    clock.offset = 11
    assert read(tier, "k0", rt) is None
    assert read(tier, "lease", rt) is None
    assert drive(tier.swap(rt, [Swap("k0", None, slot(b"again", ttl=100))]))[0].done, "expired is absent"
    assert not drive(tier.drop(rt, ["k1"]))[0]
    for _ in range(2 * module.SWEEP_EVERY):
        drive(tier.drop(rt, ["nothing"]))
    raw = sqlite3.connect(path)
    assert {row[0] for row in raw.execute("SELECT key FROM slots")} == {b"t:k:k0", b"t:k:eternal"}
    raw.close()


def test_intents_outlive_drop_store_and_clear(tier, monkeypatch):
    monkeypatch.setattr(module, "CLEAR_ROWS", 7)
    monkeypatch.setattr(module, "_CLEAR", module._CLEAR.replace("LIMIT 2000", "LIMIT 7"))
    intent = Intent(nonce(), ms() + 30_000)
    assert swap(tier, "k", None, Slot(nonce(), intents=(intent,))).done
    assert drive(tier.drop(THREADS, ["k", "none"])) == [False, False]
    assert read(tier).intents == (intent,)
    assert read(tier).contended
    assert not put(tier)
    assert read(tier).entry is None
    drive(tier.store(THREADS, {f"k{n}": slot() for n in range(50)}))
    drive(tier.clear(THREADS))
    assert drive(tier.read(THREADS, [f"k{n}" for n in range(50)]))[0] == {}
    assert read(tier).intents == (intent,)


def test_generations(tier):
    first, second = nonce(), nonce()
    assert drive(tier.set_generations(THREADS, {"t": first}, only_missing=True))["t"].mark == first
    assert drive(tier.set_generations(THREADS, {"t": second}, only_missing=True))["t"].mark == first
    put(tier)
    slots, generations = drive(tier.read(THREADS, ["k", "l"], ["t", "u"]))
    assert list(slots) == ["k"]
    assert generations["t"].mark == first
    assert abs(generations["t"].changed - ms()) < 60_000
    assert list(generations) == ["t"]
    assert drive(tier.set_generations(THREADS, {"t": second}, only_missing=False))["t"].mark == second


# ------------------------------------------------------------------------------------ several at the same time


def test_threads_swapping_one_slot_have_one_winner(path):
    tier = SqliteTier(path=path, namespace="t", timeout=10)
    rounds, threads = 30, 8
    barrier = threading.Barrier(threads)
    wins = [0] * rounds
    errors = []

    def race():
        try:
            for n in range(rounds):
                barrier.wait(30)
                seen = read(tier, f"k{n % 3}")
                barrier.wait(30)
                if swap(tier, f"k{n % 3}", seen, slot()).done:
                    wins[n] += 1
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    workers = [threading.Thread(target=race) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    tier.close()
    assert not errors
    assert wins == [1] * rounds


def race_in_a_process(path, rounds, barrier, wins):
    tier = SqliteTier(path=path, namespace="t", timeout=10)
    for n in range(rounds):
        barrier.wait(60)
        seen = read(tier, f"k{n % 3}")
        barrier.wait(60)
        if swap(tier, f"k{n % 3}", seen, slot()).done:
            with wins.get_lock():
                wins[n] += 1
    tier.close()


def test_processes_making_and_swapping_one_file_have_one_winner(path):
    rounds, number = 30, 4
    context = multiprocessing.get_context("spawn")
    barrier, wins = context.Barrier(number), context.Array("i", rounds)
    processes = [
        context.Process(target=race_in_a_process, args=(str(path), rounds, barrier, wins))
        for _ in range(number)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(90)
    assert [process.exitcode for process in processes] == [0] * number
    assert wins[:] == [1] * rounds


def hold_lock(path):
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    return holder


def test_a_locked_file_times_out_within_the_deadline_and_reads_go_on(path):
    tier = SqliteTier(path=path, namespace="t", timeout=0.2)
    put(tier, payload=b"old")
    holder = hold_lock(path)
    start = time.monotonic()
    with pytest.raises(TierTimeout, match="lock"):
        put(tier, payload=b"new")
    assert 0.15 < time.monotonic() - start < 5
    assert read(tier).entry.payload == b"old"
    holder.execute("ROLLBACK")
    assert put(tier, payload=b"new")
    holder.close()
    tier.close()


def test_a_store_that_was_given_up_never_lands(path):
    async def scenario():
        tier = SqliteTier(path=path, namespace="t", timeout=5)
        await tier.store(AIO, {"k": slot(b"first")})
        holder = hold_lock(path)
        late = asyncio.ensure_future(tier.store(AIO, {"k": slot(b"late")}))
        await asyncio.sleep(0.05)
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        holder.execute("ROLLBACK")
        holder.close()
        found = await tier.read(AIO, ["k"])  # after the one that was given up, on the same thread
        await tier.aclose(AIO)
        return found[0]["k"].payload

    assert asyncio.run(scenario()) == b"first"


def test_asyncio_and_threads_share_one_tier_over_several_loops(tier):
    async def many(mark):
        await asyncio.gather(*(tier.store(AIO, {f"{mark}{n}": slot()}) for n in range(50)))
        return len((await tier.read(AIO, [f"{mark}{n}" for n in range(50)]))[0])

    assert asyncio.run(many("a")) == 50
    assert asyncio.run(many("b")) == 50
    assert len(drive(tier.read(THREADS, [f"a{n}" for n in range(50)]))[0]) == 50
    with pytest.raises(TierUnavailable):
        asyncio.run(SqliteTier(path="/proc/cachewright/x.db", namespace="t").connect(AIO))


def test_the_event_loop_is_not_held_up_by_a_locked_file(path):
    async def scenario():
        tier = SqliteTier(path=path, namespace="t", timeout=0.3)
        await tier.connect(AIO)
        holder = hold_lock(path)
        store = asyncio.ensure_future(tier.store(AIO, {"k": slot()}))
        turns = 0
        while not store.done():
            turns += 1
            await asyncio.sleep(0.005)
        with pytest.raises(TierTimeout):
            await store
        holder.close()
        tier.close()
        return turns

    assert asyncio.run(scenario()) > 5


def test_close_from_another_thread_while_in_use(tier):
    stop, errors = threading.Event(), []

    def work():
        n = 0
        while not stop.is_set():
            n += 1
            try:
                put(tier, f"k{n % 5}")
                read(tier)
            except BaseException as error:
                errors.append(error)
                return

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for _ in range(20):
        tier.close()
        time.sleep(0.005)
    stop.set()
    for worker in workers:
        worker.join(30)
    assert not errors


# ------------------------------------------------------------------------------------------------------- forks


def in_child(work) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = work() or 0
        finally:
            os._exit(code)
    return child


def exit_code(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_nothing_is_open_across_a_fork_and_both_sides_go_on(path):
    tier = SqliteTier(path=path, namespace="t", timeout=5)
    put(tier, "parent", b"1")
    ready, go = os.pipe(), os.pipe()

    def child():
        names = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if int(fd) > 2 and os.path.islink(f"/proc/self/fd/{fd}")
        ]
        if any("cache.db" in name for name in names):
            return 3
        tier.after_fork()
        if read(tier, "parent").entry.payload != b"1" or not put(tier, "child", b"2"):
            return 4
        os.write(ready[1], b"x")
        os.read(go[0], 1)  # meanwhile the parent closes: were we not known to be there, the log would go
        return 0 if put(tier, "child", b"3") and read(tier, "child").entry.payload == b"3" else 5

    pid = in_child(child)
    assert os.read(ready[0], 1) == b"x"
    assert read(tier, "child").entry.payload == b"2"
    tier.close()
    os.write(go[1], b"x")
    assert exit_code(pid) == 0
    assert read(tier, "child").entry.payload == b"3"
    tier.close()
    raw = sqlite3.connect(path)
    assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    raw.close()
    for fd in (*ready, *go):
        os.close(fd)


def test_forks_while_other_threads_work(path):
    tier = SqliteTier(path=path, namespace="t", timeout=5)
    stop, errors = threading.Event(), []

    def work(who):
        n = 0
        while not stop.is_set():
            n += 1
            try:
                put(tier, f"{who}-{n % 7}")
                read(tier, f"{who}-{n % 7}")
            except BaseException as error:
                errors.append(error)
                return

    workers = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for worker in workers:
        worker.start()
    codes = []
    for n in range(8):
        codes.append(exit_code(in_child(lambda n=n: 0 if put(tier, f"child{n}") else 2)))
    stop.set()
    for worker in workers:
        worker.join(30)
    assert codes == [0] * 8
    assert not errors
    assert len(drive(tier.read(THREADS, [f"child{n}" for n in range(8)]))[0]) == 8
    tier.close()


def test_a_child_forked_in_the_middle_of_an_operation_leaves_the_file_alone(path):
    tier = SqliteTier(path=path, namespace="t", timeout=0.1)
    put(tier)
    inside, leave = threading.Event(), threading.Event()

    def slow(connection: Any) -> None:
        inside.set()
        leave.wait(30)

    worker = threading.Thread(target=lambda: tier._file.read(slow, time.monotonic() + 30))
    worker.start()
    assert inside.wait(10)

    def child():
        try:
            read(tier)
        except TierUnavailable as error:
            return 0 if "forked in the middle" in str(error) else 4
        return 3

    pid = in_child(child)
    leave.set()
    worker.join(30)
    assert exit_code(pid) == 0
    assert read(tier) is not None, "the parent goes on"
    tier.close()
