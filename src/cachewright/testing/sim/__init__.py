"""A deterministic simulator: the real core under a seeded scheduler, virtual time and faults at every await point.

The way of a run: a `Plan` (processes, clients and their operations, faults, disasters) is carried out in a `World`, which
owns time; each simulated `Process` has a runtime, clocks and a `Cache` of its own; its tiers are `SimTier` clients of
shared `SimStore`, its database a `SimOrigin`, its buffer a real SQLite buffer behind faults. The `History` of the run is
then judged by the checks. The same plan and seed always give the same run.
"""

from cachewright.testing.sim.cues import Cue
from cachewright.testing.sim.explore import Failure, explore, judge, minimise
from cachewright.testing.sim.network import CALM, Faults
from cachewright.testing.sim.plan import Client, Disaster, Op, Plan
from cachewright.testing.sim.play import Run, play
from cachewright.testing.sim.scenario import Scenario

__all__ = [
    "CALM",
    "Client",
    "Cue",
    "Disaster",
    "Failure",
    "Faults",
    "Op",
    "Plan",
    "Run",
    "Scenario",
    "explore",
    "judge",
    "minimise",
    "play",
]
