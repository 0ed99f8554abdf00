"""Deletes all that an engine has left in a folder, however it has locked or nested it; run as the engines' own user.

As a program: `python -m worker_manager.jobs.sweep FOLDER`, status 1 where something is left.
"""

import os
import sys
from pathlib import Path

ROUNDS_MAX = 100_000


def empty(folder: Path) -> bool:
    """Whether the folder is empty now.

    Folders within folders are moved up and not descended into: there is no depth that it would not reach.
    """
    moved = 0
    for _ in range(ROUNDS_MAX):
        try:
            entries = list(os.scandir(folder))
            if not entries:
                return True
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    moved = _flatten(Path(entry.path), folder, moved)
                else:
                    Path(entry.path).unlink()
        except FileNotFoundError:
            return not folder.exists()
        except OSError:
            return False
    return False


def _flatten(inner: Path, folder: Path, moved: int) -> int:
    inner.chmod(0o700)
    for entry in list(os.scandir(inner)):
        if entry.is_dir(follow_symlinks=False):
            Path(entry.path).chmod(0o700)
            moved += 1
            Path(entry.path).rename(folder / f".swept-{os.getpid()}-{moved}")
        else:
            Path(entry.path).unlink()
    inner.rmdir()
    return moved


if __name__ == "__main__":
    raise SystemExit(not empty(Path(sys.argv[1])))
