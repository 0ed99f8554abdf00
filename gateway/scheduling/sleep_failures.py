"""Which models failed to sleep or to wake, by engine image: kept in the database, so that nobody tries again.

The manager remembers it for its own life; this outlives both processes. After a month it is tried once more.
"""

import time
from collections.abc import Callable, Iterable

from gateway.database.connection import Database
from worker_manager.contract import FailureKind, HostFacts, ObservedWorker, WorkerSpec

KEPT_SECONDS = 30 * 86_400.0
KINDS = frozenset({FailureKind.SLEEP_FAILED, FailureKind.WAKE_FAILED})


class SleepFailures:
    """The table `sleep_failures`, and a copy of it in memory."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._known: dict[tuple[str, str], tuple[str, float]] = {}

    async def load(self) -> None:
        """Read what the database holds, and drop what is old."""
        async with self._database.transaction() as write:
            await write.execute("DELETE FROM sleep_failures WHERE at < ?", (self._clock() - KEPT_SECONDS,))
        rows = await self._database.rows("SELECT image, model, reason, at FROM sleep_failures")
        self._known = {(str(image), str(model)): (str(reason), at) for image, model, reason, at in rows}

    async def learn(self, workers: Iterable[ObservedWorker], host: HostFacts) -> None:
        """Take note of failures that the manager shows."""
        for worker in workers:
            failure, key = worker.failure, _key(worker.spec, host)
            if failure is None or failure.kind not in KINDS or key in self._known:
                continue
            self._known[key] = (failure.message, self._clock())
            async with self._database.transaction() as write:
                await write.execute(
                    "INSERT OR REPLACE INTO sleep_failures (image, model, reason, at) VALUES (?, ?, ?, ?)",
                    (*key, *self._known[key]),
                )

    def reason(self, spec: WorkerSpec, host: HostFacts) -> str:
        """Why a worker like this must not sleep, as the engine's failure said; empty where nothing is known."""
        reason, at = self._known.get(_key(spec, host), ("", 0.0))
        return reason if self._clock() - at < KEPT_SECONDS else ""


def _key(spec: WorkerSpec, host: HostFacts) -> tuple[str, str]:
    """The image, for the manager's default its digest, and the model's folder."""
    return spec.image or host.engine, spec.model
