"""What a process holds, by the kernel's account."""

from pathlib import Path

KIB_PER_MIB = 1024


def _field(pid: int, name: str) -> int:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])


def resident_mib(pid: int) -> float:
    """Resident memory now."""
    return _field(pid, "VmRSS") / KIB_PER_MIB


def forget_peak(pid: int) -> float:
    """Let `peak_mib` tell the most from now on; resident memory now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return resident_mib(pid)


def peak_mib(pid: int) -> float:
    """The most memory that was resident at any moment since `forget_peak`."""
    return _field(pid, "VmHWM") / KIB_PER_MIB
