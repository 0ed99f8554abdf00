"""What vLLM's log of a start says of its memory."""

from worker_manager.contract import Gpu, GpuUse, MeasuredMemory
from worker_manager.engines.start_log import measured
from worker_manager.measuring import used_mib

# lines of a public log (LMCache/LMCache#3430, one GPU), with vLLM's own words for the load and the graphs around them
PREFIX = "(EngineCore pid=4108) INFO 05-28 08:00:26 "
CUDA = (
    f"{PREFIX}[core.py:107] Initializing a V1 LLM engine (v0.21.0) with config: model='/models/x'",
    f"{PREFIX}[gpu_model_runner.py:5150] Model loading took 15.27 GiB memory and 9.1 seconds",
    f"{PREFIX}[gpu_model_runner.py:6142] Estimated CUDA graph memory: 0.52 GiB total",
    f"{PREFIX}[gpu_worker.py:462] Available KV cache memory: 6.37 GiB",
    f"{PREFIX}[kv_cache_utils.py:1710] GPU KV cache size: 46,368 tokens",
    f"{PREFIX}[kv_cache_utils.py:1711] Maximum concurrency for 16,384 tokens per request: 2.83x",
    f"{PREFIX}[gpu_model_runner.py:6582] Graph capturing finished in 12 secs, took 0.48 GiB",
)


def test_a_start_on_one_gpu_tells_weights_cache_tokens_length_and_graphs() -> None:
    assert measured(CUDA, "sha256:abc") == MeasuredMemory(
        engine="sha256:abc",
        weights_mib=15637,
        kv_cache_mib=6523,
        kv_cache_tokens=46_368,
        max_model_len=16_384,
        graphs_mib=492,
    )


def test_without_a_digest_the_engine_is_the_version_it_names() -> None:
    found = measured(CUDA)
    assert found is not None
    assert found.engine == "vllm 0.21.0"


def test_of_several_gpus_the_largest_weights_and_the_smallest_cache_hold() -> None:
    found = measured(
        [
            "(Worker_TP0) INFO [gpu_model_runner.py:1] Model loading took 14.2474 GiB and 558.868858 seconds",
            "(Worker_TP1) INFO [gpu_model_runner.py:1] Model loading took 14.2500 GiB and 559.045517 seconds",
            "(Worker_TP0) INFO [gpu_worker.py:1] Available KV cache memory: 52.36 GiB",
            "(Worker_TP1) INFO [gpu_worker.py:1] Available KV cache memory: 52.30 GiB",
        ]
    )
    assert found is not None
    assert (found.weights_mib, found.kv_cache_mib) == (14592, 53556)


# as the real vLLM 0.32 printed them on CPUs; there it says nothing of the weights
CPU = (
    "(EngineCore pid=26) INFO 11-23 16:03:18 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model=",
    "(Worker pid=39) INFO 11-23 16:04:32 [base_loader.py:82] Initializing model took 0.942323 seconds",
    "(Worker pid=39) INFO 11-23 16:04:32 [default_loader.py:501] Loading weights took 0.03 seconds",
    "(Worker pid=39) INFO 11-23 16:04:38 [cpu_worker.py:260] Explicitly set (1.0/12.09) GiB for KV cache on node 0.",
    "INFO [kv_cache_utils.py:1] CPU KV cache size: 1,048,576 tokens, Maximum concurrency for 4,096 tokens per request",
)


def test_an_engine_on_the_cpus_tells_its_cache_and_not_its_weights() -> None:
    assert measured(CPU) == MeasuredMemory(
        engine="vllm 0.32.0", kv_cache_mib=1024, kv_cache_tokens=1_048_576, max_model_len=4_096
    )


def test_an_engine_that_was_told_its_cache_is_read_too() -> None:
    """As vLLM 0.32 prints it (v1/worker/gpu_worker)."""
    loading = "INFO [gpu_model_runner.py:5150] Model loading took 0.01 GiB memory and 0.2 seconds"
    exact = measured(
        [loading, "INFO Initial free memory 78.1 GiB, reserved 4.0 GiB memory for KV Cache as specified by"]
    )
    assert exact is not None
    assert exact.kv_cache_mib == 4096


def test_only_the_last_start_of_a_log_counts_and_one_cut_short_tells_nothing() -> None:
    again = (*CUDA, CUDA[0], CUDA[1].replace("15.27", "16.00"))
    found = measured(again)
    assert found is not None
    assert (found.weights_mib, found.kv_cache_mib) == (16_384, None)
    assert measured((*CUDA, CUDA[0])) is None
    assert measured([]) is None
    assert measured(["Model loading took ... GiB"]) is None


def test_the_use_of_a_worker_is_that_on_its_fullest_card() -> None:
    def gpu(uuid: str, *users: GpuUse) -> Gpu:
        return Gpu(index=0, uuid=uuid, name="card", memory_total_mib=1, memory_used_mib=1, users=users)

    mine, other = GpuUse(pid=1, memory_mib=700, worker="w"), GpuUse(pid=2, memory_mib=9_000, worker="x")
    two = GpuUse(pid=3, memory_mib=50, worker="w")
    assert used_mib("w", (gpu("A", mine, two, other), gpu("B", two))) == 750
    assert used_mib("w", (gpu("A", other),)) is None
