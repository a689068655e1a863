"""What is simulated: families of plans, each with the promises that hold in it."""

from __future__ import annotations

from tests.sim.scenarios.loads import LoadsAndChanges
from tests.sim.scenarios.writes import WritesNow

from cachewright.testing.sim import Scenario

SCENARIOS: dict[str, Scenario] = {one.name: one for one in (LoadsAndChanges(), WritesNow())}
