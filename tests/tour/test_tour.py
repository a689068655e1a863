"""The whole tour as a user runs it: every scene ok, exit 0, nothing left behind; on installed servers and embedded ones."""

from __future__ import annotations

import html.parser
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from xml.etree import ElementTree as ET

import psutil
import pytest
from typer.testing import CliRunner

from cachewright.cli.app import app
from cachewright.tour import engines, run
from cachewright.tour.stage import Scene

NAMES = [
    "simple caching with a TTL, connection retry, stampede lock",
    "cache-aside",
    "invalidation, by hand and by time",
    "TTL expiry",
    "write-through",
    "read-through",
    "write-behind",
    "multi-level",
    "sharded",
    "time-based refresh",
]
MARK = "CACHEWRIGHT_TEST_TOUR"


def command(*words: str) -> tuple[list[str], dict[str, str]]:
    env = {**os.environ, MARK: uuid.uuid4().hex, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    env.pop("FORCE_COLOR", None)
    return [sys.executable, "-m", "cachewright", *words], env


def cachewright(*words: str) -> subprocess.CompletedProcess[str]:
    line, env = command(*words)
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=110, check=False)
    assert left_over(env[MARK]) == []
    return done


def left_over(mark: str) -> list[str]:
    """Processes that the tour started, children of dead children included; given a moment to end."""
    deadline = time.monotonic() + 5
    while True:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def told(document: dict) -> str:
    wrong = [one for scene in document["scenes"] for one in scene["comparisons"] if not one["ok"]]
    return json.dumps([*wrong, *[scene["error"] for scene in document["scenes"] if scene["error"]]], indent=1)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "embedded"])
def test_the_whole_tour(engine, tmp_path):
    path = tmp_path / "tour.html"
    done = cachewright("tour", "--engine", engine, "--json", "--html", str(path))
    document = json.loads(done.stdout)
    assert (done.returncode, document["ok"]) == (0, True), told(document) + done.stderr
    scenes = document["scenes"]
    assert [(scene["number"], scene["name"]) for scene in scenes] == list(enumerate(NAMES, 1))
    assert document["seconds"] < 90
    for scene in scenes:
        assert scene["ok"], scene
        assert scene["comparisons"], scene
        assert scene["steps"], scene
        assert scene["textbook"]["steps"], scene
        assert scene["textbook"]["code"]
        assert scene["ours"]["code"]
    check_engines(engine, {scene["number"]: scene["engine"] for scene in scenes})
    check_page(path.read_text(encoding="utf-8"))


def check_engines(engine, used):
    if engine == "embedded":
        assert all("Valkey" in title for title in used.values())
        assert "in Memcached's place" in used[8]
        assert "in RabbitMQ's place" in used[7]
        return
    for number in range(1, 11):
        assert used[number].startswith("Redis "), used[number]
    assert "RabbitMQ" in used[7]
    assert "Memcached" in used[8]
    assert "Redis Cluster" in used[9]
    assert not any("embedded" in title for title in used.values())


class Page(html.parser.HTMLParser):
    """Refuses what is not balanced and collects what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.sections = 0

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)
        self.sections += tag == "section"
        if tag in ("script", "link", "img", "iframe"):
            self.fetched.append(tag)
        self.fetched += [
            value for name in ("src", "href") if (value := given.get(name)) and not value.startswith("#")
        ]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(text):
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.fetched == []
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert page.sections == 10
    drawings = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    assert len(drawings) == 10
    for drawing in drawings:
        assert ET.fromstring(drawing).find("rect") is not None


def test_scenes_can_be_played_one_by_one():
    done = cachewright("tour", "--engine", "embedded", "--only", "2,5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2. cache-aside" in done.stdout
    assert "5. write-through" in done.stdout
    assert "1. simple" not in done.stdout
    assert "\x1b" not in done.stdout
    assert "2 scenes ok" in done.stdout


@pytest.mark.slow
def test_servers_that_are_given_are_used_and_left_as_they_were(
    redis_server, memcached_server, redis_cluster, rabbitmq_server
):
    redis_server.ask("SET", "mine", "1")
    before = kept(redis_server)
    nodes_before = [kept(node) for node in redis_cluster.nodes]
    given = {
        "--redis": redis_server.url,
        "--memcached": memcached_server.url,
        "--cluster": redis_cluster.url,
        "--broker": rabbitmq_server.url,
    }
    only = [word for number in (1, 3, 7, 8, 9, 10) for word in ("--only", str(number))]
    done = cachewright("tour", "--json", *only, *[word for pair in given.items() for word in pair])
    document = json.loads(done.stdout)
    assert done.returncode == 0, told(document) + done.stderr
    used = {scene["number"]: scene["engine"] for scene in document["scenes"]}
    assert used[1] == f"Redis at {redis_server.address}"
    assert used[8].endswith(f"Memcached at {memcached_server.address}")
    assert f"127.0.0.1:{rabbitmq_server.port}" in used[7]
    assert "guest:guest" not in done.stdout
    assert all(node.running for node in redis_cluster.nodes)
    assert redis_server.ask("GET", "mine") == b"1"
    # Other tests' entries expire meanwhile; what was not there before is what the tour has left.
    assert not set(kept(redis_server)) - set(before)
    assert not [
        set(kept(node)) - set(old)
        for node, old in zip(redis_cluster.nodes, nodes_before, strict=True)
        if set(kept(node)) - set(old)
    ]


def kept(server) -> list[bytes]:
    """All keys but the marks of tags: those expire by themselves."""
    return sorted(key for key in server.ask("KEYS", "*") if b":t:" not in key)


def test_a_scene_that_fails_is_named(monkeypatch):
    def fail(stage):
        raise ConnectionError("gone")

    scene = Scene(2, "two", "about", "bug", (), (), (), fail)
    monkeypatch.setattr(run, "all_scenes", lambda: [scene])
    done = CliRunner().invoke(app, ["tour"])
    assert done.exit_code == 1
    assert "scene 2 FAILED" in done.stdout
    assert "failed: ConnectionError: gone" in done.stdout


def test_a_reader_that_has_seen_enough_is_no_error():
    line, env = command("tour", "--engine", "embedded", "--only", "2")
    with subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as tour:
        assert tour.stdout is not None
        tour.stdout.readline()
        tour.stdout.close()
        assert tour.stderr is not None
        error = tour.stderr.read()
    assert (tour.returncode, error) == (128 + signal.SIGPIPE, "")
    assert left_over(env[MARK]) == []


def test_embedded_servers_stand_in_for_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(engines, "missing_servers", lambda: ["redis", "memcached"])
    used = engines.Engines("local", {})
    try:
        assert used.embedded("redis")
        assert used.embedded("memcached")
        assert not used.embedded("broker")
        assert re.fullmatch(r"Valkey [\d.]+ in Memcached's place, embedded", used["memcached"].title)
    finally:
        used.close()


def test_postgresql_as_the_database(postgres_server):
    done = cachewright(
        "tour",
        "--engine",
        "embedded",
        "--only",
        "5",
        "--only",
        "6",
        "--json",
        "--database",
        postgres_server.url,
    )
    document = json.loads(done.stdout)
    assert done.returncode == 0, told(document) + done.stderr
    assert document["database"] == "PostgreSQL"
    assert postgres_server.url not in done.stdout


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_tour_that_is_stopped_leaves_nothing_behind(how):
    line, env = command("tour", "--engine", "embedded", "--only", "10", "--only", "9")
    with subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as tour:
        assert tour.stdout is not None
        for text in tour.stdout:
            if text.startswith("9. "):
                break
        me = psutil.Process(tour.pid)
        deadline = time.monotonic() + 20
        while not me.children() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert me.children()
        tour.send_signal(how)
        _, error = tour.communicate(timeout=30)
    assert tour.returncode == 130, error
    assert "stopped" in error
    assert left_over(env[MARK]) == []


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("tour", "--only", "11"), "the scenes are 1 to 10"),
        (("tour", "--only", "3,x"), "--only 3,x: expected the numbers of scenes"),
        (("tour", "--html", "no/such/folder.html"), "--html no/such/folder.html: cannot be written"),
        (("tour", "--redis", "http://localhost"), "expected redis://"),
        (
            ("tour", "--database", "mysql://me:hush@localhost/x"),
            "--database mysql://localhost/x: expected postgresql://",
        ),
        (("tour", "--engine", "local", "--memcached", "redis://localhost"), "expected memcached://"),
    ],
)
def test_wrong_words_are_named(words, part):
    done = cachewright(*words)
    assert done.returncode == 2
    assert part in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("option", "scheme", "path"),
    [
        ("--redis", "redis", "/0"),
        ("--memcached", "memcached", ""),
        ("--cluster", "redis+cluster", ""),
        ("--broker", "amqp", "//"),
        ("--broker", "redis", "/0"),
        ("--database", "postgresql", "/x"),
    ],
)
def test_what_cannot_be_reached_is_one_line_without_credentials(option, scheme, path):
    with socket.socket() as nobody:  # bound and not listening
        nobody.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{nobody.getsockname()[1]}{path}"
        secret = "" if scheme == "memcached" else "me:hush@"
        done = cachewright("tour", "--only", "2", option, f"{scheme}://{secret}{place}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{option} {scheme}://{place}: not reached (")
    assert done.stderr.count("\n") == 1
    assert "hush" not in done.stderr


def test_the_version():
    import cachewright as package

    assert cachewright("--version").stdout.strip() == package.__version__


def test_without_the_extra_the_message_says_how_to_get_it(tmp_path):
    (tmp_path / "typer.py").write_text("raise ImportError('no typer')")
    line, env = command("tour")
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert 'pip install "cachewright[cli]"' in done.stderr
    assert "Traceback" not in done.stderr
