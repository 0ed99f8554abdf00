"""The first look at a machine: who asks what is there is told once that is known, and nothing made up before.

A manager that starts knows of no worker. To tell that, before the launcher has listed what there is, would be to say
that nothing runs: the gateway would send its requests nowhere and start anew what is there.
"""

import asyncio
from collections.abc import Mapping

from worker_manager.tracked import FOUND_RUNNING, Tracked

SETTLE_SECONDS = 5.0
"""So long whoever asks waits until the adopted workers have answered too; then they are shown as not asked yet."""


class FirstLook:
    """Whether it was taken. Belongs to one event loop."""

    def __init__(self, workers: Mapping[str, Tracked], seconds: float = SETTLE_SECONDS) -> None:
        self._workers = workers
        self._seconds = seconds
        self._whole = asyncio.Event()
        self._listed = False
        self._problem = "the units are being listed"

    def listed(self) -> None:
        """The launcher has told what there is, and it was adopted."""
        self._listed = True
        self.check()

    def failed(self, problem: str) -> None:
        """The launcher could not tell."""
        self._problem = problem

    def check(self) -> None:
        """Workers have changed: the picture is whole once no adopted one waits for its first probe."""
        if self._listed and not any(known.reason == FOUND_RUNNING for known in self._workers.values()):
            self._whole.set()

    async def taken(self) -> str:
        """Returns once the picture is whole, at the latest after a while: empty, or why nothing is known yet."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._whole.wait()
        except TimeoutError:
            if self._listed:
                self._whole.set()  # who asks next shall not wait again
        return "" if self._listed else self._problem
