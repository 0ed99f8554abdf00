"""The observed set and its version: what the gateway's long poll waits for."""

import asyncio
import uuid
from collections.abc import Callable

from worker_manager.contract import Download, HostFacts, ObservedSet, ObservedWorker, Refused


class Observation:
    """Builds the observed set from its parts; `changed` starts a new version and wakes all who wait."""

    def __init__(
        self,
        *,
        generation: Callable[[], int],
        workers: Callable[[], tuple[ObservedWorker, ...]],
        downloads: Callable[[], tuple[Download, ...]],
        host: Callable[[], HostFacts],
        refusals: Callable[[], tuple[Refused, ...]],
    ) -> None:
        self.manager = uuid.uuid4().hex
        self._version = 1
        self._generation = generation
        self._workers = workers
        self._downloads = downloads
        self._host = host
        self._refusals = refusals
        self._change = asyncio.Event()

    def changed(self) -> None:
        """Something in the set is different now."""
        self._version += 1
        self._change.set()
        self._change = asyncio.Event()

    def now(self) -> ObservedSet:
        """The set as it is."""
        return ObservedSet(
            manager=self.manager,
            version=self._version,
            generation=self._generation(),
            workers=self._workers(),
            host=self._host(),
            downloads=self._downloads(),
            refusals=self._refusals(),
        )

    async def after(self, version: int, seconds: float) -> ObservedSet:
        """The set as soon as its version differs from `version`, else after `seconds`."""
        if version == self._version:
            try:
                async with asyncio.timeout(seconds):
                    await self._change.wait()
            except TimeoutError:
                pass  # nothing changed: the same set is the answer
        return self.now()
