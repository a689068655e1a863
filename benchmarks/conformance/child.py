"""One probe in this process: prints its outcome as JSON. The parent kills it when it takes too long."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

from benchmarks.conformance.model import (
    CANNOT,
    FAIL,
    PASS,
    THREADS,
    Cannot,
    Failed,
    Outcome,
    Place,
    libraries,
    scenarios,
)
from benchmarks.conformance.stage import Face, Stage, Variant


def run(stage: Stage) -> Outcome:
    started = time.monotonic()
    verdict, why = PASS, ""
    try:
        stage.scenario.probe(stage)
    except Failed as failure:
        verdict, why = FAIL, str(failure)
    except Cannot as lack:
        verdict, why = CANNOT, str(lack)
    except Exception as error:  # the set-up is wrong, which is for a person to see
        traceback.print_exc()
        verdict, why = FAIL, f"the probe broke: {type(error).__name__}: {error}"
    seconds = time.monotonic() - started
    stage.close()
    return Outcome(verdict, why, round(seconds, 2))


def _variant(stage: Stage, face: str, kind: str, folder: str, port: int) -> Variant:
    return Variant(
        stage, Face(face, None if face == THREADS else stage.loop()), Place(kind, Path(folder), port=port)
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario")
    parser.add_argument("library")
    parser.add_argument("--part")
    parser.add_argument("--variant", action="append", default=[], type=json.loads)
    chosen = parser.parse_args()
    scenario = next(found for found in scenarios() if found.name == chosen.scenario)
    library = next(found for found in libraries() if found.name == chosen.library)
    logging.disable(logging.CRITICAL)  # libraries log what the probe does to them
    warnings.simplefilter("ignore")
    stage = Stage(scenario, library)
    if chosen.part:
        scenario.parts[chosen.part]([_variant(stage, **found) for found in chosen.variant])
    else:
        outcome = run(stage)
        print(json.dumps({"verdict": outcome.verdict, "why": outcome.why, "seconds": outcome.seconds}))
    sys.stdout.flush()
    os._exit(0)  # a thread or a loop may hang, which the probe has reported


if __name__ == "__main__":
    main()
