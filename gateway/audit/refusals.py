"""Workers that the manager's policy refuses: noticed in what it reports, recorded once each."""

import asyncio

import structlog

from gateway.actor import MANAGER
from gateway.audit.store import AuditStore
from gateway.database.chain import Change
from gateway.database.connection import DatabaseError
from worker_manager.contract import FailureKind, ObservedSet, ObservedWorker

log = structlog.get_logger(__name__)

RETRY_SECONDS = 10.0


class Refusals:
    """Remembers which refusals are reported already, as long as the manager shows them."""

    def __init__(self, audit: AuditStore) -> None:
        self._audit = audit
        self._known: set[tuple[str, str]] = set()
        self._unwritten: dict[tuple[str, str], Change] = {}
        self._arrived = asyncio.Event()

    def notice(self, observed: ObservedSet) -> None:
        """Look at what the manager sees; never waits."""
        shown = {_name(worker): worker for worker in observed.workers if _is_refused(worker)}
        for name in shown.keys() - self._known:
            self._unwritten[name] = _change(shown[name])
            self._arrived.set()
        self._known = set(shown)

    async def run(self) -> None:
        """Write what was noticed; for ever."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            taken, self._unwritten = self._unwritten, {}
            try:
                await self._audit.add([(MANAGER, change) for change in taken.values()])
            except DatabaseError as problem:
                log.warning("refused workers cannot be recorded", problem=str(problem))
                self._unwritten = taken | self._unwritten
                self._arrived.set()
                await asyncio.sleep(RETRY_SECONDS)


def _is_refused(worker: ObservedWorker) -> bool:
    failure = worker.failure
    if failure is None:
        return False
    # a bad flag may also be what an engine says of itself, in its log
    return failure.kind == FailureKind.REFUSED or (failure.kind == FailureKind.BAD_FLAG and not failure.log_tail)


def _name(worker: ObservedWorker) -> tuple[str, str]:
    """By endpoint and not by worker: one that is tried again is a new worker each time."""
    return worker.spec.endpoint, worker.failure.message if worker.failure else ""


def _change(worker: ObservedWorker) -> Change:
    assert worker.failure is not None  # noqa: S101 - only refused workers come here
    facts = {
        "worker": worker.spec.id,
        "kind": worker.failure.kind.value,
        "message": worker.failure.message,
        "hint": worker.failure.hint,
    }
    return Change("worker.refused", worker.spec.endpoint, None, facts)
