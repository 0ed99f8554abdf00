"""vLLM's command line and environment: pure translations of a `WorkerSpec`.

Written against vLLM 0.32; every name in `engine_flags.ENGINE_FLAGS` exists there.
"""

from collections.abc import Mapping
from math import floor

from worker_manager.contract import GPU_CONTEXT_MIB, WorkerSpec
from worker_manager.engine_flags import FlagValue

STOP_MARGIN_SECONDS = 5.0
"""The engine gives up its last requests this long before it would be killed, so that it can still clean up."""
KEEP_ALIVE_SECONDS = 120
"""The engine closes idle connections later than the gateway does, so that none is closed while it is being used."""

QUIET_FLAGS = (
    "--disable-uvicorn-access-log",
    "--no-enable-log-requests",  # prompts never reach a log
    "--no-enable-log-outputs",
    "--no-enable-log-deltas",
)


def serve_arguments(
    spec: WorkerSpec,
    *,
    model_folder: str,
    socket: str,
    stop_seconds: float,
    gpu_totals_mib: Mapping[str, int],
    sleep: bool = False,
    length: int | None = None,
) -> tuple[str, ...]:
    """The words after `vllm serve`.

    `sleep`: it shall be able to (see `sleep_rules.may_start`); `length`: the context length instead of the spec's.
    `model_folder` and `socket` are paths as the engine sees them; `gpu_totals_mib` holds each GPU's memory by UUID.
    Values are joined to their flag by `=`, so that no value can pass for a flag.
    """
    words = [model_folder, f"--uds={socket}", "--served-model-name", *spec.served_names]
    words.append(f"--shutdown-timeout={max(0, floor(stop_seconds - STOP_MARGIN_SECONDS))}")
    words.extend(QUIET_FLAGS)
    words.append(
        "--enable-prompt-tokens-details"
    )  # cached tokens are metered; an endpoint's own word comes later, and wins
    if sleep:
        words.append("--enable-sleep-mode")
    if spec.lora is not None:
        words.append("--enable-lora")
        words.append(f"--max-lora-rank={spec.lora.max_rank}")
        words.append(f"--max-loras={spec.lora.max_loras}")
        words.append(f"--max-cpu-loras={spec.lora.max_cpu_loras}")
    if (longest := length or spec.max_model_len) is not None:
        words.append(f"--max-model-len={longest}")
    utilization = memory_utilization(spec, gpu_totals_mib)
    if utilization is not None:
        # also beside an exact KV cache: vLLM still checks that so much is free, and its default asks for nearly all
        words.append(f"--gpu-memory-utilization={utilization:.4f}")
    if len(spec.gpus) > 1 and not _parallel_by_choice(spec):
        words.append(f"--tensor-parallel-size={len(spec.gpus)}")
    words.extend(flag_words(name, value) for name, value in sorted(spec.args.items()))
    return tuple(words)


def memory_utilization(spec: WorkerSpec, gpu_totals_mib: Mapping[str, int]) -> float | None:
    """The part of the smallest card that vLLM may take, rounded down to 4 places; None where nothing was promised.

    It is less than the promise by what CUDA holds, which vLLM does not count (`GPU_CONTEXT_MIB`).
    """
    totals = [gpu_totals_mib[uuid] for uuid in spec.gpus if gpu_totals_mib.get(uuid)]
    if spec.gpu_memory_mib is None or not totals:
        return None
    own = max(spec.gpu_memory_mib - GPU_CONTEXT_MIB, spec.gpu_memory_mib // 2)
    return min(1.0, floor(own / min(totals) * 10_000) / 10_000)


def flag_words(name: str, value: FlagValue) -> str:
    """One engine flag as one word."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"


def environment(
    spec: WorkerSpec,
    *,
    home: str,
    cpu_kv_cache_gib: float,
    device: str,
    extra: Mapping[str, str],
    sleep: bool = False,
) -> dict[str, str]:
    """The engine's environment: caches below `home`, no hub, no telemetry; `extra` comes last and wins."""
    values = {
        "HOME": home,
        "USER": "hostler",  # without a passwd entry, getpass asks the environment
        "LOGNAME": "hostler",
        "XDG_CACHE_HOME": f"{home}/xdg",
        "XDG_CONFIG_HOME": f"{home}/config",
        "VLLM_CACHE_ROOT": f"{home}/vllm",
        "VLLM_CONFIG_ROOT": f"{home}/config/vllm",
        "TORCHINDUCTOR_CACHE_DIR": f"{home}/torchinductor",
        "TRITON_CACHE_DIR": f"{home}/triton",
        "FLASHINFER_WORKSPACE_BASE": home,
        "HF_HOME": f"{home}/huggingface",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(KEEP_ALIVE_SECONDS),
        "PYTHONUNBUFFERED": "1",
    }
    if device == "cpu":
        values["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(cpu_kv_cache_gib)))
    if sleep:
        # opens vLLM's development routes: on a socket that only gateway and manager reach, and the gateway forwards
        # none of them
        values["VLLM_SERVER_DEV_MODE"] = "1"
    if spec.lora is not None:
        # opens the routes that load and unload adapters: on the same socket, and the gateway forwards none of them
        values["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
    if len(spec.gpus) > 1:
        values["NCCL_SOCKET_IFNAME"] = "lo"  # there is no other interface, and NCCL leaves out loopback by itself
        values["GLOO_SOCKET_IFNAME"] = "lo"
    return values | dict(extra)


def _parallel_by_choice(spec: WorkerSpec) -> bool:
    """Whether the endpoint itself says how its GPUs work together."""
    return any(name in spec.args for name in ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size"))
