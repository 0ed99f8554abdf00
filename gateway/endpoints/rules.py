"""The rules an endpoint must keep, given what the machine has. Pure; every refusal says what to do."""

from difflib import get_close_matches

import msgspec

from gateway.endpoints.types import EndpointSpec, ModelFacts
from gateway.errors import BadRequest
from worker_manager.contract import ENGINE_FLAGS, HostFacts, flag_problem

OVERHEAD_MIB = 1024
"""MiB a worker needs on a GPU beside its weights at the very least: CUDA context, activations, a little KV cache."""


def settle(spec: EndpointSpec, host: HostFacts) -> EndpointSpec:
    """Fill in what depends on the machine: `gpus` becomes 1 where there are GPUs, else 0."""
    if spec.gpus is not None:
        return spec
    return msgspec.structs.replace(spec, gpus=1 if host.gpus else 0)


def check(spec: EndpointSpec, host: HostFacts, model: ModelFacts | None, margin_mib: int) -> None:
    """Raise BadRequest for the first rule the endpoint breaks. `model` is None while it is not downloaded."""
    _check_counts(spec)
    _check_flags(spec)
    _check_gpus(spec, host, model, margin_mib)


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


def _check_gpus(spec: EndpointSpec, host: HostFacts, model: ModelFacts | None, margin_mib: int) -> None:
    wanted = spec.gpus or 0
    if wanted == 0:
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
    _check_memory(spec, host, model, margin_mib, wanted)


def _check_memory(spec: EndpointSpec, host: HostFacts, model: ModelFacts | None, margin_mib: int, wanted: int) -> None:
    cards = sorted((gpu.memory_total_mib - margin_mib for gpu in host.gpus), reverse=True)
    largest = cards[wanted - 1]
    promised = round(spec.gpu_memory_gib * 1024) if spec.gpu_memory_gib is not None else largest
    if promised > largest:
        raise BadRequest(
            f"gpu_memory_gib {spec.gpu_memory_gib} is {promised} MiB on each of {wanted} GPU(s), but at most {largest} "
            f"MiB can be promised (the card's total less {margin_mib} MiB margin): ask for less",
            param="gpu_memory_gib",
        )
    if promised <= OVERHEAD_MIB:
        raise BadRequest(
            f"{promised} MiB on a GPU are too little for any model: the engine itself needs {OVERHEAD_MIB} MiB",
            param="gpu_memory_gib" if spec.gpu_memory_gib is not None else "gpus",
        )
    if model is None:
        return
    need = -(-model.weights_mib // wanted) + OVERHEAD_MIB
    if need > promised:
        raise BadRequest(
            f"The model cannot fit: its weights are {model.weights_mib} MiB, over {wanted} GPU(s) that is "
            f"{need - OVERHEAD_MIB} MiB each, plus at least {OVERHEAD_MIB} MiB to run, and each worker has {promised} "
            "MiB a GPU. Use more GPUs, raise gpu_memory_gib, or take a smaller or quantised model",
            param="gpus" if spec.gpu_memory_gib is None else "gpu_memory_gib",
        )
