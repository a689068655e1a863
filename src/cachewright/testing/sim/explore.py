"""Looking for failing seeds, and making what was found small enough to read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from random import Random

from cachewright.testing.sim.plan import Client, Plan
from cachewright.testing.sim.play import Run, play
from cachewright.testing.sim.scenario import Scenario

__all__ = ["Failure", "explore", "judge", "minimise", "try_seed"]

SHOWN = 120


@dataclass(frozen=True)
class Failure:
    """A plan that breaks a promise."""

    scenario: Scenario
    seed: int
    plan: Plan
    suppressed: frozenset[str]
    violations: tuple[str, ...]
    timeline: str

    def __str__(self) -> str:
        lines = [f"scenario {self.scenario.name}, seed {self.seed}:"]
        lines += [f"  VIOLATED: {sentence}" for sentence in self.violations]
        lines.append(f"  chain: {' > '.join(self.plan.chain)}; options: {dict(self.plan.options)}")
        for number, client in enumerate(self.plan.clients):
            lines += [f"  p{client.process}.c{number}: after {pause:g} s {op}" for pause, op in client.ops]
        lines += [f"  {disaster}" for disaster in self.plan.disasters]
        lines += [f"  without the fault {fault}" for fault in sorted(self.suppressed)]
        lines += [self.timeline, "as a plan, to be kept as a regression:", f"  {self.plan!r}"]
        return "\n".join(lines)


def judge(scenario: Scenario, run: Run) -> tuple[str, ...]:
    """All violations of a run, by the scenario's checks."""
    return tuple(sentence for check in scenario.checks for sentence in check(run))


def try_seed(scenario: Scenario, seed: int) -> Failure | None:
    """Carries one seed out; the failure, as it happened, or None."""
    plan = scenario.plan(Random(f"{scenario.name}/{seed}"))
    run = play(plan, seed)
    violations = judge(scenario, run)
    if not violations:
        return None
    return Failure(scenario, seed, plan, frozenset(), violations, run.history.timeline())


def explore(
    scenario: Scenario,
    seeds: Iterable[int],
    *,
    until: float | None = None,
    each: Callable[[], None] = lambda: None,
) -> tuple[int, Failure | None]:
    """Tries seeds until one fails.

    Args:
        scenario: what is tried.
        seeds: which.
        until: monotonic time at which to stop.
        each: called after every seed.

    Returns:
        How many seeds were tried, and the first failure.
    """
    tried = 0
    for seed in seeds:
        if until is not None and time.monotonic() > until:
            break
        failure = try_seed(scenario, seed)
        tried += 1
        each()
        if failure is not None:
            return tried, failure
    return tried, None


def minimise(failure: Failure, seconds: float = 20.0) -> Failure:
    """The same violation with fewer clients, operations, disasters and faults; as good as found in the time."""
    until = time.monotonic() + seconds
    kind = _kind(failure.violations)
    best = failure
    smaller = True
    while smaller and time.monotonic() < until:
        smaller = False
        for plan, suppressed in _smaller(best):
            if time.monotonic() > until:
                break
            run = play(plan, best.seed, suppressed)
            violations = judge(best.scenario, run)
            if _kind(violations) & kind:
                best = replace(
                    best,
                    plan=plan,
                    suppressed=suppressed,
                    violations=violations,
                    timeline=run.history.timeline(),
                )
                smaller = True
                break
    return best


def _kind(violations: Iterable[str]) -> set[str]:
    """What makes two failures the same one: the sentences without names and times."""
    words = ("older", "at once", "never ended", "cancelled", "raised", "in the end", "accepted", "ended with")
    return {word for sentence in violations for word in words if word in sentence}


def _smaller(failure: Failure) -> Iterable[tuple[Plan, frozenset[str]]]:
    plan, suppressed = failure.plan, failure.suppressed
    for n in range(len(plan.disasters)):
        yield replace(plan, disasters=plan.disasters[:n] + plan.disasters[n + 1 :]), suppressed
    for n, client in enumerate(plan.clients):
        if not client.ops:
            continue
        for rest in ((), client.ops[: len(client.ops) // 2], client.ops[len(client.ops) // 2 :]):
            if len(rest) < len(client.ops):
                yield _with(plan, n, rest), suppressed
        for m in range(len(client.ops)):
            yield _with(plan, n, client.ops[:m] + client.ops[m + 1 :]), suppressed
    for fault in play(plan, failure.seed, suppressed).history.faults:
        yield plan, suppressed | {fault}


def _with(plan: Plan, number: int, ops: tuple) -> Plan:  # type: ignore[type-arg]
    """The plan with other operations for one client; who has none stays, so that the others keep their names."""
    clients = list(plan.clients)
    clients[number] = Client(clients[number].process, ops)
    return replace(plan, clients=tuple(clients))
