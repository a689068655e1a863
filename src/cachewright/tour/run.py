"""Plays the scenes one after another, each on its engines, whatever becomes of the ones before."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
import traceback
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from cachewright import __version__
from cachewright.errors import ConfigurationError
from cachewright.tour.engines import Choice, Engines
from cachewright.tour.model import SceneResult, Span, TourResult
from cachewright.tour.origin import Origin
from cachewright.tour.reach import check_database, check_servers
from cachewright.tour.scenes import all_scenes
from cachewright.tour.stage import Scene, Stage

__all__ = ["Listener", "play_tour"]


class Listener(Protocol):
    """Who shows the tour while it runs."""

    def begin(self, result: TourResult, scenes: int) -> None:
        """The tour begins."""

    def scene_begins(self, scene: SceneResult) -> None:
        """A scene's heading and code are known."""

    def say(self, text: str) -> None:
        """What is going on now."""

    def scene_ends(self, scene: SceneResult) -> None:
        """A scene's calls and outcomes are known."""

    def end(self, result: TourResult) -> None:
        """The tour is over."""


def play_tour(
    listener: Listener,
    *,
    engine: Choice = "local",
    only: Collection[int] = (),
    given: Mapping[str, str | None] | None = None,
    database: str | None = None,
) -> TourResult:
    """Plays all scenes, or those of ``only``.

    Raises:
        ConfigurationError: there is no such scene, a URL of the wrong kind, or nothing that answers at a URL.
    """
    scenes = all_scenes()
    for number in only:
        if not 1 <= number <= len(scenes):
            raise ConfigurationError(f"--only {number}: the scenes are 1 to {len(scenes)}")
    scenes = [scene for scene in scenes if not only or scene.number in only]
    engines = Engines(engine, given or {})
    check_servers(engines.given)
    check_database(database)
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="cachewright-tour-"))
    # Scenes break things on purpose; what the library logs then is not for this screen.
    log = logging.getLogger("cachewright")
    handler = logging.NullHandler()
    propagate, log.propagate = log.propagate, False
    log.addHandler(handler)
    origin = Origin(database or str(folder / "shop.db"), f"tour_users_{folder.name[-6:].lower()}")
    result = TourResult(__version__, origin.title)
    try:
        listener.begin(result, len(scenes))
        engines.prepare(*dict.fromkeys(need for scene in scenes for need in scene.needs))
        origin.create()
        for scene in scenes:
            result.scenes.append(_play(scene, engines, origin, folder, listener))
        result.seconds = time.monotonic() - began
        listener.end(result)
    finally:
        try:
            engines.close()
            if origin.postgres:
                origin.drop()
        finally:
            log.removeHandler(handler)
            log.propagate = propagate
            shutil.rmtree(folder, ignore_errors=True)
    return result


def _play(scene: Scene, engines: Engines, origin: Origin, folder: Path, listener: Listener) -> SceneResult:
    result = scene.blank()
    listener.scene_begins(result)
    try:
        for need in scene.needs:
            listener.say(f"starting {need}")
        result.engine = "; ".join(engines[need].title for need in scene.needs)
        stage = Stage(engines, origin, result, folder, listener.say)
        try:
            scene.run(stage)
        finally:
            result.seconds = stage.now()
            result.queries = [
                Span("database", at, took, "error" if kind == "error" else "query")
                for at, took, kind in origin.queries
            ]
            stage.stack.close()
    except Exception as error:
        result.error = f"{type(error).__name__}: {error}"
        result.trace = traceback.format_exc()
    for side in (result.ours, result.textbook):
        side.steps.sort(key=lambda step: step.at)
    listener.scene_ends(result)
    return result
