"""Endpoints as the planner wants them, and their status as users want it: where the rooms' views meet."""

import asyncio
import time
from collections.abc import Callable, Iterator

import msgspec

from gateway.adapter_catalogue import AdapterCatalogue, download_of
from gateway.endpoints.changes import changed_fields, is_served_alike, pinned, served_as
from gateway.endpoints.registry import Registry
from gateway.endpoints.sizing import cpu_cache_mib, gpus_of, lora_host_mib, promised_mib
from gateway.endpoints.status import ChangeView, EndpointStatus, SleepView, WorkerView, rolling, said
from gateway.endpoints.types import Endpoint, EndpointSpec, ModelFacts
from gateway.errors import sentences
from gateway.memory.host import are_gpus_unseen, cpu_need
from gateway.memory.plan import Unfit
from gateway.scheduling.demand import Demand
from gateway.scheduling.generations import is_current
from gateway.scheduling.loop import Scheduler
from gateway.scheduling.types import Verb, WantedEndpoint
from gateway.seen_files import BEING_READ, SeenFiles
from gateway.sizes import Sizes, WorkerSize
from worker_manager.contract import (
    DownloadState,
    HostFacts,
    ObservedSet,
    ObservedWorker,
    Residency,
    WorkerSpec,
    WorkerState,
)

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
NOT_HERE = "its model is not downloaded yet"
GPUS_UNSEEN = "no GPU of this machine can be seen now: see what nvidia-smi says"
MODEL_BEING_READ = "its model's files are being read"


class Catalogue:
    """Knows every endpoint's worker template and promise."""

    def __init__(self, registry: Registry, sizes: Sizes, clock: Callable[[], float] = time.time) -> None:
        self._registry = registry
        self._sizes = sizes
        self._earlier_sizes = sizes.apart()
        self._models: SeenFiles[EndpointSpec, ModelFacts] = SeenFiles(registry.facts, clock)
        self.adapters = AdapterCatalogue(registry.adapter_facts, clock)

    def forget(self) -> None:
        """Look at all files afresh: something has changed."""
        self._models.forget()
        self.adapters.forget()

    async def look(self) -> None:
        """Look at the files of all models and adapters beside the event loop, where that was not done just now."""
        specs = list(self._specs())
        await asyncio.gather(self._models.look(specs), self.adapters.look(specs))

    def facts(self, spec: EndpointSpec) -> tuple[ModelFacts | None, str]:
        """A model's files, or None and why not."""
        found, why = self._models.of(spec)
        return found, {"": NOT_HERE, BEING_READ: MODEL_BEING_READ}.get(why, why)

    def wanted(self, host: HostFacts) -> tuple[WantedEndpoint, ...]:
        """Every endpoint for the planner, sized for this machine and without its demand."""
        return tuple(self._served(endpoint, host) for endpoint in self._registry.all())

    def _served(self, endpoint: Endpoint, host: HostFacts) -> WantedEndpoint:
        """As its spec says; as it was served before while that can't be, or could not."""
        asked = self._wanted(endpoint.spec, host, self._sizes)
        if endpoint.good is None:
            return asked
        facts, _ = self.facts(endpoint.spec)
        if facts is not None and is_served_alike(endpoint.good, pinned(endpoint.spec, facts.path)):
            return asked
        before = self._wanted(served_as(endpoint.spec, endpoint.good), host, self._earlier_sizes)
        if before.template is None or (before.template, before.asked_gpus) == (asked.template, asked.asked_gpus):
            return asked
        if endpoint.rolled_back is not None:
            # where the number of GPUs is all that was changed, it alone tells the generations apart
            counts = before.gpus if asked.template == before.template else before.asked_gpus
            pending = "" if asked.template is not None else asked.blocked
            return msgspec.structs.replace(before, rejected=asked.template, asked_gpus=counts, pending=pending)
        if asked.template is None:
            return msgspec.structs.replace(before, pending=asked.blocked)
        return msgspec.structs.replace(asked, on_trial=True)

    def is_same_model(self, spec: EndpointSpec) -> bool:
        """Whether the files of this spec are those that its endpoint was last served from."""
        endpoint = self._registry.find(spec.name)
        if endpoint is None or endpoint.good is None:
            return False
        now, before = self.facts(spec)[0], self.facts(endpoint.good)[0]
        return now is not None and before is not None and now.path == before.path

    def size(self, spec: EndpointSpec, host: HostFacts) -> WorkerSize | Unfit | None:
        """How its workers are sized; None while its model is not here, or the GPUs that it needs can't be seen."""
        facts, _ = self.facts(spec)
        return self._sized(spec, facts, host, self._sizes)

    def _sized(
        self, spec: EndpointSpec, facts: ModelFacts | None, host: HostFacts, sizes: Sizes
    ) -> WorkerSize | Unfit | None:
        if facts is None or (spec.gpus is None and are_gpus_unseen(host)):
            return None
        return sizes.of(spec, facts, host)

    def _wanted(self, spec: EndpointSpec, host: HostFacts, sizes: Sizes) -> WantedEndpoint:
        facts, why = self.facts(spec)
        found = self._sized(spec, facts, host, sizes)
        if facts is not None and found is None:
            why = GPUS_UNSEEN
        unfit = sentences(found.reason, found.advice) if isinstance(found, Unfit) else ""
        adapters, problems = self.adapters.of(spec, facts)
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
            adapters=adapters,
            adapter_problems=problems,
        )
        if facts is None or not isinstance(found, WorkerSize):
            return base
        promise = promised_mib(spec) if found.gpus else None
        return msgspec.structs.replace(
            base,
            template=template(spec, facts, promise),
            sleep_host_mib=facts.weights_mib + (found.lora_mib or 0),
            blocked="",
            gpus=found.gpus,
            asked_gpus=found.gpus if spec.gpus is not None else None,
            promise_mib=found.least_mib,
            most_mib=found.most_mib if promise is None and found.gpus else None,
            whole_card=found.gpus > 0 and found.most_mib is None,
            max_model_len=found.max_model_len if found.is_cut else None,
        )

    def model_at(self, path: str) -> ModelFacts | None:
        """The model whose files lie there, if an endpoint is served from it."""
        found = (self.facts(spec)[0] for spec in self._specs())
        return next((facts for facts in found if facts is not None and facts.path == path), None)

    def host_promises(self, host: HostFacts) -> dict[str, int]:
        """MiB of host memory by model path, for workers on the CPUs."""
        found: dict[str, int] = {}
        for spec in self._specs():
            facts, _ = self.facts(spec)
            if facts is not None:
                need = cpu_need(facts.weights_mib, cpu_cache_mib(spec, host), lora_host_mib(spec, facts, 0))
                found[facts.path] = max(found.get(facts.path, 0), need)
        return found

    def _specs(self) -> Iterator[EndpointSpec]:
        """Every endpoint as it is asked for, and as it was served before where that may be another way."""
        for endpoint in self._registry.all():
            yield endpoint.spec
            if endpoint.good is not None:
                yield served_as(endpoint.spec, endpoint.good)

    def served_spec(self, endpoint: Endpoint, host: HostFacts | None) -> EndpointSpec:
        """As which it is served, or is to be: its own spec, or the last good one while that holds instead."""
        if endpoint.good is None or host is None:
            return endpoint.spec
        served = self._served(endpoint, host)
        holds_on = served.pending or served.rejected is not None
        return served_as(endpoint.spec, endpoint.good) if holds_on else endpoint.spec

    def change(self, endpoint: Endpoint, host: HostFacts) -> ChangeView | None:
        """The change of how it is served that does not hold, or not yet; None where it is served as asked."""
        served = self._served(endpoint, host)
        good, failed = endpoint.good, endpoint.rolled_back
        if good is None or not (served.on_trial or served.pending or served.rejected is not None):
            return None
        changed = changed_fields(good, endpoint.spec, same_files=self.is_same_model(endpoint.spec))
        if failed is not None:
            return ChangeView(
                state="rolled_back",
                since=failed.at,
                changed=failed.changed,
                reason=sentences(failed.failure.message, failed.failure.hint),
                failure=failed.failure,
            )
        state = "pending" if served.pending else "on_trial"
        return ChangeView(state=state, since=endpoint.changed_at, changed=changed, reason=served.pending)

    def outdated(self, endpoint: Endpoint, observed: ObservedSet) -> frozenset[str]:
        """Those of its workers that are not made as it is to be served."""
        served = self._served(endpoint, observed.host)
        return frozenset(
            worker.spec.id
            for worker in observed.workers
            if worker.spec.endpoint == served.name and not is_current(served, worker.spec)
        )

    def ceilings(self) -> dict[str, int]:
        """`per_worker` of each endpoint."""
        return {endpoint.spec.name: endpoint.spec.per_worker for endpoint in self._registry.all()}


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
        lora=spec.lora,
    )


class EndpointStatuses:
    """Tells how an endpoint does, out of what the manager sees and what requests want."""

    def __init__(self, catalogue: Catalogue, scheduler: Scheduler, demand: Demand) -> None:
        self._catalogue = catalogue
        self._scheduler = scheduler
        self._demand = demand

    def state(self, endpoint: Endpoint) -> tuple[str, str]:
        """State and reason alone."""
        observed = self._scheduler.observed
        name = endpoint.spec.name
        workers = [worker for worker in observed.workers if worker.spec.endpoint == name] if observed else []
        spec = self._catalogue.served_spec(endpoint, observed.host if observed is not None else None)
        return self._state(spec, workers, observed)

    def __call__(self, endpoint: Endpoint) -> EndpointStatus:
        """The status of one endpoint this instant."""
        observed = self._scheduler.observed
        name = endpoint.spec.name
        workers = [worker for worker in observed.workers if worker.spec.endpoint == name] if observed else []
        outdated = self._catalogue.outdated(endpoint, observed) if observed is not None else frozenset()
        views = tuple(self._worker(worker, outdated) for worker in workers)
        change = self._catalogue.change(endpoint, observed.host) if observed is not None else None
        change = change or rolling(endpoint, views, self._decided(name, frozenset({Verb.WAIT})))
        spec = self._catalogue.served_spec(endpoint, observed.host if observed is not None else None)
        state, reason = self._state(spec, workers, observed)
        size = self._size(spec, observed)
        queue = self._demand.queues.get(name)
        return EndpointStatus(
            state=state,
            reason=reason or said(change),
            workers=views,
            waiting=len(queue.waiters) if queue else 0,
            eta_seconds=self._demand.eta_seconds(name),
            max_model_len=_length(spec, workers, size),
            memory=msgspec.to_builtins(size) if size is not None else None,
            sleep=self._sleep(spec, workers),
            learned={"load_seconds": queue.last_load_seconds} if queue and queue.last_load_seconds else {},
            change=change,
            adapters=self._catalogue.adapters.views(spec, workers, self._catalogue.facts(spec)[0], observed),
        )

    def _size(self, spec: EndpointSpec, observed: ObservedSet | None) -> WorkerSize | None:
        """The memory plan; None while the machine or the model is not known, or where nothing fits."""
        found = self._catalogue.size(spec, observed.host) if observed is not None else None
        return found if isinstance(found, WorkerSize) else None

    def _sleep(self, spec: EndpointSpec, workers: list[ObservedWorker]) -> SleepView:
        if not RUNGS[spec.sleep]:
            return SleepView(possible=False, reason="its setting sleep is off")
        facts, _ = self._catalogue.facts(spec)
        remembered = self._scheduler.why_no_sleep(template(spec, facts, None)) if facts is not None else ""
        reason = remembered or next((worker.no_sleep_reason for worker in workers if worker.no_sleep_reason), "")
        able = any(worker.can_sleep for worker in workers)
        return SleepView(possible=False if reason else able or None, reason=reason)

    def _worker(self, worker: ObservedWorker, outdated: frozenset[str]) -> WorkerView:
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
            outdated=worker.spec.id in outdated,
            on_trial=slot.on_trial if slot else False,
            max_model_len=worker.shortened or worker.spec.max_model_len,
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
        return "cold", self._decided(spec.name)

    def _state_of_download(self, spec: EndpointSpec, observed: ObservedSet | None, why: str) -> tuple[str, str]:
        download = download_of(spec, observed.downloads if observed else ())
        if download is not None and download.state is DownloadState.RUNNING:
            total = f" of {download.bytes_total}" if download.bytes_total is not None else ""
            return "downloading", f"{download.bytes_done}{total} bytes are here"
        if download is not None and download.failure is not None:
            return "failed", sentences(download.failure.message, download.failure.hint)
        return "cold", why

    def _decided(self, name: str, verbs: frozenset[Verb] = frozenset(Verb)) -> str:
        """Why the last plan did one of these for an endpoint; empty where it did none."""
        decided = self._scheduler.last_plan.decisions if self._scheduler.last_plan else ()
        return next((one.reason for one in decided if one.endpoint == name and one.verb in verbs), "")


def _length(spec: EndpointSpec, workers: list[ObservedWorker], size: WorkerSize | None) -> int | None:
    """Tokens of context: what the ready engines said or were told, else what the next one will be told."""
    shown = [
        worker.shortened
        or (worker.measured.max_model_len if worker.measured is not None else None)
        or worker.spec.max_model_len
        for worker in workers
        if worker.state is WorkerState.READY
    ]
    known = [length for length in shown if length is not None]
    if known:
        return min(known)
    return spec.max_model_len or (size.max_model_len if size is not None else None)


def _state_by_workers(workers: list[ObservedWorker]) -> tuple[str, str] | None:
    """State and reason as the best of an endpoint's workers gives them; None where none counts."""
    states = {worker.state for worker in workers}
    if WorkerState.READY in states:
        ready = (worker for worker in workers if worker.state is WorkerState.READY)
        return "hot", next((worker.reason for worker in ready if worker.shortened is not None), "")
    reason = next((worker.reason for worker in workers if worker.reason), "")
    if states & COMING:
        return "loading", reason
    if states & {WorkerState.SLEEPING, WorkerState.ASLEEP}:
        return "asleep", reason
    failed = next((worker.failure for worker in workers if worker.failure and worker.state is WorkerState.FAILED), None)
    return ("failed", sentences(failed.message, failed.hint)) if failed is not None else None
