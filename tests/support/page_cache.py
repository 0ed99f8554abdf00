"""Which part of a file is in the page cache, and how to get it out."""

import ctypes
import mmap
import os
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)


def resident(path: Path) -> float:
    """The part of a file's pages that are in memory, 0 to 1; asking brings none in."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        pages = -(-len(view) // mmap.PAGESIZE)
        states = (ctypes.c_ubyte * pages)()
        start = ctypes.c_char.from_buffer(view)
        failed = LIBC.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(view)), states)
        del start  # or the map can't be closed
        assert failed == 0, os.strerror(ctypes.get_errno())
        return sum(state & 1 for state in states) / pages


def write_cold(path: Path, mib: int) -> None:
    """Make a file of so many MiB that nothing of is in memory."""
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
