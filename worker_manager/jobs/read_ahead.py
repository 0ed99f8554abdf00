"""Reads a model's weights into the page cache, so that an engine that starts soon finds them there.

Run in a container or process of its own: what is read is charged to whoever reads, and a container's limit would throw
it out again. Standard library only, so that it begins at once. Prints one line of JSON at its end:

    {"event": "done", "bytes_read": N, "bytes_total": N}

It reads no more than the machine has to spare, by the kernel's own estimate of what new programs may take without
anybody being swapped out (MemAvailable), less a reserve, and asks again after each piece. What goes for it is what the
kernel holds least worth keeping: files that were read once, and not again.
"""

import argparse
import json
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

PIECE_BYTES = 8 * 1024 * 1024
MEMINFO = Path("/proc/meminfo")
NICE = 10
OTHER_SUFFIXES = (".bin", ".pt", ".gguf")
ORIGINAL = "consolidated"
"""Files of this name hold the same weights once more, in their maker's own form."""


def weight_files(folder: Path) -> list[Path]:
    """The files whose weights an engine loads, in the order in which it does; regular files only."""
    regular = [path for path in sorted(folder.iterdir()) if stat.S_ISREG(path.stat().st_mode)]
    tensors = [path for path in regular if path.suffix == ".safetensors"]
    ours = [path for path in tensors if not path.name.startswith(ORIGINAL)]
    return ours or tensors or [path for path in regular if path.suffix in OTHER_SUFFIXES]


def weight_bytes(folder: Path) -> int:
    """Their size in all; 0 where the folder can't be read."""
    try:
        return sum(path.stat().st_size for path in weight_files(folder))
    except OSError:
        return 0


def available_bytes() -> int:
    """What the machine has to spare now; 0 where /proc does not tell."""
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), "0")
    return int(found) * 1024


def read(folder: Path, reserve: int, available: Callable[[], int] = available_bytes) -> tuple[int, int]:
    """Read the weights in pieces while there is room; bytes read and bytes in all. Raises OSError."""
    files = weight_files(folder)
    total = sum(path.stat().st_size for path in files)
    room, done = available() - reserve, 0
    if room <= 0:
        return 0, total
    for size in (size for path in files for size in _pieces(path)):
        done += size
        # what was read still counts as available, so both must hold: the room there was, and the room there is
        if done >= room or available() < reserve:
            break
    return done, total


def _pieces(path: Path) -> Iterator[int]:
    """Read a file to its end; the size of each piece, once it is read."""
    buffer = bytearray(PIECE_BYTES)
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while size := file.readinto(buffer):
            yield size


def main() -> None:
    """The job's body."""
    parser = argparse.ArgumentParser(description="read a model's weights into the page cache")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--reserve-mib", type=int, required=True)
    order = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.nice(NICE)
    done, total = read(order.folder, order.reserve_mib * 1024 * 1024)
    sys.stdout.write(json.dumps({"event": "done", "bytes_read": done, "bytes_total": total}) + "\n")


if __name__ == "__main__":
    main()
