"""What an engine has written to the machine's disk: its socket folder and its compile cache have no size of their own.

What can't be looked into counts as too much. Two things no look finds: what is written between two looks, and files
that an engine has deleted and still holds open.
"""

import os
from pathlib import Path

import msgspec

ENTRIES_MAX = 200_000
DEPTH_MAX = 64
"""Folders in each other."""
BLOCK = 512
"""Bytes in which `st_blocks` counts."""


class Writable(msgspec.Struct, frozen=True, kw_only=True):
    """A folder on the machine's disk that an engine may write to."""

    folder: Path
    bytes_max: int
    name: str
    """How a sentence calls it."""
    but: str = ""
    """A folder in it that is ours."""


def trouble(place: Writable) -> str:
    """What is wrong with a folder, as a sentence; empty where nothing is. Follows no links."""
    used = entries = 0
    try:
        for path, folders, names, number in os.fwalk(place.folder, onerror=_unreadable):
            if path == str(place.folder) and place.but in folders:
                folders.remove(place.but)
            for name in names:
                used += _size(name, number)
            entries += len(names) + len(folders)
            if path.count("/", len(str(place.folder))) > DEPTH_MAX:
                return f"it made more than {DEPTH_MAX} folders in each other in {place.name}"
            if used > place.bytes_max or entries > ENTRIES_MAX:
                limit = f"{place.bytes_max >> 20} MiB or {ENTRIES_MAX} files"
                return f"it wrote more than {limit} into {place.name}"
    except FileNotFoundError:
        return ""  # it is gone, or not made yet
    except OSError:
        return f"it closed a folder in {place.name}"
    return ""


def _unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _size(name: str, folder: int) -> int:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_blocks * BLOCK
    except FileNotFoundError:
        return 0
