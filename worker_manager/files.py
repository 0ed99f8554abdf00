"""Files that are replaced: whoever reads one finds what it was or what it is now, whole, whatever fails meanwhile."""

import os
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Have the file hold this, on the disk when it returns. One writer of a file at a time. Raises OSError."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)  # it has its name by now, or is of no use and only takes room on a full disk
    sync_names(path.parent)


def sync_names(folder: Path) -> None:
    """Bring a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
