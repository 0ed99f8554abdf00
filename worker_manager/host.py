"""Facts about this machine's memory and disk, in MiB."""

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
MIB = 1024 * 1024


def memory_mib() -> tuple[int, int]:
    """Total and available main memory; zeros where /proc does not tell."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return 0, 0
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest.split()}
    return kib.get("MemTotal", 0) // 1024, kib.get("MemAvailable", 0) // 1024


def disk_free_mib(folder: Path) -> int:
    """Free for a user without privileges on the disk of `folder`; 0 where there is no such folder."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return 0
    return disk.f_bavail * disk.f_frsize // MIB
