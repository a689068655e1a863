"""The tour as one JSON document."""

from __future__ import annotations

import json

from cachewright.tour.model import SceneResult, TourResult

__all__ = ["JsonListener"]


class JsonListener:
    """Says nothing until the end."""

    def begin(self, result: TourResult, scenes: int) -> None:
        """Nothing."""

    def scene_begins(self, scene: SceneResult) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def scene_ends(self, scene: SceneResult) -> None:
        """Nothing."""

    def end(self, result: TourResult) -> None:
        """The document, on standard output."""
        print(json.dumps(result.as_dict(), indent=2, ensure_ascii=False), flush=True)
