"""What is simulated: families of plans, each with the promises that hold in it."""

from __future__ import annotations

from cachewright.testing.sim import Scenario
from tests.sim.scenarios.aimed import Aimed
from tests.sim.scenarios.atomic import AtomicOperations
from tests.sim.scenarios.backfills import Backfills
from tests.sim.scenarios.batches import Batches
from tests.sim.scenarios.behind import DeadLetters, WritesBehind
from tests.sim.scenarios.claims import Claims
from tests.sim.scenarios.closes import Closes
from tests.sim.scenarios.freshness import Freshness
from tests.sim.scenarios.lives import Lives, OldData
from tests.sim.scenarios.loads import LoadsAndChanges
from tests.sim.scenarios.memory import MemoryAlone
from tests.sim.scenarios.outages import Outages, OutagesRaised
from tests.sim.scenarios.schedules import ScheduledRefreshes
from tests.sim.scenarios.tags import Tags
from tests.sim.scenarios.writes import WritersThatCrash, WritesNow

ALL: tuple[Scenario, ...] = (
    LoadsAndChanges(),
    Tags(),
    Batches(),
    Freshness(),
    MemoryAlone(),
    WritesNow(),
    WritersThatCrash(),
    Backfills(),
    Lives(),
    OldData(),
    Outages(),
    OutagesRaised(),
    WritesBehind(),
    DeadLetters(),
    Claims(),
    ScheduledRefreshes(),
    AtomicOperations(),
    Closes(),
    Aimed(),
)
SCENARIOS: dict[str, Scenario] = {one.name: one for one in ALL}
