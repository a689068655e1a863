"""Every Python block of the README and of ``docs/`` runs, against real servers, and says the truth about its results."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import cachewright
from cachewright import Cache, TierView, WriteBehind, environment, events
from cachewright import urls as tier_urls
from cachewright.core.stats import Stats
from cachewright.schedule import Refresh
from cachewright.testing.servers import MemcachedServer, RabbitMQServer, RedisCluster, RedisServer


def _load(name: str) -> ModuleType:
    """A module beside this one; tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages = _load("pages")
MOST_NOT_RUN = 3


def _name(page: Path) -> str:
    return str(page.relative_to(pages.ROOT))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def urls(
    request: pytest.FixtureRequest,
    own_redis: Callable[[], RedisServer],
    own_memcached: Callable[[], MemcachedServer],
) -> Callable[[Path], dict[str, str]]:
    """What stands in a page → the address of a server that runs; servers of the page's own, so it starts empty."""

    def started(page: Path) -> dict[str, str]:
        found: dict[str, str] = {}
        for server in pages.servers(page):
            if server == "redis":
                url = own_redis().url.rstrip("/")
                found |= {"redis://localhost:6379/0": url, "redis://localhost": url}
            elif server == "memcached":
                found["memcached://localhost:11211"] = own_memcached().url
            elif server == "cluster":
                cluster: RedisCluster = request.getfixturevalue("redis_cluster")
                found["redis+cluster://localhost:7000,localhost:7001"] = cluster.url
            elif server == "rabbitmq":
                broker: RabbitMQServer = request.getfixturevalue("rabbitmq_server")
                found["amqp://localhost"] = broker.url
            else:
                raise AssertionError(f"{_name(page)}: there is no server {server!r} here")
        return found

    return started


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _worker(module: str, folder: Path, stack: ExitStack) -> None:
    log = stack.enter_context((folder / "worker.log").open("wb"))
    process = subprocess.Popen(
        [
            *(
                sys.executable,
                "-m",
                "celery",
                "-A",
                module,
                "worker",
                "-P",
                "solo",
                "-n",
                f"docs-{os.getpid()}@localhost",
            ),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    stack.callback(_end, process)


@pytest.mark.parametrize("page", pages.PAGES, ids=_name)
def test_the_code_of_a_page_runs(
    page: Path,
    urls: Callable[[Path], dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stack: ExitStack,
) -> None:
    real = urls(page)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    names: dict[str, Any] = {"__name__": f"docs_{page.stem}".replace("-", "_")}
    module = sys.modules[names["__name__"]] = ModuleType(names["__name__"])
    module.__dict__.update(names)
    names = module.__dict__  # annotations are looked up in the module that a class says it is from
    stack.callback(sys.modules.pop, module.__name__)
    stack.callback(_close_all, names)
    for block in pages.blocks(page):
        if block.kind == "worker":
            _worker(block.about, tmp_path, stack)
            continue
        source = block.text
        for shown, address in real.items():
            source = source.replace(f'"{shown}"', f'"{address}"').replace(f"{shown} ", f"{address} ")
        if block.kind == "file":
            (tmp_path / block.about).write_text(source, encoding="utf-8")
            stack.callback(sys.modules.pop, block.about.removesuffix(".py"), None)
        elif block.kind == "run":
            pages.run(block, source, page, names)


def _close_all(names: dict[str, Any]) -> None:
    """Closes what a page leaves open, its modules' caches too."""
    found = [value for value in names.values() if isinstance(value, Cache)]
    for module in [value for value in names.values() if isinstance(value, ModuleType)]:
        found += [value for value in vars(module).values() if isinstance(value, Cache)]
    for cache in {id(cache): cache for cache in found}.values():
        cache.close()
    for value in list(names.values()):
        if isinstance(value, sqlite3.Connection):
            value.close()


def test_few_blocks_do_not_run_and_each_says_why() -> None:
    left_out = [
        f"{_name(page)}:{block.line}: {block.about}"
        for page in pages.PAGES
        for block in pages.blocks(page)
        if block.kind == "not run"
    ]
    assert len(left_out) <= MOST_NOT_RUN, left_out
    assert all(line.rpartition(": ")[2].strip() for line in left_out)


def test_a_wrong_claim_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\n1 + 1  # → 3\n```\n\n```python\nint('x')  # → raises ValueError\n```\n")
    wrong, right = pages.blocks(page)
    with pytest.raises(AssertionError, match="the page says 3, and it is 2"):
        pages.run(wrong, wrong.text, page, {})
    pages.run(right, right.text, page, {})


def test_every_page_is_linked_from_somewhere() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages.PAGES)
    lonely = [
        _name(page)
        for page in pages.PAGES
        if page.name != "README.md" and f"{page.name})" not in text.replace("#", ")")
    ]
    assert not lonely


def test_the_tests_that_the_guarantees_name_are_there() -> None:
    page = pages.ROOT / "docs/explanation/guarantees.md"
    named = set(re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")))
    there = {
        name
        for file in (pages.ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(named) > 20
    assert named <= there, f"no such test: {sorted(named - there)}"


def _missing(names: Iterable[str], page: str) -> list[str]:
    text = (pages.ROOT / "docs/reference" / page).read_text(encoding="utf-8")
    return sorted(name for name in set(names) if not re.search(rf"\b{re.escape(name)}\b", text))


def test_the_reference_leaves_nothing_out() -> None:
    options = [*cachewright.Freshness.__annotations__, *WriteBehind.__dataclass_fields__]
    for function in (Cache.__init__, Cache.cached, Cache.repository):
        options += [
            name
            for name in inspect.signature(function).parameters
            if name not in ("self", "function", "options")
        ]
    assert not _missing(options, "options.md")
    methods = [
        name for cls in (Cache, cachewright.Repository, Refresh) for name in dir(cls) if name[0] != "_"
    ]
    ours = {
        "engine",
        "fire",
        "after_fork",
        "end",
        "close_part",
        "name",
        "options",
        "wake",
        "warmed_by",
        "loads_many",
    }  # for the library's own parts
    assert not _missing(set(methods) - ours, "api.md")
    public = [name for name in cachewright.__all__ if name[0] != "_"]
    wrong = [name for name in public if isinstance(getattr(cachewright, name), type)]
    errors = [name for name in wrong if issubclass(getattr(cachewright, name), cachewright.CacheError)]
    assert not _missing(errors, "errors.md")
    assert not _missing(set(public) - set(errors), "api.md")
    assert not _missing([cls.__name__ for cls in events.Event.__subclasses__()], "events.md")
    assert not _missing(Stats.__dataclass_fields__, "events.md")
    assert not _missing(TierView.__struct_fields__, "api.md")
    assert not _missing(
        [f"CACHEWRIGHT_{name}" for name in (*environment._READERS, *environment._OTHERS)], "environment.md"
    )
    assert not _missing(tier_urls._SCHEMES, "urls.md")
    assert not _missing([name for _, known in tier_urls._SCHEMES.values() for name in known], "urls.md")
