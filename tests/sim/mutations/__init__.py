"""The mutants, by name."""

from __future__ import annotations

from tests.sim.mutations.behind import BEHIND
from tests.sim.mutations.forgotten import FORGOTTEN
from tests.sim.mutations.loads_and_writes import LOADS_AND_WRITES
from tests.sim.mutations.mutant import Mutant
from tests.sim.mutations.schedules import SCHEDULES
from tests.sim.mutations.surroundings import SURROUNDINGS

__all__ = ["MUTANTS", "Mutant"]

MUTANTS: dict[str, Mutant] = {
    one.name: one for one in (*LOADS_AND_WRITES, *SURROUNDINGS, *FORGOTTEN, *BEHIND, *SCHEDULES)
}
