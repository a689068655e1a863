"""The servers that tests and the tour start: each answers, fails as it is told, comes back, and leaves nothing."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from cachewright.errors import TierProtocolError, TierUnavailable
from cachewright.runtime.process import ServerProcess, free_port, wait_until
from cachewright.testing import servers
from cachewright.testing.servers import (
    MemcachedServer,
    PostgresServer,
    RabbitMQServer,
    RedisCluster,
    RedisServer,
    ValkeyServer,
    missing_servers,
)
from cachewright.tiers.embedded import EmbeddedServer
from cachewright.tiers.embedded_cluster import ClusterProcesses, EmbeddedCluster
from cachewright.tiers.redis_process import RedisProcess, ask


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def run_python(code: str, *arguments: str, temporary: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},  # one that is killed cannot tidy up
    )


def test_every_server_is_installed():
    assert missing_servers() == [], "run `make setup`"


def test_a_server_that_is_not_installed_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(servers._PLACES, "memcached", ["no-such-program"])
    assert missing_servers() == ["memcached"]
    with pytest.raises(TierUnavailable, match=r"make setup.*apt-get install memcached"):
        MemcachedServer()


@pytest.mark.parametrize("make", [RedisServer, ValkeyServer, MemcachedServer])
def test_life_of_a_server(make: Callable[[], ServerProcess]):
    server = make()
    with server:
        first = server.pid
        assert first is not None
        assert server.ready()
        server.start()  # runs already
        assert server.pid == first

        server.pause()
        assert psutil.Process(first).status() == psutil.STATUS_STOPPED
        server.resume()
        assert wait_until(server.ready, 5)

        server.kill()
        assert gone(first)
        assert not server.running
        assert not server.ready()
        with pytest.raises(TierUnavailable, match="not running"):
            server.pause()

        server.start()
        assert server.ready()
        server.restart()
        second = server.pid
        assert second is not None
        server.pause()  # a paused server can be stopped too
    assert gone(second)
    assert not server.folder.exists()


def test_redis_keeps_address_and_data_over_a_restart():
    with RedisServer(options={"appendonly": "yes", "appendfsync": "always"}) as server:
        port = server.port
        server.ask("SET", "k", "v")
        server.kill()
        server.start()
        assert server.port == port
        assert server.ask("GET", "k") == b"v"


def test_valkey_wants_its_password_and_hides_it(valkey_server: ValkeyServer):
    password = valkey_server.password
    assert password is not None
    assert len(password) >= 32
    assert password not in repr(valkey_server)
    assert password not in " ".join(psutil.Process(valkey_server.pid).cmdline())
    assert password not in valkey_server.log_tail(1000)
    assert stat.S_IMODE(valkey_server.folder.stat().st_mode) == 0o700
    for file in valkey_server.folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file
    with redis.Redis.from_url(valkey_server.url) as client:
        assert client.ping()
    with pytest.raises(TierProtocolError, match="NOAUTH"):
        ask(valkey_server.port, "PING")


@pytest.mark.parametrize("fixture", ["redis_server", "valkey_server", "memcached_server", "postgres_server"])
def test_servers_listen_on_the_loopback_interface_only(fixture: str, request: pytest.FixtureRequest):
    server = request.getfixturevalue(fixture)
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(server.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]


def test_a_server_that_ends_at_start_shows_its_last_words():
    server = RedisServer(options={"no-such-setting": "1"})
    try:
        with pytest.raises(TierUnavailable, match=r"ended at start with code 1(.|\n)*no-such-setting"):
            server.start()
        assert server.pid is None
    finally:
        server.close()


def test_a_server_that_never_answers_is_killed(tmp_path: Path):
    class Mute(ServerProcess):
        def ready(self) -> bool:
            return False

    code = "import time; print('hm', flush=True); time.sleep(60)"
    server = Mute("mute", [sys.executable, "-c", code], folder=tmp_path, start_timeout=0.5)
    with pytest.raises(TierUnavailable, match=r"mute: did not answer within 0.5 s; its last output:\nhm"):
        server.start()
    assert server.pid is None


def test_a_program_that_does_not_exist_is_named(tmp_path: Path):
    class Lost(ServerProcess):
        def ready(self) -> bool:
            return False

    with pytest.raises(TierUnavailable, match="no-such-program"):
        Lost("lost", ["no-such-program"], folder=tmp_path).start()


def test_a_server_outlives_the_thread_that_started_it():
    with RedisServer() as server:
        server.stop()
        thread = threading.Thread(target=server.start)
        thread.start()
        thread.join()
        assert not wait_until(lambda: not server.running, 0.3)


@pytest.mark.parametrize("make", ["RedisServer", "ValkeyServer", "MemcachedServer"])
@pytest.mark.parametrize("end", ["SIGKILL", "exit"])
def test_a_server_ends_with_its_owner(make: str, end: str, tmp_path: Path):
    code = (
        f"from cachewright.testing.servers import {make}\n"
        f"server = {make}(); server.start(); print(server.pid, flush=True); input()"
    )
    with run_python(code, temporary=tmp_path) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert not gone(pid)
        if end == "SIGKILL":
            owner.kill()
        else:
            owner.communicate("\n")
        assert wait_until(lambda: gone(pid), 10)


def in_forked_child(check: Callable[[], bool]) -> bool:
    """Run a check in a forked child that ends like a program, atexit handlers included."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if check() else 1
        finally:
            import atexit

            atexit._run_exitfuncs()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_forked_child_never_stops_its_parents_server(redis_server: RedisServer):
    def child() -> bool:
        redis_server.stop()
        redis_server.kill()
        redis_server.close()
        try:
            redis_server.start()
        except TierUnavailable:
            return redis_server.pid is None and redis_server.ask("PING") == b"PONG"
        return False

    assert in_forked_child(child)
    assert redis_server.ready()
    assert redis_server.folder.exists()


def test_ports_are_free_and_never_given_twice():
    ports = [free_port() for _ in range(200)]
    assert len(set(ports)) == 200
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", ports[0]))
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    assert max(ports) < low, "a client must never be given a server's port as its own"


def test_ask_reads_every_kind_of_answer(redis_server: RedisServer, namespace: str):
    key = f"{namespace}:list"
    assert redis_server.ask("RPUSH", key, "a", b"\r\n", 3) == 3
    assert redis_server.ask("LRANGE", key, 0, -1) == [b"a", b"\r\n", b"3"]
    assert redis_server.ask("GET", f"{namespace}:none") is None
    assert redis_server.ask("EVAL", "return {1, {false, 'x'}}", 0) == [1, [None, b"x"]]
    with pytest.raises(TierProtocolError, match="unknown command"):
        redis_server.ask("NOSUCH")


# Clusters


@pytest.mark.parametrize("fixture", ["redis_cluster", "valkey_cluster"])
def test_a_cluster_serves_every_slot(fixture: str, request: pytest.FixtureRequest, namespace: str):
    cluster: ClusterProcesses = request.getfixturevalue(fixture)
    assert len(cluster.addresses) == len(set(cluster.pids)) == 6
    host, port = cluster.addresses[0].split(":")
    with redis.RedisCluster(host=host, port=int(port), password=cluster.nodes[0].password) as client:
        for number in range(100):
            client.set(f"{namespace}:{number}", number)
        owners = {cluster.primary_of(f"{namespace}:{number}").port for number in range(100)}
    assert len(owners) == 3
    assert len(cluster.replicas_of(namespace)) == 1


def test_a_replica_takes_over_and_the_old_primary_comes_back():
    with EmbeddedCluster() as cluster:
        key = "some key"
        successor = cluster.replicas_of(key)[0]
        dead = cluster.kill_primary(key)
        assert dead.pid is None
        assert wait_until(lambda: primary_or_none(cluster, key) is successor, 20)
        cluster.wait_ready()
        dead.start()
        cluster.wait_ready()
        assert cluster.primary_of(key) is successor
        assert cluster.replicas_of(key) == [dead]
        pids = cluster.pids
    assert all(gone(pid) for pid in pids)


def primary_or_none(cluster: ClusterProcesses, key: str) -> RedisProcess | None:
    try:
        return cluster.primary_of(key)
    except (OSError, TierProtocolError, TierUnavailable):
        return None


def test_a_cluster_without_its_nodes_says_so():
    with RedisCluster(primaries=3, replicas=0) as cluster:
        cluster.kill_primary("x")
        for node in cluster.nodes:
            node.kill()
        with pytest.raises(TierUnavailable, match="no node answers"):
            cluster.primary_of("x")


# RabbitMQ and PostgreSQL


def test_rabbitmq_has_an_epmd_of_its_own_that_ends_with_it(own_rabbitmq: Callable[..., RabbitMQServer]):
    server = own_rabbitmq()
    broker, epmd = server.pid, server.epmd.pid
    assert broker is not None
    assert epmd is not None
    family = [process.pid for process in psutil.Process(broker).children(recursive=True)]
    assert psutil.Process(broker).name() == "beam.smp"
    server.kill()
    assert not server.ready()
    server.start()
    assert server.ready()
    assert server.epmd.pid == epmd
    assert server.pid is not None
    family += [server.pid, *(process.pid for process in psutil.Process(server.pid).children(recursive=True))]
    server.close()
    assert wait_until(lambda: all(gone(pid) for pid in [broker, epmd, *family]), 10)


def test_postgres_keeps_its_data_over_a_crash(own_postgres: Callable[..., PostgresServer]):
    server = own_postgres()
    with psycopg.connect(server.url) as connection:
        connection.execute("create table t (n int)")
        connection.execute("insert into t values (7)")
    server.kill()
    server.start()
    with psycopg.connect(server.url) as connection:
        row = connection.execute("select n from t").fetchone()
    assert row == (7,)
    assert "cachewright:" in server.url
    assert server.url not in repr(server)


# embedded://


def test_a_private_embedded_server():
    with EmbeddedServer() as server:
        pid = server.pid
        assert pid is not None
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()

        def child() -> bool:
            server.stop()
            return server.pid is None

        assert in_forked_child(child)
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
        assert server.url.split("@")[0].split(":")[-1] not in repr(server)
    assert gone(pid)
    assert server.pid is None


SHARER = """
import sys
from cachewright.tiers.embedded import EmbeddedServer
server = EmbeddedServer(sys.argv[1]); server.start(); print(server.pid, server.url, flush=True); input()
"""


def test_processes_that_start_at_once_share_one_server_and_it_ends_with_the_last(tmp_path: Path):
    users = [run_python(SHARER, str(tmp_path), temporary=tmp_path) for _ in range(4)]
    try:
        said = {user.stdout.readline() for user in users if user.stdout is not None}
        assert len(said) == 1
        pid, url = said.pop().split()
        with redis.Redis.from_url(url) as client:
            client.set("k", "v")
            users[0].communicate("\n")  # one of them may have started it
            for user in users[1:3]:
                user.kill()
                user.wait()
            # An end that comes too early would come within a tenth of a second; three keeper's rounds are waited.
            assert not wait_until(lambda: gone(int(pid)), 0.4)
            assert client.get("k") == b"v"
        users[3].kill()  # the last one gets no chance to say goodbye
        assert wait_until(lambda: gone(int(pid)), 10)
    finally:
        for user in users:
            user.kill()
            user.wait()
            for stream in (user.stdin, user.stdout):
                assert stream is not None
                stream.close()

    with EmbeddedServer(tmp_path) as again, redis.Redis.from_url(again.url) as client:
        assert client.get("k") == b"v"
        keeper = psutil.Process(again.pid).ppid()
    assert wait_until(lambda: gone(keeper), 10)


def test_a_shared_server_stays_for_a_forked_child(tmp_path: Path):
    server = EmbeddedServer(tmp_path)
    server.start()
    pid, url = server.pid, server.url
    assert pid is not None
    ready_r, ready_w = os.pipe()
    go_r, go_w = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready_w, b".")
        os.read(go_r, 1)
        os._exit(0)
    os.read(ready_r, 1)
    server.stop()
    assert not wait_until(lambda: gone(pid), 0.4)
    with redis.Redis.from_url(url) as client:
        assert client.ping()
    os.write(go_w, b".")
    os.waitpid(child, 0)
    for descriptor in (ready_r, ready_w, go_r, go_w):
        os.close(descriptor)
    assert wait_until(lambda: gone(pid), 10)


def test_a_shared_server_whose_keeper_was_killed_is_started_anew(tmp_path: Path):
    with EmbeddedServer(tmp_path) as first:
        pid = first.pid
        assert pid is not None
        os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
        assert wait_until(lambda: gone(pid), 10)
        with EmbeddedServer(tmp_path) as second:
            assert second.pid != pid
            with redis.Redis.from_url(second.url) as client:
                assert client.ping()


def test_a_shared_folder_is_private_to_its_user(tmp_path: Path):
    tmp_path.chmod(0o755)
    with EmbeddedServer(tmp_path):
        base = tmp_path / "cachewright-valkey"
        assert stat.S_IMODE(base.stat().st_mode) == 0o700
        assert stat.S_IMODE((base / "server.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755  # the user's folder is the user's
    deadline = time.monotonic() + 10
    while (base / "server.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
