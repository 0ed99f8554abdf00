"""Where a model's folder really is, asked so that a disk that does not answer costs an error and not the manager."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from worker_manager.launchers.base import LauncherError

DISK_SECONDS = 20.0
"""How long the models folder may take to answer; it may be on a network disk."""
THREADS = 4

T = TypeVar("T")
_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="models")
"""Of its own: threads that hang in a dead disk must not keep everybody else from having one."""


async def in_time(work: Callable[[], T], seconds: float = DISK_SECONDS) -> T:
    """What `work` finds on the models' disk. Raises `LauncherError` where that does not answer."""
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.get_running_loop().run_in_executor(_threads, work)
    except TimeoutError as error:
        why = f"the models folder does not answer within {seconds:g} s: is its disk, or the network to it, gone?"
        raise LauncherError(why) from error


def resolve(models: Path, relative: str) -> str | None:
    """The model's folder with links followed, relative to the models folder; None if there is none.

    Begins with `..` where a link leads out.
    """
    folder = models / relative
    if not folder.is_dir():
        return None
    return os.path.relpath(folder.resolve(), models.resolve())
