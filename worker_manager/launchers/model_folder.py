"""Where a model's folder really is, and whatever else is asked of the models folder."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from worker_manager.launchers.disk import Disk

T = TypeVar("T")
_disk = Disk("models")


async def in_time(work: Callable[[], T]) -> T:
    """What `work` finds in the models folder. Raises `LauncherError` where its disk does not answer."""
    return await _disk.in_time("the models folder", work)


def resolve(models: Path, relative: str) -> str | None:
    """The model's folder with links followed, relative to the models folder; None if there is none.

    Begins with `..` where a link leads out.
    """
    folder = models / relative
    if not folder.is_dir():
        return None
    return os.path.relpath(folder.resolve(), models.resolve())
