"""CPU time and memory of processes, read from the kernel."""

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

MB = 1_000_000
PROCESS_CLOCK = 2
"""CPUCLOCK_SCHED, see clock_getcpuclockid(3): user and system time of a whole process, ended threads too."""


def seconds(pid: int) -> float:
    """CPU time of a process, all its threads, user and system; 0 for one that has ended."""
    try:
        return time.clock_gettime((~pid << 3) | PROCESS_CLOCK)
    except OSError:
        return 0.0


def total_seconds(pids: Iterable[int]) -> float:
    """CPU time of several processes."""
    return sum(seconds(pid) for pid in pids)


def resident_mb(pids: Iterable[int]) -> float:
    """Resident memory of several processes, in MB of 10^6 bytes; pages they share count for each."""
    return sum(_resident_kib(pid) for pid in pids) * 1024 / MB


def _resident_kib(pid: int) -> int:
    try:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    except OSError:
        return 0
    return int(found.group(1)) if found else 0


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _parent(entry)) is not None:
            parents.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for member in found:  # grows while it is walked
        found.extend(parents.get(member, []))
    return found


def _parent(entry: Path) -> int | None:
    try:
        return int((entry / "stat").read_text(encoding="ascii", errors="replace").rpartition(") ")[2].split()[1])
    except (OSError, IndexError):
        return None


def two_cores() -> tuple[int, int]:
    """The core for engine and load, and the core for the gateway. Raises ValueError where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:  # noqa: PLR2004 - one for each side
        raise ValueError("only one core may be used here")
    return usable[0], usable[1]
