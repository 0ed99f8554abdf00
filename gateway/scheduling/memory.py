"""How much memory a worker is promised. Pure; MiB throughout.

Weights are what the model's files weigh; the engine's own needs are constants that were seen, until learning replaces
them (the house plan, section "Memory").
"""

from worker_manager.contract import HostFacts

GPU_OVERHEAD_MIB = 1024
"""CUDA context, activations and a little KV cache on each GPU: the least a worker needs beside its weights."""
CPU_OVERHEAD_MIB = 3072
"""Python, torch, the compiled model and 1 GiB of KV cache of an engine on the CPUs (vLLM 0.32 held 2.1 GiB with a tiny
model and 1 GiB of cache)."""
HOST_MARGIN_MIB = 2048
"""MiB of the machine's memory that are never promised to engines."""


def gpu_need(weights_mib: int, gpus: int) -> int:
    """The least MiB a worker needs on each of its GPUs: its share of the weights and the engine's own."""
    return -(-weights_mib // gpus) + GPU_OVERHEAD_MIB


def cpu_need(weights_mib: int) -> int:
    """MiB of host memory for a worker on the CPUs: its weights (loaded once, copied once in part) and the engine."""
    return weights_mib * 6 // 5 + CPU_OVERHEAD_MIB


def cards(host: HostFacts, gpu_margin_mib: int, host_card: str) -> dict[str, int]:
    """MiB that may be promised on each GPU, by UUID, and on the host itself."""
    room = {gpu.uuid: max(0, gpu.memory_total_mib - gpu_margin_mib - gpu.memory_foreign_mib) for gpu in host.gpus}
    room[host_card] = max(0, host.memory_total_mib - HOST_MARGIN_MIB)
    return room
