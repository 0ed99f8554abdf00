"""Which models failed to sleep or to wake, by engine and level: kept in the database, so that nobody tries again.

The manager remembers it for its own life; this outlives both processes, and the manager is told with each desired set.
Another engine (an image's digest, another installation) is another try, and after a month so is the same one.
"""

import time
from collections.abc import Callable, Iterable

import msgspec
import structlog

from gateway.database.connection import Database, DatabaseError
from worker_manager.contract import HostFacts, ObservedWorker, Residency, WorkerSpec

log = structlog.get_logger(__name__)

KEPT_SECONDS = 30 * 86_400.0


class Key(msgspec.Struct, frozen=True):
    """What a failure holds for."""

    engine: str
    model: str
    level: Residency


class SleepFailures:
    """The table `sleep_failures`, and a copy of it in memory."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._known: dict[Key, tuple[str, float]] = {}
        self._unsaved: set[Key] = set()

    async def load(self) -> None:
        """Read what the database holds, and drop what is old."""
        try:
            async with self._database.transaction() as write:
                await write.execute("DELETE FROM sleep_failures WHERE at < ?", (self._clock() - KEPT_SECONDS,))
        except DatabaseError as problem:  # a full disk; whoever reads looks at the time as well
            log.warning("old sleep failures could not be deleted", problem=str(problem))
        rows = await self._database.rows("SELECT engine, model, level, reason, at FROM sleep_failures")
        for engine, model, level, reason, at in rows:
            try:
                self._known[Key(engine, model, Residency(level))] = (reason, at)
            except ValueError as problem:
                log.warning("sleep failure unreadable", model=model, problem=str(problem))

    async def learn(self, workers: Iterable[ObservedWorker], host: HostFacts) -> None:
        """Take note of failures that the manager shows; what can't be written now is written with the next ones."""
        for worker in workers:
            for level, reason in worker.broken_sleep.items():
                key = Key(_engine(worker.spec, host), worker.spec.model, level)
                if not self._told(key):
                    self._known[key] = (reason, self._clock())
                    self._unsaved.add(key)
                    log.warning("sleep given up", model=key.model, level=level.value, reason=reason)
        for key in list(self._unsaved):
            try:
                await self._write(key)
            except DatabaseError as problem:
                log.warning("failed sleep not saved", model=key.model, problem=str(problem))
                return
            self._unsaved.discard(key)

    async def _write(self, key: Key) -> None:
        async with self._database.transaction() as write:
            await write.execute(
                "INSERT OR REPLACE INTO sleep_failures (engine, model, level, reason, at) VALUES (?, ?, ?, ?, ?)",
                (key.engine, key.model, key.level.value, *self._known[key]),
            )

    def reason(self, spec: WorkerSpec, host: HostFacts, level: Residency = Residency.ASLEEP_1) -> str:
        """Why a worker like this must not sleep at this level, as its failure said; empty where nothing is known."""
        return self._told(Key(_engine(spec, host), spec.model, level))

    def _told(self, key: Key) -> str:
        reason, at = self._known.get(key, ("", 0.0))
        return reason if self._clock() - at < KEPT_SECONDS else ""


def _engine(spec: WorkerSpec, host: HostFacts) -> str:
    """The image; for the manager's default its digest, and without containers the installed program."""
    return spec.image or host.engine or host.program
