"""What this machine's cards have to promise. MiB throughout."""

from worker_manager.contract import HostFacts

GPU_OVERHEAD_MIB = 1024
"""CUDA context, activations and a little KV cache on each GPU: the least a worker needs beside its weights, where its
model's files do not tell more."""
CPU_OVERHEAD_MIB = 2048
"""Python, torch and the compiled model of an engine on the CPUs (vLLM 0.32 held 2.1 GiB with a tiny model and 1 GiB of
KV cache)."""
CPU_CACHE_MIB = 1024
"""KV cache of an engine on the CPUs where the manager does not tell."""
HOST_MARGIN_MIB = 2048
"""MiB of the machine's memory that are never promised to engines."""


def are_gpus_unseen(host: HostFacts) -> bool:
    """Whether this is a machine with GPUs of which none can be seen this instant."""
    return host.device == "cuda" and not host.gpus


def gpu_need(weights_mib: int, gpus: int, cache_mib: int = 0) -> int:
    """The least MiB on each GPU where only the weights are known; `cache_mib`: KV cache that a flag sets."""
    return -(-weights_mib // gpus) + GPU_OVERHEAD_MIB + cache_mib


def cpu_need(weights_mib: int, cache_mib: int = 0, lora_mib: int = 0) -> int:
    """MiB of host memory for a worker on the CPUs: its weights (loaded once, copied once in part), cache and engine.

    `lora_mib`: for its LoRA adapters.
    """
    return weights_mib * 6 // 5 + CPU_OVERHEAD_MIB + (cache_mib or CPU_CACHE_MIB) + lora_mib


def cards(host: HostFacts, gpu_margin_mib: int, host_card: str) -> dict[str, int]:
    """MiB that may be promised on each GPU, by UUID, and on the host itself."""
    room = {gpu.uuid: max(0, gpu.memory_total_mib - gpu_margin_mib - gpu.memory_foreign_mib) for gpu in host.gpus}
    room[host_card] = max(0, host.memory_total_mib - HOST_MARGIN_MIB)
    return room


def gpu_rooms(host: HostFacts, gpu_margin_mib: int, *, empty: bool) -> tuple[int, ...]:
    """MiB that may be promised on each GPU, the largest first; `empty`: as if no other program held any."""
    foreign = [0 if empty else gpu.memory_foreign_mib for gpu in host.gpus]
    rooms = (gpu.memory_total_mib - gpu_margin_mib - held for gpu, held in zip(host.gpus, foreign, strict=True))
    return tuple(sorted((max(0, room) for room in rooms), reverse=True))
