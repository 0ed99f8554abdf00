"""The rules an endpoint must keep, given what the machine has. Pure; every refusal says what to do."""

from difflib import get_close_matches

import msgspec

from gateway.endpoints.sizing import (
    cache_flag_mib,
    cpu_cache_mib,
    gpus_of,
    lora_host_mib,
    nothing_learned,
    promised_mib,
    size_of,
)
from gateway.endpoints.types import EndpointSpec, ModelFacts
from gateway.errors import BadRequest, sentences
from gateway.memory.host import GPU_OVERHEAD_MIB, HOST_MARGIN_MIB, are_gpus_unseen, cpu_need, gpu_need
from gateway.memory.plan import Learned, Unfit
from worker_manager.contract import HostFacts
from worker_manager.engine_flags import ENGINE_FLAGS, flag_problem


def settle(spec: EndpointSpec, host: HostFacts) -> EndpointSpec:
    """Fill in what depends on the machine: without GPUs `gpus` becomes 0, else it stays open for the memory plan.

    It stays open too while GPUs can't be seen: that passes, and what is stored does not.
    """
    if spec.gpus is not None or host.gpus or are_gpus_unseen(host):
        return spec
    return msgspec.structs.replace(spec, gpus=0)


def check(
    spec: EndpointSpec,
    host: HostFacts,
    model: ModelFacts | None,
    margin_mib: int,
    learned: Learned = nothing_learned,
) -> None:
    """Raise BadRequest for the first rule the endpoint breaks. `model` is None while it is not downloaded."""
    _check_counts(spec)
    _check_flags(spec)
    _check_gpus(spec, host, model, margin_mib, learned)


def _check_counts(spec: EndpointSpec) -> None:
    if spec.min_workers > spec.max_workers:
        raise BadRequest(
            f"min_workers ({spec.min_workers}) is greater than max_workers ({spec.max_workers}): raise the one or "
            "lower the other",
            param="min_workers",
        )
    names = spec.names()
    if len(set(names)) < len(names):
        raise BadRequest("aliases must differ from each other and from the name", param="aliases")
    twice = next((name for name in spec.adapters if name in names), None)
    if twice is not None:
        raise BadRequest(
            f"The adapter '{twice}' has a name that the endpoint itself goes by: choose another", param="adapters"
        )


def _check_flags(spec: EndpointSpec) -> None:
    for name, value in spec.engine_args.items():
        problem = flag_problem(name, value)
        if problem is None:
            continue
        near = _near(name)
        hint = f" Did you mean {near}?" if near else f" Possible are: {', '.join(sorted(ENGINE_FLAGS))}."
        raise BadRequest(f"{problem[0].upper()}{problem[1:]}.{hint}", param="engine_args")


def _near(name: str) -> str:
    return " or ".join(f"'{near}'" for near in get_close_matches(name.replace("_", "-"), ENGINE_FLAGS, n=2))


def _check_gpus(
    spec: EndpointSpec, host: HostFacts, model: ModelFacts | None, margin_mib: int, learned: Learned
) -> None:
    if spec.gpus is None and are_gpus_unseen(host):
        return  # it is sized once they are seen
    wanted = gpus_of(spec, host)
    if wanted == 0:
        _check_host_memory(spec, host, model)
        if spec.gpu_memory_gib is not None:
            raise BadRequest("gpu_memory_gib means nothing with gpus 0: leave it out", param="gpu_memory_gib")
        return
    if wanted > len(host.gpus):
        has = f"{len(host.gpus)} GPU{'s' if len(host.gpus) != 1 else ''}" if host.gpus else "no GPU"
        raise BadRequest(
            f"{wanted} GPUs were asked for and this machine has {has}: set gpus to at most {len(host.gpus)}"
            + ("" if host.gpus else " (the CPUs serve then)"),
            param="gpus",
        )
    promised = _check_promise(spec, host, margin_mib, wanted)
    if model is None:
        return
    sizing = size_of(spec, model, host, margin_mib, learned)
    if isinstance(sizing, Unfit):
        raise BadRequest(sentences(sizing.reason, sizing.advice), param=sizing.param)
    if sizing is None:
        _check_weights(spec, model, promised, wanted)


def _check_host_memory(spec: EndpointSpec, host: HostFacts, model: ModelFacts | None) -> None:
    if model is None or host.memory_total_mib == 0:
        return
    room = host.memory_total_mib - HOST_MARGIN_MIB
    need = cpu_need(model.weights_mib, cpu_cache_mib(spec, host), lora_host_mib(spec, model, 0))
    if need > room:
        raise BadRequest(
            f"The model cannot fit: its weights are {model.weights_mib} MiB, on the CPUs that takes {need} MiB "
            f"of memory with all the engine needs, and of this machine's {host.memory_total_mib} MiB at most {room} "
            "can be promised. Take a smaller or quantised model, or GPUs",
            param="model",
        )


def _check_promise(spec: EndpointSpec, host: HostFacts, margin_mib: int, wanted: int) -> int:
    """MiB that a worker may have on each card."""
    largest = sorted((gpu.memory_total_mib - margin_mib for gpu in host.gpus), reverse=True)[wanted - 1]
    asked = promised_mib(spec)
    promised = asked if asked is not None else largest
    if promised > largest:
        raise BadRequest(
            f"gpu_memory_gib {spec.gpu_memory_gib} is {promised} MiB on each of {wanted} GPU(s), but at most {largest} "
            f"MiB can be promised (the card's total less {margin_mib} MiB margin): ask for less",
            param="gpu_memory_gib",
        )
    if promised <= GPU_OVERHEAD_MIB:
        raise BadRequest(
            f"{promised} MiB on a GPU are too little for any model: the engine itself needs {GPU_OVERHEAD_MIB} MiB",
            param="gpu_memory_gib" if spec.gpu_memory_gib is not None else "gpus",
        )
    cache = cache_flag_mib(spec)
    if cache > promised - GPU_OVERHEAD_MIB:
        raise BadRequest(
            f"kv-cache-memory-bytes is {cache} MiB on each GPU, and a worker has {promised} MiB there, of which the "
            f"engine itself needs {GPU_OVERHEAD_MIB}: lower it, or leave it out",
            param="engine_args",
        )
    return promised


def _check_weights(spec: EndpointSpec, model: ModelFacts, promised: int, wanted: int) -> None:
    """For a model whose files tell no more than their size."""
    cache = cache_flag_mib(spec)
    need = gpu_need(model.weights_mib, wanted, cache)
    if need > promised:
        plus = f" + {cache} MiB of KV cache (kv-cache-memory-bytes)" if cache else ""
        raise BadRequest(
            f"The model cannot fit: its weights are {model.weights_mib} MiB, over {wanted} GPU(s) that is "
            f"{need - GPU_OVERHEAD_MIB - cache} MiB each, plus at least {GPU_OVERHEAD_MIB} MiB to run{plus}, and each "
            f"worker has {promised} MiB a GPU. Use more GPUs, raise gpu_memory_gib, or take a smaller or "
            "quantised model",
            param="gpus" if spec.gpu_memory_gib is None else "gpu_memory_gib",
        )
