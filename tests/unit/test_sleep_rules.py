from typing import Any

import msgspec
import pytest

from worker_manager.contract import LoraRoom, Residency, WorkerSpec
from worker_manager.engines import sleep_rules, vllm


def spec(args: dict[str, Any] | None = None, gpus: tuple[str, ...] = ("G",)) -> WorkerSpec:
    args = args or {}
    return WorkerSpec(id="w1", endpoint="tiny", model="local/tiny", served_names=("tiny",), gpus=gpus, args=args)


def why_not(of: WorkerSpec, env: dict[str, str] | None = None, *, enabled: bool = True) -> str:
    return sleep_rules.refusal(of, env or {}, enabled=enabled)


def test_an_engine_on_a_gpu_may_sleep_and_one_on_the_cpus_may_not() -> None:
    assert why_not(spec()) == ""
    assert "CPU" in why_not(spec(gpus=()))


@pytest.mark.parametrize(
    ("of", "env", "word"),
    [
        (spec({"kv-cache-dtype": "fp8_e5m2"}), {}, "fp8_e5m2"),
        (spec({"kv-cache-dtype": "nvfp4"}), {}, "nvfp4"),
        (spec(), {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64, expandable_segments: True"}, "expandable"),
        (spec(), {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, "expandable"),
        (spec(), {"VLLM_SERVER_DEV_MODE": "0"}, "VLLM_SERVER_DEV_MODE"),
    ],
)
def test_what_is_known_to_break_is_refused_with_a_reason(of: WorkerSpec, env: dict[str, str], word: str) -> None:
    assert word in why_not(of, env)
    assert not sleep_rules.may_start(of, env, enabled=True)


def test_the_setting_switches_it_off() -> None:
    assert "HOSTLER_SLEEP" in why_not(spec(), enabled=False)


@pytest.mark.parametrize(
    "args",
    [{"speculative-config": "{}"}, {"load-format": "tensorizer"}, {"load-format": "dummy"}],
)
def test_what_level_2_does_not_bring_back_is_refused_there_only(args: dict[str, Any]) -> None:
    assert why_not(spec(args)) == ""
    assert sleep_rules.deep_refusal(spec(args))
    assert sleep_rules.deep_refusal(spec()) == ""


def test_adapters_keep_an_engine_from_level_2_only() -> None:
    room = msgspec.structs.replace(spec(), lora=LoraRoom())
    assert why_not(room) == ""
    assert "LoRA" in sleep_rules.deep_refusal(room)


@pytest.mark.parametrize(("version", "good"), [("0.32.0", True), ("0.17.0rc1", True), ("1.0.0", True)])
def test_versions_that_free_their_memory_may(version: str, *, good: bool) -> None:
    assert (sleep_rules.version_refusal(version) == "") is good


@pytest.mark.parametrize("version", ["0.16.9", "0.14.0", "0.1.dev1+gabc", "dev", ""])
def test_versions_that_do_not_or_that_nobody_knows_may_not(version: str) -> None:
    assert version in sleep_rules.version_refusal(version)


@pytest.mark.parametrize(
    ("image", "word"),
    [
        ("vllm/vllm-openai:v0.16.0", "0.16.0"),
        ("registry.example:5000/team/vllm-openai:0.14.1-cu129", "0.14.1"),
        ("vllm/vllm-openai:v0.32.0", ""),
        ("vllm/vllm-openai:v0.17.0@sha256:0123", ""),
        ("vllm/vllm-openai:latest", ""),
        ("vllm/vllm-openai@sha256:0123", ""),
        ("team/engine:v0.1.0", ""),
        ("", ""),
    ],
)
def test_a_tag_tells_the_version_before_the_engine_runs(image: str, word: str) -> None:
    why = sleep_rules.image_refusal(image)
    assert word in why
    assert bool(why) is bool(word)


@pytest.mark.parametrize(
    "line",
    [
        "  Value error, Sleep mode is not supported on current platform. [type=value_error]",
        "AssertionError: cumem allocator is not available",
        "ERROR [core.py:1207] RuntimeError: CUDA Error: invalid argument at /workspace/csrc/cumem_allocator.cpp:119",
        "AssertionError: Expandable segments are not compatible with memory pool. Please track https://github.com/...",
        "Failed: Cuda error /workspace/csrc/custom_all_reduce.cuh:455 'invalid argument'",
        "vllm serve: error: unrecognized arguments: --enable-sleep-mode",
    ],
)
def test_an_engine_that_cannot_start_with_sleep_mode_says_so(line: str) -> None:
    assert line.strip() in sleep_rules.start_refusal(["INFO it begins", line, "RuntimeError: See root cause above."])


@pytest.mark.parametrize(
    "line",
    [
        "RuntimeError: CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:62",
        "torch.OutOfMemoryError: CUDA out of memory.",
        "vllm serve: error: unrecognized arguments: --no-such",
        "",
    ],
)
def test_other_ends_are_not_blamed_on_sleep_mode(line: str) -> None:
    assert sleep_rules.start_refusal(["INFO it begins", line]) == ""


def test_every_version_has_its_words_and_level_2_reads_the_weights_before_the_cache_is_taken() -> None:
    for version in ("0.17.1", "0.32.0", "9.9", "what"):
        paths = [(call.path, call.query.get("tags")) for call in sleep_rules.dialect(version).wake[Residency.ASLEEP_2]]
        assert paths.index(("/collective_rpc", None)) < paths.index(("/wake_up", "kv_cache"))
        assert ("/wake_up", None) not in paths
        assert [call.query for call in sleep_rules.dialect(version).sleep[Residency.ASLEEP_1]] == [{"level": "1"}]


def test_an_engine_that_may_sleep_is_started_so_and_only_then_are_the_routes_opened() -> None:
    for sleep in (True, False):
        words = vllm.serve_arguments(
            spec(), model_folder="/m", socket="/s", stop_seconds=30, gpu_totals_mib={}, sleep=sleep
        )
        env = vllm.environment(spec(), home="/c", cpu_kv_cache_gib=1, device="cuda", extra={}, sleep=sleep)
        assert ("--enable-sleep-mode" in words) is sleep
        assert ("VLLM_SERVER_DEV_MODE" in env) is sleep
