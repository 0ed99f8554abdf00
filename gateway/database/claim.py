"""Who may use a data folder: one gateway, or one restore. The kernel forgets the claim when its process ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class FolderInUseError(Exception):
    """Another process uses the folder."""

    def __init__(self) -> None:
        super().__init__(
            "the data folder (HOSTLER_DATA) is in use by a gateway that runs, or by a restore: stop that first "
            "(scripts/down), or give each Hostler a folder of its own"
        )


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a data folder for the length of the block; it is made if it is missing. Raises FolderInUseError, OSError.

    The lock is on the folder itself: that needs no file, and works on a full or read-only disk. File systems that
    can't do it (some over a network) are used without.
    """
    folder.mkdir(mode=0o770, parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUseError from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)
