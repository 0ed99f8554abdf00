"""Generations: which workers are what their endpoint asks for, and which are what it asked for before. Pure."""

from collections.abc import Iterable

import msgspec

from gateway.scheduling.types import KnownWorker, WantedEndpoint
from worker_manager.contract import Residency, WorkerSpec, WorkerState


def is_same(template: WorkerSpec, spec: WorkerSpec) -> bool:
    """Whether a worker was made from this template; its GPUs, and what was left open and chosen, do not matter."""
    placed = msgspec.structs.replace(
        spec,
        id=template.id,
        gpus=template.gpus,
        gpu_memory_mib=spec.gpu_memory_mib if template.gpu_memory_mib is not None else None,
        max_model_len=None if spec.is_length_chosen else spec.max_model_len,
        is_length_chosen=False,
    )
    return placed == template


def is_current(endpoint: WantedEndpoint, spec: WorkerSpec) -> bool:
    """Whether a worker is what its endpoint asks for now; while that is not known, everyone is."""
    if endpoint.template is None:
        return True
    fits = endpoint.asked_gpus is None or len(spec.gpus) == endpoint.asked_gpus
    return fits and is_same(endpoint.template, spec)


def is_rejected(endpoint: WantedEndpoint, spec: WorkerSpec) -> bool:
    """Whether a worker is what a change asked for that was rolled back."""
    return endpoint.rejected is not None and not is_current(endpoint, spec) and is_same(endpoint.rejected, spec)


def is_awake(worker: KnownWorker) -> bool:
    """Whether requests are sent there, or may be at once."""
    return worker.state is WorkerState.READY and worker.asked is Residency.HOT and not worker.on_trial


def serves_on(endpoint: WantedEndpoint, worker: KnownWorker) -> bool:
    """Whether it is of an older generation and serves all the same until its successor does."""
    spec = worker.spec
    return is_awake(worker) and not is_current(endpoint, spec) and not is_rejected(endpoint, spec)


def older(endpoint: WantedEndpoint, workers: Iterable[KnownWorker]) -> list[KnownWorker]:
    """Those of an older generation that serve, in the order in which they are to go: idle ones first."""
    found = [worker for worker in workers if serves_on(endpoint, worker)]
    return sorted(found, key=lambda worker: (worker.in_flight, worker.last_used, worker.spec.id))


def newer(endpoint: WantedEndpoint, workers: Iterable[KnownWorker]) -> list[KnownWorker]:
    """Those of the generation that is asked for now, whatever they are doing."""
    return [worker for worker in workers if is_current(endpoint, worker.spec)]
