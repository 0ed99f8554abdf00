"""A disk that may not answer, asked so that this costs an error and not the manager."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from worker_manager.launchers.base import LauncherError

DISK_SECONDS = 20.0
"""How long a folder may take to answer; it may be on a network disk."""
THREADS = 4

T = TypeVar("T")


class Disk:
    """Threads for what lies on one disk: those that hang in it must not keep everybody else from having one."""

    def __init__(self, name: str) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=name)

    async def in_time(self, folder: str, work: Callable[[], T], seconds: float = DISK_SECONDS) -> T:
        """What `work` finds in a folder, which a sentence calls `folder`. Raises `LauncherError` where that hangs."""
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except TimeoutError as error:
            why = f"{folder} does not answer within {seconds:g} s: is its disk, or the network to it, gone?"
            raise LauncherError(why) from error
