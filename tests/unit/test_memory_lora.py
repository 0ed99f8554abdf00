"""What adapters take, by the shapes that vLLM allocates."""

import msgspec
import pytest

from gateway.memory.config import Kind, Layers, ModelShape
from gateway.memory.estimate import Measured, needs
from gateway.memory.lora import host_mib, slots_mib
from gateway.memory.plan import Unfit
from gateway.memory.serving import serving_of
from tests.unit.test_memory_plan import BIG, CARD, LLAMA_8B, fits, sized
from worker_manager.contract import LoraRoom

MIB = 1024 * 1024
ONE = LoraRoom(max_rank=16, max_loras=1, max_cpu_loras=1)
LAYER = (4096 + 4096) + 2 * (4096 + 1024) + (4096 + 4096) + 3 * (4096 + 14336)
"""q, k and v, o, then gate, up and down of Llama 3.1 8B: input + output of each."""
ENDS = 2 * (128256 + 4096)


def test_a_slot_of_llama_8b() -> None:
    exact = 16 * 2 * (32 * LAYER + ENDS)
    assert slots_mib(LLAMA_8B, ONE) == -(-exact // MIB) == 89
    assert slots_mib(LLAMA_8B, msgspec.structs.replace(ONE, max_loras=4)) == -(-4 * exact // MIB)
    assert slots_mib(LLAMA_8B, ONE, wide=True) == -(-2 * exact // MIB)


def test_an_adapter_in_host_memory_is_a_slot_without_the_ends_for_each_process() -> None:
    # 41.9 M parameters: what PEFT counts for rank 16 on all linear layers of Llama 3.1 8B
    assert 16 * 32 * LAYER == 41_943_040
    assert host_mib(LLAMA_8B, ONE) == 80
    assert host_mib(LLAMA_8B, msgspec.structs.replace(ONE, max_cpu_loras=16), 2) == 16 * 2 * 80


def test_over_two_gpus_one_matrix_of_each_layer_is_cut_and_the_other_is_not() -> None:
    layer = (4096 + 2048) + 2 * (4096 + 512) + (2048 + 4096) + 3 * (4096 + 7168)
    assert slots_mib(LLAMA_8B, ONE, 2) == -(-16 * 2 * (32 * layer + ENDS) // MIB)


def test_every_expert_has_slots_of_its_own() -> None:
    moe = msgspec.structs.replace(LLAMA_8B, experts=8, experts_used=2, expert_size=14336)
    experts = 16 * 2 * 32 * 8 * 3 * (4096 + 14336)
    assert slots_mib(moe, ONE) == pytest.approx(slots_mib(LLAMA_8B, ONE) + experts / MIB, abs=1)


def test_the_real_engine_allocates_so_much_for_the_demo_model() -> None:
    demo = ModelShape(
        hidden_size=256,
        intermediate_size=512,
        layers=(Layers(Kind.FULL, 2),),
        attention_heads=4,
        kv_heads=2,
        head_dim=64,
        value_head_dim=64,
        vocab_size=260,
        longest=4096,
    )
    room = LoraRoom(max_rank=512, max_loras=64)
    # vLLM 0.32 on the CPU, 4 slots of rank 16: all its lora_a_stacked and lora_b_stacked had 590,336 elements
    widths = 590_336 // (4 * 16)
    assert slots_mib(demo, room) == -(-64 * 512 * 2 * widths // MIB)


def test_slots_are_part_of_the_promise() -> None:
    room = LoraRoom(max_rank=64, max_loras=8)
    without, with_room = fits(CARD), fits(CARD, lora=room)
    assert with_room.lora_mib == slots_mib(LLAMA_8B, room)
    grown = with_room.least_mib - with_room.kv_cache_mib - (without.least_mib - without.kv_cache_mib)
    assert grown == with_room.lora_mib


def test_what_does_not_fit_for_its_slots_says_so() -> None:
    found = sized(CARD, lora=LoraRoom(max_rank=512, max_loras=8))
    assert isinstance(found, Unfit)
    assert "MiB for LoRA adapters (8 slots of rank 512)" in found.reason
    assert "lower lora.max_loras or lora.max_rank" in found.advice.lower()


def test_what_an_engine_says_it_loaded_has_the_slots_in_it() -> None:
    measured = Measured(weights_mib=16_000, rest_mib=2_000)
    serving = serving_of({}, 1, CARD)
    learned = needs(BIG, LLAMA_8B, serving, measured, ONE)
    assert learned.weights_mib + learned.lora_mib == 16_000
    assert learned.lora_mib == slots_mib(LLAMA_8B, ONE)
