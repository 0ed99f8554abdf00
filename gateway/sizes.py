"""The size of each endpoint's workers on this machine, worked out once for each change of what it depends on."""

from typing import Any

import msgspec

from gateway.endpoints.sizing import (
    cache_flag_mib,
    cpu_cache_mib,
    cpu_length,
    gpus_of,
    lora_host_mib,
    promised_mib,
    size_of,
)
from gateway.endpoints.types import EndpointSpec, ModelFacts
from gateway.learned import Learned
from gateway.memory.estimate import Measured
from gateway.memory.host import cpu_need, gpu_need
from gateway.memory.plan import Sizing, Unfit
from worker_manager.contract import HostFacts


class WorkerSize(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker is sized; MiB on each GPU, or of host memory without GPUs."""

    gpus: int
    source: str
    """learned, derived, or weights (its files tell no more than their size)."""
    least_mib: int
    most_mib: int | None
    """What it gets where there is room; None: all that is free of a card."""
    max_model_len: int | None
    """None: not known here; the engine takes the model's own."""
    is_cut: bool = False
    """The length was cut to what fits."""
    weights_mib: int
    kv_cache_mib: int | None = None
    """For one request of full length."""
    activations_mib: int | None = None
    graphs_mib: int | None = None
    other_mib: int | None = None
    lora_mib: int | None = None
    """Slots for LoRA adapters."""
    lora_host_mib: int | None = None
    """Host memory for as many adapters as the engine may keep there; on the CPUs with the slots."""


class Sizes:
    """Keeps the last answer for each endpoint."""

    def __init__(self, margin_mib: int, learned: Learned) -> None:
        self._margin_mib = margin_mib
        self._learned = learned
        self._kept: dict[str, tuple[tuple[Any, ...], WorkerSize | Unfit]] = {}

    def apart(self) -> "Sizes":
        """Another one that keeps its own answers: for the same endpoints as they were before."""
        return Sizes(self._margin_mib, self._learned)

    def of(self, spec: EndpointSpec, model: ModelFacts, host: HostFacts) -> WorkerSize | Unfit:
        """The size of a worker of this endpoint."""
        memory = tuple((gpu.memory_total_mib, gpu.memory_foreign_mib) for gpu in host.gpus)
        key = (spec, model, memory, host.cpu_kv_cache_mib, host.engine, self._learned.version)
        kept = self._kept.get(spec.name)
        if kept is not None and kept[0] == key:
            return kept[1]
        found = self._work_out(spec, model, host)
        self._kept[spec.name] = (key, found)
        return found

    def _work_out(self, spec: EndpointSpec, model: ModelFacts, host: HostFacts) -> WorkerSize | Unfit:
        if spec.gpus == 0 or (spec.gpus is None and not host.gpus):
            return _on_cpus(spec, model, host)

        def learned(gpus: int) -> Measured | None:
            return self._learned.find(spec, model, host, gpus)

        sizing = size_of(spec, model, host, self._margin_mib, learned, empty=False)
        if isinstance(sizing, Unfit):
            # other programs hold the memory: the worker waits for it, sized for a card that is empty
            sizing = size_of(spec, model, host, self._margin_mib, learned)
        if sizing is None:
            return _by_weights(spec, model, host)
        return sizing if isinstance(sizing, Unfit) else _as_size(sizing, spec, model)


def _on_cpus(spec: EndpointSpec, model: ModelFacts, host: HostFacts) -> WorkerSize:
    lora = lora_host_mib(spec, model, 0)
    need = cpu_need(model.weights_mib, cpu_cache_mib(spec, host), lora)
    length = cpu_length(spec, model, host)
    own = model.shape.longest if model.shape is not None else None
    return WorkerSize(
        gpus=0,
        source="derived" if model.shape is not None else "weights",
        least_mib=need,
        most_mib=need,
        max_model_len=spec.max_model_len or length or own,
        is_cut=length is not None,
        weights_mib=model.weights_mib,
        kv_cache_mib=cpu_cache_mib(spec, host) or None,
        lora_host_mib=lora or None,
    )


def _by_weights(spec: EndpointSpec, model: ModelFacts, host: HostFacts) -> WorkerSize:
    gpus = max(1, gpus_of(spec, host))
    promise = promised_mib(spec)
    return WorkerSize(
        gpus=gpus,
        source="weights",
        least_mib=promise or gpu_need(model.weights_mib, gpus, cache_flag_mib(spec)),
        most_mib=promise,
        max_model_len=spec.max_model_len,
        weights_mib=-(-model.weights_mib // gpus),
    )


def _as_size(sizing: Sizing, spec: EndpointSpec, model: ModelFacts) -> WorkerSize:
    return WorkerSize(
        gpus=sizing.gpus,
        source="learned" if sizing.is_learned else "derived",
        least_mib=sizing.least_mib,
        most_mib=sizing.most_mib,
        max_model_len=sizing.max_model_len,
        is_cut=sizing.is_cut,
        weights_mib=sizing.weights_mib,
        kv_cache_mib=sizing.kv_cache_mib,
        activations_mib=sizing.activations_mib,
        graphs_mib=sizing.graphs_mib,
        other_mib=sizing.other_mib,
        lora_mib=sizing.lora_mib or None,
        lora_host_mib=lora_host_mib(spec, model, sizing.gpus) or None,
    )
