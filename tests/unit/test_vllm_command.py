from typing import Any

import msgspec
import pytest

from worker_manager.contract import WorkerSpec
from worker_manager.engines import vllm


def spec(**change: Any) -> WorkerSpec:
    base = WorkerSpec(id="w1", endpoint="tiny", model="local/tiny", served_names=("tiny", "alias"))
    return msgspec.structs.replace(base, **change)


def words(of: WorkerSpec, stop_seconds: float = 30, **totals: int) -> tuple[str, ...]:
    return vllm.serve_arguments(
        of,
        model_folder="/models/local/tiny",
        socket="/run/engine/engine.sock",
        stop_seconds=stop_seconds,
        gpu_totals_mib=totals,
    )


def test_the_command_names_model_socket_and_every_served_name() -> None:
    made = words(spec())
    assert made[:2] == ("/models/local/tiny", "--uds=/run/engine/engine.sock")
    at = made.index("--served-model-name")
    assert made[at + 1 : at + 3] == ("tiny", "alias")
    assert made[at + 3].startswith("--")


def test_requests_are_never_logged() -> None:
    assert {"--disable-uvicorn-access-log", "--no-enable-log-requests", "--no-enable-log-outputs"} <= set(words(spec()))


def test_cached_tokens_are_told_unless_the_endpoint_says_otherwise() -> None:
    flag = "--enable-prompt-tokens-details"
    assert flag in words(spec())
    refused = words(spec(args={"enable-prompt-tokens-details": False}))
    assert refused.index(flag) < refused.index("--no-enable-prompt-tokens-details")


def test_the_engine_gives_up_its_requests_before_it_would_be_killed() -> None:
    assert "--shutdown-timeout=25" in words(spec(), stop_seconds=30)
    assert "--shutdown-timeout=0" in words(spec(), stop_seconds=3)


def test_the_promise_becomes_a_part_of_the_card_rounded_down() -> None:
    made = words(spec(gpus=("G",), gpu_memory_mib=10_000), G=30_000)
    assert "--gpu-memory-utilization=0.3162" in made, "CUDA's own part is not vLLM's to take"


def test_without_a_promise_the_engine_is_not_told_a_part() -> None:
    assert not any("utilization" in word for word in words(spec(gpus=("G",)), G=30_000))


def test_beside_an_exact_kv_cache_the_engine_is_told_its_part_too_or_it_would_want_nearly_all_to_be_free() -> None:
    exact = words(spec(gpus=("G",), gpu_memory_mib=10_000, args={"kv-cache-memory-bytes": 1 << 30}), G=30_000)
    assert {"--gpu-memory-utilization=0.3162", "--kv-cache-memory-bytes=1073741824"} <= set(exact)


def test_several_gpus_share_the_tensors_unless_the_endpoint_says_otherwise() -> None:
    assert "--tensor-parallel-size=2" in words(spec(gpus=("A", "B")), A=1, B=1)
    chosen = words(spec(gpus=("A", "B"), args={"pipeline-parallel-size": 2}), A=1, B=1)
    assert not any(word.startswith("--tensor") for word in chosen)


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("enforce-eager", True, "--enforce-eager"),
        ("enable-prefix-caching", False, "--no-enable-prefix-caching"),
        ("max-num-seqs", 8, "--max-num-seqs=8"),
        ("dtype", "--port", "--dtype=--port"),
    ],
)
def test_a_flag_is_one_word(name: str, value: Any, word: str) -> None:
    assert word in words(spec(args={name: value}))


def test_a_cpu_engine_is_told_its_kv_cache_and_several_gpus_their_interface() -> None:
    cpu = vllm.environment(spec(), home="/cache", cpu_kv_cache_gib=1, device="cpu", extra={})
    assert cpu["VLLM_CPU_KVCACHE_SPACE"] == "1"
    two = vllm.environment(spec(gpus=("A", "B")), home="/cache", cpu_kv_cache_gib=1, device="cuda", extra={})
    assert two["NCCL_SOCKET_IFNAME"] == "lo"
    assert "VLLM_CPU_KVCACHE_SPACE" not in two


def test_the_operators_variables_win() -> None:
    env = vllm.environment(spec(), home="/cache", cpu_kv_cache_gib=1, device="cpu", extra={"HOME": "/else"})
    assert env["HOME"] == "/else"
