"""A family of plans and what must hold in each: what a new capability adds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from random import Random
from typing import ClassVar

from cachewright.testing.sim.plan import Plan
from cachewright.testing.sim.play import Run

__all__ = ["Check", "Scenario"]

Check = Callable[[Run], list[str]]
"""Judges a run: a sentence for each violation."""


class Scenario(ABC):
    """See the module."""

    name: ClassVar[str]
    checks: ClassVar[tuple[Check, ...]]

    @abstractmethod
    def plan(self, random: Random) -> Plan:
        """A plan drawn at random; all variety of a scenario is in here."""
