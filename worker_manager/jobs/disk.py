"""Whether a model fits on the disk of the models folder, asked before its first byte."""

import shutil
from pathlib import Path

from worker_manager.jobs.failures import DiskFullError

GIB = 1024**3


def free_bytes(folder: Path) -> int:
    """Bytes free for this user on the disk that holds the folder, or will hold it once it is made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_room(*, wanted: int, free: int, reserve: int) -> None:
    """Raise `DiskFullError` unless `wanted` bytes fit into `free` and leave `reserve`. Nothing wanted always fits."""
    missing = wanted + reserve - free
    if wanted == 0 or missing <= 0:
        return
    message = (
        f"{_gib(wanted)} are still to be fetched and {_gib(reserve)} are kept in reserve, "
        f"but only {_gib(free)} are free on the disk of the models folder"
    )
    raise DiskFullError(message, f"Free {_gib(missing)} more and start the download again.")


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
