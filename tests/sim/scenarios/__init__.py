"""What is simulated: families of plans, each with the promises that hold in it."""

from __future__ import annotations

from cachewright.testing.sim import Scenario
from tests.sim.scenarios.backfills import Backfills
from tests.sim.scenarios.loads import LoadsAndChanges
from tests.sim.scenarios.writes import WritersThatCrash, WritesNow

SCENARIOS: dict[str, Scenario] = {
    one.name: one for one in (LoadsAndChanges(), WritesNow(), WritersThatCrash(), Backfills())
}
