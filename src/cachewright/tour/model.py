"""What a scene leaves behind: its calls, what they showed, and whether that is what was promised. Plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Comparison", "SceneResult", "Side", "Span", "Step", "TierRow", "TourResult"]


@dataclass(frozen=True, slots=True)
class Span:
    """One bar of a time line.

    Attributes:
        lane: who it belongs to: a caller, a process, the database.
        at: when it began, in seconds since the scene began.
        seconds: how long it took.
        kind: hit, miss, load, buffer (of write-behind), wait, stale, save, store, drop, error, kill, query (of the database), or note.
    """

    lane: str
    at: float
    seconds: float
    kind: str


@dataclass(frozen=True, slots=True)
class TierRow:
    """What one tier held for a key; ``left`` is its remaining life in seconds, None where it has none or no end."""

    tier: str
    state: str
    left: float | None


@dataclass(slots=True)
class Step:
    """One call, or many at once, and what came of it.

    Attributes:
        at: when it began, in seconds since the scene began.
        seconds: how long it took.
        who: the caller.
        call: what was called, as one would write it.
        result: one word: hit, miss, load, buffer (of write-behind), wait, stale, save, store, drop, error, kill, or note.
        note: what came back, or what it means.
        spans: its bars in a time line.
        tiers: where the step is a look at the tiers, what each held.
    """

    at: float
    seconds: float
    who: str
    call: str
    result: str
    note: str = ""
    spans: list[Span] = field(default_factory=list)
    tiers: list[TierRow] = field(default_factory=list)


@dataclass(slots=True)
class Side:
    """One way of doing it: the textbook's, or ours."""

    code: str = ""
    steps: list[Step] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same situation on both sides. ``ok``: ours did what was promised, and the textbook showed its bug."""

    what: str
    textbook: str
    ours: str
    ok: bool


@dataclass(slots=True)
class SceneResult:
    """One scene."""

    number: int
    name: str
    about: str
    bug: str
    engine: str = ""
    textbook: Side = field(default_factory=Side)
    ours: Side = field(default_factory=Side)
    comparisons: list[Comparison] = field(default_factory=list)
    queries: list[Span] = field(default_factory=list)
    error: str = ""
    trace: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Every expectation held, and there was one."""
        return not self.error and bool(self.comparisons) and all(one.ok for one in self.comparisons)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "number": self.number,
            "name": self.name,
            "engine": self.engine,
            "about": self.about,
            "bug": self.bug,
            "steps": [asdict(step) for step in self.ours.steps],
            "textbook": asdict(self.textbook),
            "ours": {"code": self.ours.code, "outcomes": self.ours.outcomes},
            "queries": [asdict(one) for one in self.queries],
            "comparisons": [asdict(one) for one in self.comparisons],
            "ok": self.ok,
            "error": self.error,
            "trace": self.trace,
            "seconds": round(self.seconds, 3),
        }


@dataclass(slots=True)
class TourResult:
    """The whole tour."""

    version: str
    database: str
    scenes: list[SceneResult] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Every scene is."""
        return bool(self.scenes) and all(scene.ok for scene in self.scenes)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "version": self.version,
            "database": self.database,
            "ok": self.ok,
            "seconds": round(self.seconds, 3),
            "scenes": [scene.as_dict() for scene in self.scenes],
        }
