"""Endpoints as the planner wants them, and their status as users want it: where the rooms' views meet."""

import time
from collections.abc import Callable
from typing import Any

import msgspec

from gateway.endpoints.registry import Registry
from gateway.endpoints.sizing import cpu_cache_mib, gpus_of, promised_mib
from gateway.endpoints.status import EndpointStatus, WorkerView
from gateway.endpoints.types import EndpointSpec, ModelFacts
from gateway.errors import GatewayError, sentences
from gateway.memory.host import cpu_need
from gateway.memory.plan import Unfit
from gateway.scheduling.demand import Demand
from gateway.scheduling.loop import Scheduler
from gateway.scheduling.types import WantedEndpoint
from gateway.sizes import Sizes, WorkerSize
from worker_manager.contract import (
    Download,
    DownloadState,
    HostFacts,
    ObservedSet,
    ObservedWorker,
    Residency,
    WorkerSpec,
    WorkerState,
)

FACTS_SECONDS = 2.0
"""A model's files are looked at again after this long at the earliest: planning must not mean reading folders."""
RUNGS = {
    "auto": (Residency.ASLEEP_1,),
    "level2": (Residency.ASLEEP_1, Residency.ASLEEP_2),
    "off": (),
}
"""What an endpoint's `sleep` lets its workers rest as."""
COMING = frozenset(
    {WorkerState.WAITING, WorkerState.CREATING, WorkerState.LOADING, WorkerState.WAKING, WorkerState.BACKOFF}
)
"""States that lead to READY by themselves."""


class Catalogue:
    """Knows every endpoint's worker template and promise."""

    def __init__(self, registry: Registry, sizes: Sizes, clock: Callable[[], float] = time.time) -> None:
        self._registry = registry
        self._sizes = sizes
        self._clock = clock
        self._facts: dict[tuple[str, str | None], tuple[float, ModelFacts | None, str]] = {}

    def forget(self) -> None:
        """Look at all files afresh: something has changed."""
        self._facts.clear()

    def facts(self, spec: EndpointSpec) -> tuple[ModelFacts | None, str]:
        """A model's files, or None and why not."""
        key = (spec.model, spec.revision)
        cached = self._facts.get(key)
        if cached is not None and self._clock() - cached[0] < FACTS_SECONDS:
            return cached[1], cached[2]
        try:
            found, why = self._registry.facts(spec), "its model is not downloaded yet"
        except GatewayError as problem:
            found, why = None, problem.message
        self._facts[key] = (self._clock(), found, why)
        return found, why

    def wanted(self, host: HostFacts) -> tuple[WantedEndpoint, ...]:
        """Every endpoint for the planner, sized for this machine and without its demand."""
        return tuple(self._wanted(endpoint.spec, host) for endpoint in self._registry.all())

    def size(self, spec: EndpointSpec, host: HostFacts) -> WorkerSize | Unfit | None:
        """How its workers are sized; None while its model is not here."""
        facts, _ = self.facts(spec)
        return self._sizes.of(spec, facts, host) if facts is not None else None

    def _wanted(self, spec: EndpointSpec, host: HostFacts) -> WantedEndpoint:
        facts, why = self.facts(spec)
        found = self._sizes.of(spec, facts, host) if facts is not None else None
        unfit = sentences(found.reason, found.advice) if isinstance(found, Unfit) else ""
        base = WantedEndpoint(
            name=spec.name,
            template=None,
            blocked=unfit or why,
            unfit=unfit,
            gpus=gpus_of(spec, host),
            min_workers=spec.min_workers,
            max_workers=spec.max_workers,
            per_worker=spec.per_worker,
            idle_seconds=spec.idle_seconds,
            sleep=RUNGS[spec.sleep],
            sleep_after_seconds=spec.sleep_after_seconds,
            sleep_host_mib=facts.weights_mib if facts is not None else 0,
            priority=spec.priority,
        )
        if facts is None or not isinstance(found, WorkerSize):
            return base
        promise = promised_mib(spec) if found.gpus else None
        return msgspec.structs.replace(
            base,
            template=template(spec, facts, promise),
            blocked="",
            gpus=found.gpus,
            promise_mib=found.least_mib,
            most_mib=found.most_mib if promise is None and found.gpus else None,
            whole_card=found.gpus > 0 and found.most_mib is None,
            max_model_len=found.max_model_len if found.is_cut else None,
        )

    def model_at(self, path: str) -> ModelFacts | None:
        """The model whose files lie there, if an endpoint is served from it."""
        found = (self.facts(endpoint.spec)[0] for endpoint in self._registry.all())
        return next((facts for facts in found if facts is not None and facts.path == path), None)

    def host_promises(self, host: HostFacts) -> dict[str, int]:
        """MiB of host memory by model path, for workers on the CPUs."""
        found: dict[str, int] = {}
        for endpoint in self._registry.all():
            facts, _ = self.facts(endpoint.spec)
            if facts is not None:
                need = cpu_need(facts.weights_mib, cpu_cache_mib(endpoint.spec, host))
                found[facts.path] = max(found.get(facts.path, 0), need)
        return found

    def ceilings(self) -> dict[str, int]:
        """`per_worker` of each endpoint."""
        return {endpoint.spec.name: endpoint.spec.per_worker for endpoint in self._registry.all()}


def download_of(spec: EndpointSpec, downloads: tuple[Download, ...]) -> Download | None:
    """The download of an endpoint's model, if there is one."""
    wanted = (spec.model, spec.revision or "main")
    return next((download for download in downloads if (download.model, download.revision) == wanted), None)


def template(spec: EndpointSpec, facts: ModelFacts, promise_mib: int | None) -> WorkerSpec:
    """What each worker of an endpoint looks like, but for its id and its GPUs."""
    return WorkerSpec(
        id="x",
        endpoint=spec.name,
        engine=spec.engine,
        model=facts.path,
        served_names=(spec.name,),  # aliases are ours: making one touches no worker
        gpu_memory_mib=promise_mib,
        max_model_len=spec.max_model_len,
        args=spec.engine_args,
    )


class EndpointStatuses:
    """Tells how an endpoint does, out of what the manager sees and what requests want."""

    def __init__(self, catalogue: Catalogue, scheduler: Scheduler, demand: Demand) -> None:
        self._catalogue = catalogue
        self._scheduler = scheduler
        self._demand = demand

    def __call__(self, spec: EndpointSpec) -> EndpointStatus:
        """The status of one endpoint this instant."""
        observed = self._scheduler.observed
        workers = [worker for worker in observed.workers if worker.spec.endpoint == spec.name] if observed else []
        state, reason = self._state(spec, workers, observed)
        queue = self._demand.queues.get(spec.name)
        return EndpointStatus(
            state=state,
            reason=reason,
            workers=tuple(self._worker(worker) for worker in workers),
            waiting=len(queue.waiters) if queue else 0,
            eta_seconds=self._demand.eta_seconds(spec.name),
            memory=self._memory(spec, observed),
            learned={"load_seconds": queue.last_load_seconds} if queue and queue.last_load_seconds else {},
        )

    def _memory(self, spec: EndpointSpec, observed: ObservedSet | None) -> dict[str, Any] | None:
        """The memory plan in numbers; None while the machine or the model is not known, or where nothing fits."""
        found = self._catalogue.size(spec, observed.host) if observed is not None else None
        return msgspec.to_builtins(found) if isinstance(found, WorkerSize) else None

    def _worker(self, worker: ObservedWorker) -> WorkerView:
        slot = self._demand.slots.get(worker.spec.id)
        return WorkerView(
            id=worker.spec.id,
            state=worker.state.value,
            residency=worker.residency.value,
            gpus=worker.spec.gpus,
            memory_mib=worker.spec.gpu_memory_mib,
            in_flight=slot.in_flight if slot else 0,
            since=worker.since,
            draining=slot.draining if slot else False,
            reason=worker.reason,
            failure=worker.failure,
        )

    def _state(
        self, spec: EndpointSpec, workers: list[ObservedWorker], observed: ObservedSet | None
    ) -> tuple[str, str]:
        told = _state_by_workers(workers)
        if told is not None:
            return told
        facts, why = self._catalogue.facts(spec)
        if facts is None:
            return self._state_of_download(spec, observed, why)
        return self._state_of_nothing(spec, observed)

    def _state_of_nothing(self, spec: EndpointSpec, observed: ObservedSet | None) -> tuple[str, str]:
        """No worker, though the model is here."""
        if observed is None:
            return "cold", "the worker manager has not been seen yet"
        size = self._catalogue.size(spec, observed.host)
        if isinstance(size, Unfit):
            return "failed", sentences(size.reason, size.advice)
        return "cold", self._why_waiting(spec.name)

    def _state_of_download(self, spec: EndpointSpec, observed: ObservedSet | None, why: str) -> tuple[str, str]:
        download = download_of(spec, observed.downloads if observed else ())
        if download is not None and download.state is DownloadState.RUNNING:
            total = f" of {download.bytes_total}" if download.bytes_total is not None else ""
            return "downloading", f"{download.bytes_done}{total} bytes are here"
        if download is not None and download.failure is not None:
            return "failed", sentences(download.failure.message, download.failure.hint)
        return "cold", why

    def _why_waiting(self, name: str) -> str:
        decided = self._scheduler.last_plan.decisions if self._scheduler.last_plan else ()
        return next((one.reason for one in decided if one.endpoint == name), "")


def _state_by_workers(workers: list[ObservedWorker]) -> tuple[str, str] | None:
    """State and reason as the best of an endpoint's workers gives them; None where none counts."""
    states = {worker.state for worker in workers}
    if WorkerState.READY in states:
        return "hot", ""
    reason = next((worker.reason for worker in workers if worker.reason), "")
    if states & COMING:
        return "loading", reason
    if states & {WorkerState.SLEEPING, WorkerState.ASLEEP}:
        return "asleep", reason
    failed = next((worker.failure for worker in workers if worker.failure and worker.state is WorkerState.FAILED), None)
    return ("failed", sentences(failed.message, failed.hint)) if failed is not None else None
