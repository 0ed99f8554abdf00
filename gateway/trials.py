"""Changes on trial: whether the workers of a change serve, and what becomes of it if they do not.

A change is on trial from the PATCH until the first worker of it has answered the gateway's canary; then it is proven,
and what later changes fall back to. It is rolled back when a worker of it is given up, has died twice, or has left two
canaries unanswered. Both are stored before they hold, so a restart of the gateway goes on where it was.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import structlog

from gateway.catalogue import Catalogue
from gateway.database.connection import DatabaseError
from gateway.endpoints.registry import Registry
from gateway.endpoints.types import EndpointSpec, RolledBack
from gateway.scheduling.generations import is_current, is_rejected
from gateway.scheduling.types import WantedEndpoint
from worker_manager.contract import Failure, FailureKind, ObservedSet, ObservedWorker, Residency, WorkerState

log = structlog.get_logger(__name__)

DEATHS = 2
CANARIES = 2
RETRY_SECONDS = 1.0
CANARY = "canary "

Canary = Callable[[Path, str], Awaitable[str]]
"""Asks the worker at a socket for an answer under a name; what was wrong, empty if nothing."""


class Trials:
    """Watches the workers of changes. `changed` is called when the planner should look again."""

    def __init__(self, registry: Registry, catalogue: Catalogue, engines: Path, canary: Canary) -> None:
        self._registry = registry
        self._catalogue = catalogue
        self._engines = engines
        self._canary = canary
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._misses: dict[str, tuple[float, int]] = {}
        """Since when a change is tried, and how many canaries were not answered."""
        self.changed: Callable[[], None] = lambda: None
        self.told: Callable[[str, RolledBack | None], None] = lambda _name, _rolled_back: None
        """Hears of each change that is proven, and of each that is rolled back."""

    def look(self, observed: ObservedSet, wanted: Iterable[WantedEndpoint]) -> frozenset[str]:
        """Take note of how changes do. The workers that must not be sent requests, whatever the manager says."""
        held: set[str] = set()
        under_way: set[str] = set()
        for endpoint in wanted:
            own = [worker for worker in observed.workers if worker.spec.endpoint == endpoint.name]
            mine = [worker for worker in own if is_current(endpoint, worker.spec)]
            held |= {worker.spec.id for worker in own if is_rejected(endpoint, worker.spec)}
            if endpoint.on_trial:
                spec, since = self._asked(endpoint.name)
                if any(_is_awake(worker) and worker.since <= since for worker in mine):
                    under_way |= self._note(endpoint, mine)  # it serves already, and is what the change asks for
                    continue
                held |= {worker.spec.id for worker in mine}
                under_way |= self._try(spec, since, mine)
            elif endpoint.template is not None and endpoint.rejected is None and not endpoint.pending:
                under_way |= self._note(endpoint, mine)
        for name in self._tasks.keys() - under_way:
            if name.startswith(CANARY):  # what has been found out is stored all the same
                self._tasks[name].cancel()
        return frozenset(held)

    def _try(self, spec: EndpointSpec | None, since: float, workers: list[ObservedWorker]) -> set[str]:
        if spec is None:
            return set()
        failure = next((found for worker in workers if (found := _failure(worker, since)) is not None), None)
        if failure is not None:
            return {self._do(f"roll back {spec.name}", self._roll_back(spec, failure))}
        return {
            self._do(f"{CANARY}{worker.spec.id}@{worker.since}", self._ask(spec, since, worker))
            for worker in workers
            if _is_awake(worker)
        }

    def _note(self, endpoint: WantedEndpoint, workers: list[ObservedWorker]) -> set[str]:
        """Where nothing was proven yet, whoever the manager has found ready is what a first change falls back to."""
        proven = next((worker for worker in workers if _is_awake(worker)), None)
        spec, _ = self._asked(endpoint.name)
        if proven is None or spec is None or self._registry.is_proven(spec, proven.spec.model):
            return set()
        return {self._do(f"prove {endpoint.name}", self._prove(spec, proven.spec.model))}

    def _asked(self, name: str) -> tuple[EndpointSpec | None, float]:
        endpoint = self._registry.find(name)
        return (endpoint.spec, endpoint.changed_at) if endpoint is not None else (None, 0.0)

    def _do(self, name: str, work: Coroutine[Any, Any, None]) -> str:
        if name in self._tasks:
            work.close()
        else:
            task = self._tasks[name] = asyncio.create_task(self._guarded(work), name=name)
            task.add_done_callback(lambda _: self._tasks.pop(name, None))
        return name

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except DatabaseError as problem:
            log.warning("a change's end could not be stored", problem=str(problem))
            await asyncio.sleep(RETRY_SECONDS)  # then the next look begins it anew
        self.changed()

    async def _ask(self, spec: EndpointSpec, since: float, worker: ObservedWorker) -> None:
        problem = await self._canary(self._engines / worker.socket, spec.name)
        if not problem:
            log.info("canary answered", worker=worker.spec.id)
            await self._prove(spec, worker.spec.model)
            return
        known, misses = self._misses.get(spec.name, (since, 0))
        misses = misses + 1 if known == since else 1
        self._misses[spec.name] = (since, misses)
        log.warning("canary not answered", worker=worker.spec.id, problem=problem, times=misses)
        if misses >= CANARIES:
            await self._roll_back(spec, _unanswered(problem))
        else:
            await asyncio.sleep(RETRY_SECONDS)

    async def _prove(self, spec: EndpointSpec, path: str) -> None:
        before = self._registry.find(spec.name)
        if await self._registry.prove(spec, path):
            self._misses.pop(spec.name, None)
            self._catalogue.forget()
            if before is not None and before.good is not None:
                self.told(spec.name, None)

    async def _roll_back(self, spec: EndpointSpec, failure: Failure) -> None:
        rolled_back = await self._registry.roll_back(spec, failure, same_files=self._catalogue.is_same_model(spec))
        self._misses.pop(spec.name, None)
        if rolled_back is not None:
            fields = ", ".join(rolled_back.changed)
            log.warning("change rolled back", endpoint=spec.name, fields=fields, failure=failure.kind.value)
            self._catalogue.forget()
            self.told(spec.name, rolled_back)

    async def close(self) -> None:
        """End all trials; they begin anew with the next start."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _is_awake(worker: ObservedWorker) -> bool:
    return worker.state is WorkerState.READY and worker.residency is Residency.HOT


def _failure(worker: ObservedWorker, since: float) -> Failure | None:
    """Why a worker of a change has failed for good; what happened before the change does not count."""
    died = worker.state is WorkerState.BACKOFF and worker.restarts >= DEATHS
    if worker.since <= since or not (died or worker.state is WorkerState.FAILED):
        return None
    return worker.failure


def _unanswered(problem: str) -> Failure:
    return Failure(
        kind=FailureKind.HUNG,
        message=f"the new worker was ready and answered none of {CANARIES} first requests ({problem})",
        hint="ask for less of the engine, or see its log with GET /api/workers/{id}/logs while the change is tried",
    )
