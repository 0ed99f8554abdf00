"""An endpoint's wish and its model's files, put to the memory plan: the size of its workers on this machine."""

from gateway.endpoints.types import EndpointSpec, ModelFacts
from gateway.memory.estimate import Measured, kv_mib, longest_mib, needs
from gateway.memory.host import gpu_rooms
from gateway.memory.lora import host_mib, slots_mib
from gateway.memory.plan import Learned, Model, Sizing, Unfit, Wish, size
from gateway.memory.serving import parallel_gpus, serving_of
from worker_manager.contract import HostFacts

MIB = 1024 * 1024
CPU_BLOCK_TOKENS = 128
"""The largest block that vLLM takes on CPUs where no flag says: a length must fit in whole blocks."""


def nothing_learned(_gpus: int) -> Measured | None:
    """Give no measurement: nothing was learned yet."""
    return None


def gpus_of(spec: EndpointSpec, host: HostFacts) -> int:
    """The least GPUs that a worker may have: what is said, what flags ask for, or one where there are any."""
    if spec.gpus is not None:
        return spec.gpus
    return (parallel_gpus(spec.engine_args) or 1) if host.gpus else 0


def size_of(
    spec: EndpointSpec,
    model: ModelFacts,
    host: HostFacts,
    margin_mib: int,
    learned: Learned = nothing_learned,
    *,
    empty: bool = True,
) -> Sizing | Unfit | None:
    """The size of a worker on GPUs; `empty`: as if no other program held any of their memory.

    None where the model's files do not tell enough to derive one.
    """
    if model.shape is None or not model.weights.is_exact or not host.gpus:
        return None
    wish = Wish(
        gpus=spec.gpus,
        gpu_memory_mib=promised_mib(spec),
        max_model_len=spec.max_model_len,
        per_worker=spec.per_worker,
        args=spec.engine_args,
        lora=spec.lora,
    )
    rooms = gpu_rooms(host, margin_mib, empty=empty)
    largest = max(gpu.memory_total_mib for gpu in host.gpus)
    return size(wish, Model(weights=model.weights, shape=model.shape), rooms, largest, learned)


def promised_mib(spec: EndpointSpec) -> int | None:
    """MiB on each GPU, where the endpoint says so."""
    return round(spec.gpu_memory_gib * 1024) if spec.gpu_memory_gib is not None else None


def cache_flag_mib(spec: EndpointSpec) -> int:
    """MiB of KV cache that a flag asks for; 0 where none does."""
    return -(-(serving_of(spec.engine_args, 1, 0).kv_cache_bytes or 0) // MIB)


def cpu_cache_mib(spec: EndpointSpec, host: HostFacts) -> int:
    """MiB of KV cache of a worker on the CPUs."""
    return cache_flag_mib(spec) or host.cpu_kv_cache_mib


def lora_host_mib(spec: EndpointSpec, model: ModelFacts, gpus: int) -> int:
    """MiB of host memory for the adapters of a worker; on the CPUs (`gpus` 0) with the slots, which lie there too.

    0 where there is no room for adapters, or the model's files do not tell its widths.
    """
    if spec.lora is None or model.shape is None:
        return 0
    kept = host_mib(model.shape, spec.lora, gpus)
    return (
        kept if gpus else kept + slots_mib(model.shape, spec.lora, wide=serving_of(spec.engine_args, 1, 0).in_32_bits)
    )


def cpu_length(spec: EndpointSpec, model: ModelFacts, host: HostFacts) -> int | None:
    """Tokens of context of a worker on the CPUs where the model's own do not fit in its cache; None where they do."""
    room = cpu_cache_mib(spec, host)
    if model.shape is None or spec.max_model_len is not None or room == 0:
        return None
    serving = serving_of({"block-size": CPU_BLOCK_TOKENS, **spec.engine_args}, 1, 0)
    need = needs(model.weights, model.shape, serving, None)
    if kv_mib(model.shape, serving, need, model.shape.longest) <= room:
        return None
    return max(1, longest_mib(model.shape, serving, need, room))
