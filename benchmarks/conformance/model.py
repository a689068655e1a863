"""The words of the matrix: libraries, scenarios, outcomes."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from benchmarks.conformance.stage import Stage

THREADS, TASKS = "threads", "tasks"  # the faces: blocking calls, and coroutines
MEMORY, DISK, REDIS, MEMCACHED = "memory", "disk", "redis", "memcached"
SHARED = (DISK, REDIS, MEMCACHED)

PASS, FAIL, CANNOT, OPEN = "pass", "fail", "cannot", "open"

Load = Callable[[str], Any]
AsyncLoad = Callable[[str], Awaitable[Any]]


class Failed(Exception):
    """The probe's verdict, with the reason in one line."""


class Cannot(Exception):
    """The library has nothing to probe here, with the reason in one line."""


@dataclass(frozen=True)
class Place:
    """Where values are kept: process memory, a folder, or the address of a server."""

    kind: str
    folder: Path
    host: str = "127.0.0.1"
    port: int = 0

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}/0"

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class How:
    """What a probe asks of a reader. ``lock``: seconds that its lock across processes lives, None: as by default.
    ``connections``: at most so many to the server, where that can be said."""

    ttl: float = 60.0
    lock: float | None = None
    connections: int | None = None


@dataclass(frozen=True)
class Reader:
    """A cached function of one key, set up as an independent process would. Under ``tasks``: coroutine functions."""

    get: Callable[[str], Any]
    invalidate: Callable[[str], Any] | None = None
    close: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Store:
    """Plain access to a cache, where a probe needs no loader. Under ``tasks``: coroutine functions."""

    get: Callable[[str], Any]  # None: a miss
    set: Callable[[str, Any, float], Any]  # key, value, seconds
    drop_tag: Callable[[str], Any] | None = None
    set_tagged: Callable[[str, Any, float, str], Any] | None = None
    close: Callable[[], Any] | None = None


class Library:
    """One column: how a library is set up, as its own documentation recommends. Subclasses import it lazily."""

    name: ClassVar[str]
    distributions: ClassVar[tuple[str, ...]]  # the first is the library itself
    threads: ClassVar[tuple[str, ...]] = ()  # the places of its blocking face
    tasks: ClassVar[tuple[str, ...]] = ()  # the places of its asyncio face
    client: ClassVar[bool] = False  # a client of a server: whoever uses it brings the loading along
    coordinates: ClassVar[tuple[str, ...]] = ()  # places where its processes agree on who loads
    tags: ClassVar[tuple[str, ...]] = ()  # places where it has tags
    levels: ClassVar[tuple[str, ...]] = ()  # faces with process memory above Redis
    signs: ClassVar[tuple[str, ...]] = ()  # faces with signed values in Redis
    open: ClassVar[dict[str, str]] = {}  # scenario: why what it asks for is not built yet

    def blocking(self, place: Place, load: Load, how: How) -> Reader:
        raise NotImplementedError

    def awaited(self, place: Place, load: AsyncLoad, how: How) -> Reader:
        raise NotImplementedError

    def tagged(self, face: str, place: Place) -> Store:
        raise NotImplementedError

    def above(self, face: str, place: Place) -> Store:
        """Process memory above Redis, kept coherent if the library can."""
        raise NotImplementedError

    def signed(self, face: str, place: Place, secret: bytes) -> Store:
        raise NotImplementedError

    def forgeries(self, key: str, payload: bytes) -> Iterator[bytes]:
        """What an attacker who knows the library, but not the secret, would write into the store."""
        return iter(())

    def places(self, face: str) -> tuple[str, ...]:
        return self.threads if face == THREADS else self.tasks

    def versions(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in self.distributions}


@dataclass(frozen=True)
class Scenario:
    """One row. ``probe`` raises `Failed` or `Cannot`, or returns; its docstring says how it decides.

    ``needs`` is one of: load, client (a load, or a client's own get and set), coordinates, tags, levels, signs.
    """

    name: str
    title: str
    probe: Callable[[Stage], None]
    faces: tuple[str, ...] = (THREADS, TASKS)
    kinds: tuple[str, ...] = (MEMORY, DISK, REDIS, MEMCACHED)
    needs: str = "load"
    side_by_side: bool = False  # its variants mostly wait, and run all at once
    timed: bool = False  # a bound of seconds decides: who misses it is asked again, alone on the machine
    limit: float = 60.0  # seconds; then the probe is killed
    parts: dict[str, Callable[..., None]] = field(
        default_factory=dict
    )  # run in processes of their own, with a list of variants

    def variants(self, library: Library) -> list[tuple[str, str]]:
        """Faces and places of the library that this scenario applies to.

        Raises:
            Cannot: there is none.
        """
        if library.client and self.needs in ("load", "coordinates"):
            raise Cannot("a client of a server: it loads nothing and guards no load")
        faces = [face for face in self.faces if library.places(face)]
        if not faces:
            raise Cannot("no asyncio face" if self.faces == (TASKS,) else "no blocking face")
        found = [(face, kind) for face in faces for kind in library.places(face) if kind in self.kinds]
        if not found:
            raise Cannot(
                "does not speak to Memcached"
                if self.kinds == (MEMCACHED,)
                else "does not speak to Redis"
                if self.kinds == (REDIS,)
                else "keeps values in process memory only"
            )
        if self.needs == "coordinates":
            found = [(face, kind) for face, kind in found if kind in library.coordinates]
            lack = "its processes do not agree on who loads"
        elif self.needs == "tags":
            found = [(face, kind) for face, kind in found if kind in library.tags]
            lack = "no tags"
        elif self.needs == "levels":
            found = [(face, kind) for face, kind in found if face in library.levels]
            lack = "no process memory above Redis"
        elif self.needs == "signs":
            found = [(face, kind) for face, kind in found if face in library.signs]
            lack = "no signatures"
        else:
            return found
        if not found:
            raise Cannot(lack)
        return found


@dataclass(frozen=True)
class Outcome:
    """One cell."""

    verdict: str
    why: str = ""
    seconds: float = 0.0


def libraries() -> list[Library]:
    """Every library, cachewright first."""
    from benchmarks.conformance import libraries as package

    found = [module.LIBRARY for module in _modules(package)]
    return sorted(found, key=lambda library: (library.name != "cachewright", library.name.lower()))


def scenarios() -> list[Scenario]:
    """Every scenario, in the order of its file's name."""
    from benchmarks.conformance import scenarios as package

    return [module.SCENARIO for module in _modules(package)]


def _modules(package: Any) -> list[Any]:
    names = sorted(found.name for found in pkgutil.iter_modules(package.__path__))
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names]
