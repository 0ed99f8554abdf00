"""How much memory a worker is promised."""

from gateway.memory.host import (
    CPU_CACHE_MIB,
    CPU_OVERHEAD_MIB,
    GPU_OVERHEAD_MIB,
    HOST_MARGIN_MIB,
    cards,
    cpu_need,
    gpu_need,
    gpu_rooms,
)
from worker_manager.contract import Gpu, HostFacts


def test_weights_are_shared_out_over_the_gpus_and_rounded_up() -> None:
    assert gpu_need(15_001, 2) == 7_501 + GPU_OVERHEAD_MIB


def test_an_engine_on_the_cpus_needs_more_than_its_weights() -> None:
    assert cpu_need(1_000) == 1_200 + CPU_OVERHEAD_MIB + CPU_CACHE_MIB
    assert cpu_need(1_000, 8_192) == 1_200 + CPU_OVERHEAD_MIB + 8_192


def test_a_card_has_its_total_less_the_margin_less_what_other_programs_hold() -> None:
    gpu = Gpu(
        index=0,
        uuid="GPU-0",
        name="card",
        memory_total_mib=24_000,
        memory_used_mib=20_000,
        memory_foreign_mib=3_000,
    )
    host = HostFacts(launcher="docker", device="cuda", gpus=(gpu,), memory_total_mib=64_000)
    assert gpu_rooms(host, 512, empty=True) == (24_000 - 512,)
    assert gpu_rooms(host, 512, empty=False) == (24_000 - 512 - 3_000,)
    room = cards(host, 512, "host")
    assert room == {"GPU-0": 24_000 - 512 - 3_000, "host": 64_000 - HOST_MARGIN_MIB}
