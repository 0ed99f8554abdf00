"""Process groups as /proc shows them; a process is known by its id and its start time together."""

import contextlib
import os
import signal
from pathlib import Path

PROC = Path("/proc")
ZOMBIE_STATES = frozenset({"Z", "X"})


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the process's start (field 22 of its stat); None if it is gone."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def is_alive(pid: int, started: int) -> bool:
    """Whether this very process runs; a zombie does not."""
    fields = _stat(pid)
    return bool(fields) and int(fields[19]) == started and fields[0] not in ZOMBIE_STATES


def group_of(pid: int, started: int) -> int:
    """The process group that the unit's first process leads; 0 if its id belongs to another process by now."""
    current = start_time(pid)
    return pid if current is None or current == started else 0


def members(group: int) -> tuple[int, ...]:
    """Living processes of a group; its leader may be gone already."""
    if group <= 1:
        return ()
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields and int(fields[2]) == group and fields[0] not in ZOMBIE_STATES:
                found.append(int(entry.name))
    return tuple(sorted(found))


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to every process of the group; none left is no error."""
    if group > 1:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on (the state); empty if the process is gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
