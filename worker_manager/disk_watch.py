"""Ends engines that write more to the machine's disk than they may (`disk_use`): looked at every few seconds."""

import asyncio
import time
from collections.abc import Callable, Iterable

import structlog

from worker_manager.contract import Failure, FailureKind, WorkerSpec
from worker_manager.disk_use import Writable, trouble
from worker_manager.launchers.base import LauncherError
from worker_manager.launchers.disk import DISK_SECONDS, Disk
from worker_manager.refusals import Refusals

LOOK_SECONDS = 5.0
LOOK_SHARE = 20
"""A look that took long is followed by a pause that is so many times longer."""

logger = structlog.get_logger()


class DiskWatch:
    """Looks at what all engines that run have written, for ever."""

    def __init__(
        self,
        running: Callable[[], Iterable[WorkerSpec]],
        writable: Callable[[WorkerSpec], tuple[Writable, ...]],
        end: Callable[[str, Failure], None],
        refusals: Refusals,
        disk_seconds: float = DISK_SECONDS,
    ) -> None:
        """`end` is told which worker has to go, and why. A folder may take `disk_seconds` to answer."""
        self._running = running
        self._writable = writable
        self._end = end
        self._refusals = refusals
        self._disk_seconds = disk_seconds
        self._disk = Disk("engines")

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            began = time.monotonic()
            for spec in tuple(self._running()):
                for place in self._writable(spec):
                    await self._look(spec, place)
            await asyncio.sleep(max(LOOK_SECONDS, LOOK_SHARE * (time.monotonic() - began)))

    async def _look(self, spec: WorkerSpec, place: Writable) -> None:
        try:
            found = await self._disk.in_time(place.name, lambda: trouble(place), self._disk_seconds)
        except LauncherError as error:
            logger.warning("disk_use_unknown", worker=spec.id, folder=str(place.folder), cause=str(error))
            return
        if found:
            self._refusals.note("policy", f"worker {spec.id}: {found}")
            hint = "an engine does that which runs code that it should not; HOSTLER_ENGINE_CACHE_GIB bounds its cache"
            self._end(spec.id, Failure(kind=FailureKind.REFUSED, message=found, hint=hint, at=time.time()))
