"""Misfortune at a chosen moment of a chosen request: how an interleaving that has a name is brought about every time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["FATES", "Cue", "CueKind", "Cues", "Moment"]

Moment = Literal["before", "landed", "answered"]
CueKind = Literal["stall", "crash", "pause", "evict", "refused", "broken", "lost", "late"]
FATES = {"refused": "before", "broken": "after", "lost": "lost", "late": "late"}  # as in `network.Faults`


@dataclass(frozen=True)
class Cue:
    """One such misfortune.

    Attributes:
        process: whose request, by number.
        text: how the request's line in the timeline begins: ``"append r:k"``, ``"save k"``.
        kind: ``"stall"``: the task that sent it waits, its process goes on; ``"crash"`` (it starts anew after
            ``seconds``) or ``"pause"`` of the process; ``"evict"``: every server loses all rows; ``"refused"``,
            ``"broken"``, ``"lost"``, ``"late"`` (it lands ``seconds`` after its deadline): what becomes of this request.
        seconds: how long.
        moment: before it is sent, when its effect has landed, when its sender has the answer. A fate is decided before.
        number: of the requests that begin so and come to that moment, which one.
    """

    process: int
    text: str
    kind: CueKind
    seconds: float = 0.0
    moment: Moment = "before"
    number: int = 1

    def __post_init__(self) -> None:
        if self.moment != "before" and self.kind in FATES:
            raise ValueError(f"{self.kind!r} at the moment {self.moment!r}: a fate is decided 'before'")
        if self.moment == "landed" and self.kind == "stall":
            raise ValueError("'stall' at the moment 'landed': no task is there to wait; say 'answered'")


class Cues:
    """The cues of one run that are still to come."""

    def __init__(self, cues: Iterable[Cue] = ()) -> None:
        self._left = [[cue, cue.number] for cue in cues]

    def at(self, process: str, text: str, moment: Moment) -> list[Cue]:
        """Those whose moment this is; each comes once."""
        due: list[Cue] = []
        for waiting in self._left:
            cue, left = waiting
            assert isinstance(cue, Cue)
            assert isinstance(left, int)
            if (f"p{cue.process}", cue.moment) == (process, moment) and text.startswith(cue.text):
                waiting[1] = left - 1
                if left == 1:
                    due.append(cue)
        return due
