"""Other processes of the tour: they run a module, write one JSON line for each thing that they did, and can be killed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cachewright.runtime.process import ServerProcess, wait_until

__all__ = ["TourProcess", "report"]


class TourProcess(ServerProcess):
    """One process, started and stopped as the servers are: it cannot outlive the tour.

    Args:
        name: who it is.
        module: what it runs: ``python -m module``.
        arguments: and with what.
        env: added to this process's environment; secrets go here, not on the command line.
        is_ready: told its output; says whether it is up.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str] = (),
        *,
        env: Mapping[str, str],
        is_ready: Callable[[str], bool] = lambda text: "{" in text,
    ) -> None:
        path = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        super().__init__(
            name,
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, **env, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"},
            start_timeout=30.0,
            stop_timeout=10.0,
        )
        self._is_ready = is_ready

    def ready(self) -> bool:
        """Its output says so."""
        return self._is_ready(self.output())

    def output(self) -> str:
        """What it has written so far."""
        try:
            return self.log_path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def reports(self, what: str | None = None) -> list[dict[str, Any]]:
        """The lines that it has reported so far."""
        lines = [line for line in self.output().splitlines(keepends=True) if line.endswith("\n")]
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [one for one in found if what is None or one["what"] == what]

    def wait_for(self, what: str, number: int = 1, timeout: float = 20.0) -> list[dict[str, Any]]:
        """Returns when it has reported that so often.

        Raises:
            TimeoutError: it has not; the message has its last lines.
        """

        def done() -> bool:
            return len(self.reports(what)) >= number or not self.running

        wait_until(done, timeout)
        found = self.reports(what)
        if len(found) < number:
            raise TimeoutError(f"{self.name} did not report {what!r} {number} times:\n{self.log_tail()}")
        return found


def report(what: str, **facts: Any) -> None:
    """In such a process: writes one line."""
    print(json.dumps({"what": what, **facts}), flush=True)
