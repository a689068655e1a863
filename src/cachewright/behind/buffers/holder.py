"""Who holds a claim: a name for this process by which another one on the same host can see that it died.

The name is ``host/pid/start``. ``start`` tells a process from a later one with the same id. ``host`` includes the boot
and the process-id namespace: two containers that share a file do not share process ids, and there a live holder would
look dead.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

__all__ = ["is_dead", "this_process"]


@lru_cache(maxsize=1)
def _host() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return None  # not Linux: nobody can tell, claims end by their deadline alone
    return f"{boot}.{space}"


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None when there is no such process or it is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # the name in parentheses may itself hold spaces and parentheses
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]


@lru_cache(maxsize=1)
def _name(pid: int) -> str:
    return f"{_host() or 'unknown'}/{pid}/{_started(pid) if _host() else ''}"


def this_process() -> str:
    """The name of this process."""
    return _name(os.getpid())


def is_dead(holder: str) -> bool:
    """Whether the process of that name has certainly ended. False for one of another host."""
    host, _, rest = holder.partition("/")
    pid, _, started = rest.partition("/")
    if host != _host() or not pid.isdigit() or not started:
        return False
    try:
        return _started(int(pid)) != started
    except OSError:
        return False
