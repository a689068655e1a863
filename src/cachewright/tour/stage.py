"""What a scene is given: engines, the database, both recorders, and a way to say what was expected."""

from __future__ import annotations

import ast
import inspect
import secrets
import textwrap
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachewright import Cache
from cachewright.errors import MissingExtraError
from cachewright.events import Event, Loaded, StaleServed
from cachewright.tour.engines import Engines
from cachewright.tour.model import Comparison, SceneResult
from cachewright.tour.origin import Origin, marks
from cachewright.tour.recorder import Recorder

__all__ = ["Scene", "Stage"]


@dataclass(frozen=True)
class Scene:
    """One strategy.

    Attributes:
        number: its place.
        name: the strategy's name.
        about: what it does, in two sentences.
        bug: what goes wrong in the textbook's version, in one.
        needs: the engines: ``"redis"``, ``"memcached"``, ``"cluster"``, ``"broker"``.
        ours: the functions whose source is shown as our code.
        textbook: and as the textbook's.
        run: plays it.
    """

    number: int
    name: str
    about: str
    bug: str
    needs: tuple[str, ...]
    ours: tuple[Callable[..., Any], ...]
    textbook: tuple[Callable[..., Any], ...]
    run: Callable[[Stage], None]

    def blank(self) -> SceneResult:
        """A result with nothing played yet."""
        result = SceneResult(self.number, self.name, self.about, self.bug)
        result.ours.code = "\n\n".join(map(source, self.ours))
        result.textbook.code = "\n\n".join(map(source, self.textbook))
        return result


class Stage:
    """The surroundings of one scene.

    Args:
        engines: the tour's.
        origin: the tour's database.
        result: where everything goes.
        folder: for files, the tour's own.
        say: told what is going on while one waits.
    """

    def __init__(
        self, engines: Engines, origin: Origin, result: SceneResult, folder: Path, say: Callable[[str], None]
    ) -> None:
        self.engines, self.origin, self.result, self.folder, self.say = engines, origin, result, folder, say
        self.stack = ExitStack()
        """Closed when the scene ends."""
        self.namespace = f"tour-{secrets.token_hex(3)}"
        self.started = time.monotonic()
        origin.reset()
        origin.now = self.now
        self.ours = Recorder(result.ours, origin, self.now)
        self.textbook = Recorder(result.textbook, origin, self.now)
        self._clients: dict[str, Any] = {}

    def now(self) -> float:
        """Seconds since the scene began."""
        return time.monotonic() - self.started

    def cache(self, *urls: str, **options: Any) -> Cache:
        """A cache in the scene's namespace, emptied and closed at the end of the scene."""
        cache = Cache(*urls, namespace=self.namespace, **options)
        cache.events.subscribe(_mark)
        self.stack.callback(cache.close)
        if any(urls and need in self.engines.given for need in ("redis", "memcached", "cluster")):
            self.stack.callback(cache.clear)  # somebody else's server: leave nothing
        return cache

    def redis(self, need: str = "redis") -> Any:
        """A plain redis-py client of an engine, as textbooks use it."""
        if need not in self._clients:
            try:
                import redis
            except ImportError as error:
                raise MissingExtraError("the tour's textbook versions", "redis") from error
            client = redis.Redis.from_url(self.engines[need].url, decode_responses=True)
            self.stack.callback(client.close)
            self.stack.callback(self._clean, client)
            self._clients[need] = client
        return self._clients[need]

    def key(self, name: str) -> str:
        """A textbook key that meets nobody else's."""
        return f"{self.namespace}-textbook:{name}"

    def _clean(self, client: Any) -> None:
        for key in client.scan_iter(f"{self.namespace}-textbook:*", count=1000):
            client.delete(key)

    def loads(self, play: Callable[[], Any]) -> int:
        """How many loads the database saw during ``play()``."""
        before = self.origin.loads
        play()
        return self.origin.loads - before

    def compare(self, what: str, textbook: str, ours: str, ok: bool) -> None:
        """The same situation on both sides, and whether it went as promised."""
        self.result.comparisons.append(Comparison(what, textbook, ours, ok))
        self.result.textbook.outcomes[what] = textbook
        self.result.ours.outcomes[what] = ours

    def wait(self, ready: Callable[[], bool], what: str, timeout: float = 20.0) -> None:
        """Asks until it is so.

        Raises:
            TimeoutError: it did not come.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {timeout:g} s")
            time.sleep(0.01)


def _mark(event: Event) -> None:
    if isinstance(event, StaleServed):
        marks.seen.add("stale")
    elif isinstance(event, Loaded):
        marks.seen.add("loaded")


def source(function: Callable[..., Any]) -> str:
    """The function's own source, so that what is shown is what runs; without its docstring.

    Of one called ``ours`` or ``textbook``, whose arguments are the scene's, what stands in it.
    """
    text = textwrap.dedent(inspect.getsource(function))
    definition = ast.parse(text).body[0]
    assert isinstance(definition, ast.FunctionDef)
    lines = text.splitlines()
    first, last = definition.body[0], definition.body[-1]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    if function.__name__ in ("ours", "textbook"):
        end = last.lineno - 1 if isinstance(last, ast.Return) else len(lines)
        start = definition.body[1 if documented else 0]
        kept = lines[_first_line(start) - 1 : end]
    else:
        hidden = range(first.lineno, (first.end_lineno or first.lineno) + 1) if documented else range(0)
        kept = [line for number, line in enumerate(lines, 1) if number not in hidden]
    return textwrap.dedent("\n".join(kept)).strip("\n")


def _first_line(statement: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(one.lineno for one in decorators)])
