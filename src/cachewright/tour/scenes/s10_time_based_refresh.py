"""Scene 10: three processes on one schedule, and a refresh that fails."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cachewright.tour.fleet import EVERY, ours, textbook
from cachewright.tour.processes import TourProcess
from cachewright.tour.recorder import Recorder
from cachewright.tour.stage import Scene, Stage
from cachewright.tour.words import count

MODULE = "cachewright.tour.fleet"
PROCESSES = 3
WATCHED = 3.2


def run(stage: Stage) -> None:
    """Plays it."""
    down = stage.folder / "database-is-down"
    env = {
        "TOUR_DATABASE": stage.origin.url,
        "TOUR_TABLE": stage.origin.table,
        "TOUR_REDIS": stage.engines["redis"].url,
        "TOUR_NAMESPACE": stage.namespace,
        "TOUR_KEY": stage.key("rates"),
        "TOUR_DOWN": str(down),
    }
    fleets: dict[str, list[TourProcess]] = {}
    stage.say(f"two fleets of {PROCESSES} processes start")
    for which in ("ours", "textbook"):
        fleets[which] = [
            TourProcess(f"process {n + 1}", MODULE, [which], env=env, is_ready=lambda text: "started" in text)
            for n in range(PROCESSES)
        ]
    everyone = [process for fleet in fleets.values() for process in fleet]
    for process in everyone:
        stage.stack.callback(process.close)
    with ThreadPoolExecutor(len(everyone)) as pool:
        list(pool.map(TourProcess.start, everyone))
    _refreshes(stage, fleets)
    _failing(stage, fleets, down)
    _killed(stage, fleets["ours"])
    with ThreadPoolExecutor(len(everyone)) as pool:
        list(pool.map(TourProcess.stop, everyone))


def _loads(fleet: list[TourProcess]) -> list[int]:
    return [len(process.reports("load")) for process in fleet]


def _watch(stage: Stage, fleet: list[TourProcess], side: Recorder, seen: list[int]) -> None:
    """Notes each process's loads as they come."""
    for index, number in enumerate(_loads(fleet)):
        for _ in range(number - seen[index]):
            side.add(fleet[index].name, "refresh", "load", at=stage.now(), seconds=stage.origin.read_seconds)
        seen[index] = number


def _refreshes(stage: Stage, fleets: dict[str, list[TourProcess]]) -> None:
    stage.say(f"{PROCESSES} processes refresh every {EVERY:g} s")
    sides = {"ours": stage.ours, "textbook": stage.textbook}
    before = {which: _loads(fleet) for which, fleet in fleets.items()}
    seen = {which: list(loads) for which, loads in before.items()}
    until = time.monotonic() + WATCHED
    while time.monotonic() < until:
        for which, fleet in fleets.items():
            _watch(stage, fleet, sides[which], seen[which])
        time.sleep(0.02)
    mine = sum(seen["ours"]) - sum(before["ours"])
    theirs = sum(seen["textbook"]) - sum(before["textbook"])
    cache = stage.cache(stage.engines["redis"].url)
    stage.ours.call(cache.get, "rates")
    stage.ours.tiers(cache.inspect, "rates")
    stage.compare(
        f"{PROCESSES} processes, every {EVERY:g} s, watched for {WATCHED:g} s",
        f"{count(theirs, 'load')}: every process refreshes",
        f"{count(mine, 'load')}: one process for each run",
        1 <= mine <= WATCHED / EVERY + 1 and theirs >= 1.5 * mine,
    )


def _failing(stage: Stage, fleets: dict[str, list[TourProcess]], down: Path) -> None:
    stage.say("the database is down while they refresh")
    cache, redis = stage.cache(stage.engines["redis"].url), stage.redis()
    mine_before = sum(_loads(fleets["ours"]))
    their_before = sum(_loads(fleets["textbook"]))
    down.touch()
    stage.wait(
        lambda: (
            sum(_loads(fleets["ours"])) >= mine_before + 2
            and sum(_loads(fleets["textbook"])) > their_before + 3
        ),
        "two refreshes that fail",
    )
    time.sleep(0.1)
    mine = stage.ours.call(cache.get, "rates", note="while refreshes fail")
    stage.ours.tiers(cache.inspect, "rates")
    theirs = stage.textbook.call(redis.get, stage.key("rates"), note="while refreshes fail")
    down.unlink()
    stage.compare(
        "refreshes that fail",
        "nothing is left" if theirs is None else "the last value stays",
        "nothing is left" if mine is None else "the last good value stays",
        mine is not None and theirs is None,
    )


def _killed(stage: Stage, fleet: list[TourProcess]) -> None:
    stage.say("one of the processes is killed")
    fleet[0].kill()
    stage.ours.note(fleet[0].name, "SIGKILL", result="kill")
    before, seen = sum(_loads(fleet)), _loads(fleet)
    began = stage.now()
    stage.wait(lambda: sum(_loads(fleet)) > before, "a refresh by the others")
    took = stage.now() - began
    _watch(stage, fleet, stage.ours, seen)
    stage.compare("one of the processes is killed", "—", f"the others go on, {took:.1f} s later", True)


SCENE = Scene(
    number=10,
    name="time-based refresh",
    about=(
        "A value is loaded anew on a schedule, by APScheduler, before anybody asks. "
        "Of all processes of the fleet one runs each refresh, and where it fails the last good value stays."
    ),
    bug="Every process refreshes; one failed refresh and the entry is gone.",
    needs=("redis",),
    ours=(ours,),
    textbook=(textbook,),
    run=run,
)
