"""vLLM's command line: every option of `vllm serve` is accepted, few have an effect."""

import argparse
from dataclasses import dataclass
from pathlib import Path

FLAGS_FILE = Path(__file__).with_name("vllm_flags.txt")
DEFAULT_GPU_MEMORY_UTILIZATION = 0.92
DEFAULT_MAX_MODEL_LEN = 8192
DEFAULT_MAX_NUM_SEQS = 256


@dataclass(frozen=True, kw_only=True)
class EngineArguments:
    """What the simulator heeds of vLLM's options; memory in bytes, times in seconds."""

    model: Path
    served_names: tuple[str, ...]
    uds: Path | None
    host: str
    port: int
    max_model_len: int
    max_num_seqs: int
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | None
    tensor_parallel_size: int
    enable_sleep_mode: bool
    enforce_eager: bool
    enable_force_include_usage: bool
    enable_prefix_caching: bool
    shutdown_timeout: float
    enable_lora: bool = False
    max_loras: int = 1
    max_lora_rank: int = 16
    max_cpu_loras: int = 1


def known_flags() -> dict[str, str]:
    """Every option by name without dashes, with what it takes: "value", "many" or "flag"."""
    lines = FLAGS_FILE.read_text().splitlines()
    return dict(line.split(maxsplit=1) for line in lines if not line.startswith("#"))


def parse(arguments: list[str]) -> EngineArguments:
    """Read `serve MODEL --flag value ...`; a flag that vLLM does not know exits with status 2."""
    parser = _parser()
    found = vars(parser.parse_args(arguments))
    model = found["model_tag"] or found["model"]
    if model is None:
        parser.error("the following arguments are required: model_tag")
    return EngineArguments(
        model=Path(model),
        served_names=tuple(found["served_model_name"] or [model]),
        uds=Path(found["uds"]) if found["uds"] else None,
        host=found["host"] or "127.0.0.1",
        port=found["port"] or 8000,
        max_model_len=found["max_model_len"] or DEFAULT_MAX_MODEL_LEN,
        max_num_seqs=found["max_num_seqs"] or DEFAULT_MAX_NUM_SEQS,
        gpu_memory_utilization=found["gpu_memory_utilization"] or DEFAULT_GPU_MEMORY_UTILIZATION,
        kv_cache_memory_bytes=found["kv_cache_memory_bytes"],
        tensor_parallel_size=found["tensor_parallel_size"] or 1,
        enable_sleep_mode=bool(found["enable_sleep_mode"]),
        enforce_eager=bool(found["enforce_eager"]),
        enable_force_include_usage=bool(found["enable_force_include_usage"]),
        enable_prefix_caching=found["enable_prefix_caching"] is not False,
        shutdown_timeout=found["shutdown_timeout"] or 0.0,
        enable_lora=bool(found["enable_lora"]),
        max_loras=found["max_loras"] or 1,
        max_lora_rank=found["max_lora_rank"] or 16,
        max_cpu_loras=found["max_cpu_loras"] or found["max_loras"] or 1,
    )


NUMBERS: dict[str, type[int] | type[float]] = {
    "port": int,
    "max-model-len": int,
    "max-num-seqs": int,
    "tensor-parallel-size": int,
    "kv-cache-memory-bytes": int,
    "gpu-memory-utilization": float,
    "shutdown-timeout": float,
    "max-loras": int,
    "max-lora-rank": int,
    "max-cpu-loras": int,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", prog="vllm serve", allow_abbrev=False)
    # vLLM's own parser reports unknown options in the name of the subcommand; plain argparse would not
    parser.error = serve.error  # type: ignore[method-assign]
    serve.add_argument("model_tag", nargs="?")
    for name, kind in known_flags().items():
        if kind == "flag":
            serve.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=None)
        elif kind == "many":
            serve.add_argument(f"--{name}", nargs="+")
        else:
            serve.add_argument(f"--{name}", type=NUMBERS.get(name, str))
    return parser
