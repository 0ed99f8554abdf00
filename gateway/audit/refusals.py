"""What the manager refuses: workers, once each, and whatever else was asked of its socket, in sums.

The gateway asks for nothing that the manager would refuse, but for workers and downloads that somebody ordered here.
Anything else was sent by another program with the gateway's rights, so it belongs into the trail. The manager's own log
has it too, where that program can't reach it.
"""

import asyncio
import time
from collections.abc import Callable

import msgspec
import structlog

from gateway.actor import MANAGER
from gateway.audit.store import AuditStore
from gateway.database.chain import Change
from gateway.database.connection import DatabaseError
from worker_manager.contract import FailureKind, ObservedSet, ObservedWorker, Refused

log = structlog.get_logger(__name__)

RETRY_SECONDS = 10.0
GATHER_SECONDS = 1.0
"""Between two writes; what comes meanwhile is one sum for each kind."""
AT_ONCE = 100
"""Sums that may be written at once, and then one in each EACH_SECONDS: some 1,000 a day, whatever is sent."""
EACH_SECONDS = 90.0
POLICY = "policy"
ORDERS = "orders"
"""Not a refusal: orders within the policy that somebody else gave."""


class Gathered(msgspec.Struct):
    """Refusals of one kind that are not written yet."""

    count: int
    last: Refused


class Refusals:
    """Remembers which refusals are reported already, as long as the manager shows them."""

    def __init__(self, audit: AuditStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._audit = audit
        self._clock = clock
        self._known: set[tuple[str, str]] = set()
        self._unwritten: dict[tuple[str, str], Change] = {}
        self._manager = ""
        self._counted: dict[str, int] = {}
        self._gathered: dict[str, Gathered] = {}
        self._left, self._filled_at = float(AT_ONCE), clock()
        self._arrived = asyncio.Event()

    def notice(self, observed: ObservedSet) -> None:
        """Look at what the manager sees; never waits."""
        shown = {_name(worker): worker for worker in observed.workers if _is_refused(worker)}
        for name in shown.keys() - self._known:
            self._unwritten[name] = _change(shown[name])
            self._arrived.set()
        self._known = set(shown)
        self._count(observed, {message for _, message in shown})

    def overruled(self, generation: int) -> None:
        """The manager took a desired set of this number, and this gateway has not sent it."""
        log.warning("somebody else has told the manager what to run", generation=generation)
        told = f"desired set {generation} was sent by another program with the gateway's rights"
        count = self._counted[ORDERS] = self._counted.get(ORDERS, 0) + 1
        self._gather(1, Refused(kind=ORDERS, count=count, message=told, at=time.time()))

    def _gather(self, more: int, last: Refused) -> None:
        before = self._gathered.get(last.kind)
        self._gathered[last.kind] = Gathered(more + (before.count if before is not None else 0), last)
        self._arrived.set()

    def _count(self, observed: ObservedSet, told: set[str]) -> None:
        """Gather what was refused since the last look; `told`: messages of workers that are recorded by name."""
        if observed.manager != self._manager:
            self._manager, self._counted = observed.manager, {}
        for refused in observed.refusals:
            more = refused.count - self._counted.get(refused.kind, 0)
            self._counted[refused.kind] = refused.count
            if more <= 0 or (refused.kind == POLICY and any(message in refused.message for message in told)):
                continue
            self._gather(more, refused)

    async def run(self) -> None:
        """Write what was noticed; for ever."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            taken, self._unwritten = self._unwritten, {}
            sums = self._due()
            try:
                changes = [*taken.values(), *(_sum(gathered) for gathered in sums.values())]
                await self._audit.add([(MANAGER, change) for change in changes])
            except DatabaseError as problem:
                log.warning("refused workers cannot be recorded", problem=str(problem))
                self._unwritten = taken | self._unwritten
                for kind, gathered in sums.items():
                    self._put_back(kind, gathered)
                self._arrived.set()
                await asyncio.sleep(RETRY_SECONDS)
            else:
                await asyncio.sleep(GATHER_SECONDS)

    def _due(self) -> dict[str, Gathered]:
        """Take the sums that may be written now; for the others somebody looks again later."""
        now = self._clock()
        self._left = min(float(AT_ONCE), self._left + (now - self._filled_at) / EACH_SECONDS)
        self._filled_at = now
        due = {kind: self._gathered.pop(kind) for kind in sorted(self._gathered)[: int(self._left)]}
        self._left -= len(due)
        if self._gathered:
            asyncio.get_running_loop().call_later(EACH_SECONDS / 10, self._arrived.set)
        return due

    def _put_back(self, kind: str, gathered: Gathered) -> None:
        later = self._gathered.get(kind)
        self._gathered[kind] = gathered if later is None else Gathered(gathered.count + later.count, later.last)
        self._left += 1


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


def _sum(gathered: Gathered) -> Change:
    last = gathered.last
    facts = {"count": gathered.count, "message": last.message, "at": round(last.at, 3), "since_start": last.count}
    return Change("manager.overruled" if last.kind == ORDERS else "manager.refused", last.kind, None, facts)
