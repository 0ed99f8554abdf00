"""How vLLM dies at its start: the last lines of its log, by kind, worded as the engine words them."""

import signal
import sys
from typing import NoReturn

EXIT_FAILED = 1
EXIT_BAD_FLAG = 2


class EngineStartError(Exception):
    """The engine cannot start; `text` is the last line of its traceback."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


TRACEBACKS = {
    "oom": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64"
        " GiB of which 1.12 GiB is free. Including non-PyTorch memory, this process has 22.50 GiB memory in use."
    ),
    "kv_cache": (
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when"
        " initializing the engine (this flag also controls CPU memory reservation on the CPU backend, despite its"
        " name). See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details."
    ),
    "kv_cache_too_small": (
        "ValueError: To serve at least one request with the models's max seq len (131072), (16.00 GiB KV cache is "
        "needed, which is larger than the available KV cache memory (3.21 GiB). Based on the available memory, the "
        "estimated maximum model length is 26288. Try increasing `gpu_memory_utilization` or decreasing "
        "`max_model_len` when initializing the engine."
    ),
    "free_memory": (
        "ValueError: Free memory on device cuda:0 (3.5/23.64 GiB) on startup is less than desired GPU memory"
        " utilization (0.92, 21.75 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
    ),
    "missing_model": (
        "OSError: Can't load the configuration of '/models/x'. If you were trying to load it from "
        "'https://huggingface.co/models', make sure you don't have a local directory with the same name. Otherwise, "
        "make sure '/models/x' is the correct path to a directory containing a config.json file"
    ),
    "unsupported_arch": (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n  Value error, Model "
        "architectures ['NoSuchModelForCausalLM'] are not supported for now. Supported architectures: "
        "dict_keys(['LlamaForCausalLM', 'Qwen3ForCausalLM']) [type=value_error, input_value=ArgsKwargs(...), "
        "input_type=ArgsKwargs]"
    ),
    "gated": (
        "OSError: You are trying to access a gated repo.\nMake sure to have access to it at "
        "https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct.\n401 Client Error. Cannot access gated repo for url "
        "https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct/resolve/main/config.json.\nAccess to model "
        "meta-llama/Llama-3.1-8B-Instruct is restricted. You must have access to it and be authenticated to access it."
    ),
    "cache_full": "torch._inductor.exc.InductorError: OSError: [Errno 28] No space left on device",
    "driver": (
        "RuntimeError: The NVIDIA driver on your system is too old (found version 12020). Please update your GPU"
        " driver by downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
    ),
    "shared_memory": (
        "RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)\nError while creating "
        "shared memory segment /dev/shm/nccl-xIg4Nh (size 9637888), error: No space left on device (28)"
    ),
    "sleep_allocator": "RuntimeError: CUDA Error: invalid argument at /workspace/csrc/cumem_allocator.cpp:119",
    "sleep_unsupported": (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n  Value error, Sleep mode"
        " is not supported on current platform. [type=value_error, input_value=ArgsKwargs(...), input_type=ArgsKwargs]"
    ),
}
"""`bad_flag` is told apart by its exit status 2, `unknown` has no words that anyone could know."""

_CORE_TRACEBACK = """\
ERROR [core.py:1207] EngineCore failed to start.
ERROR [core.py:1207] Traceback (most recent call last):
ERROR [core.py:1207]   File "vllm/v1/engine/core.py", line 1181, in run_engine_core
ERROR [core.py:1207]     engine_core = EngineCoreProc(*args, engine_index=dp_rank, **kwargs)
ERROR [core.py:1207]   File "vllm/v1/worker/gpu_worker.py", line 312, in load_model
ERROR [core.py:1207]     self.model_runner.load_model(load_dummy_weights=load_dummy_weights)
"""
_FRONT_TRACEBACK = """\
Traceback (most recent call last):
  File "/usr/local/bin/vllm", line 8, in <module>
    sys.exit(main())
  File "vllm/entrypoints/cli/serve.py", line 59, in cmd
    uvloop.run(run_server(args))
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}
"""


def crash_at_load(kind: str) -> NoReturn:
    """End the process as vLLM would for this kind of failure."""
    if kind == "bad_flag":
        sys.stderr.write(
            "usage: vllm serve [model_tag] [options]\nvllm serve: error: unrecognized arguments: --no-such\n"
        )
        raise SystemExit(EXIT_BAD_FLAG)
    if kind == "cache_full":
        hang(TRACEBACKS[kind])
    die(TRACEBACKS.get(kind, f"RuntimeError: simulated failure: {kind}"))


def hang(text: str) -> NoReturn:
    """Print the core's traceback that ends in `text`, and stay for ever: what vLLM does whose compile cache is full."""
    sys.stderr.write(core_traceback(text))
    sys.stderr.flush()
    while True:
        signal.pause()


def core_traceback(text: str) -> str:
    """What the engine's core says last."""
    return _CORE_TRACEBACK + "".join(f"ERROR [core.py:1207] {line}\n" for line in text.splitlines())


def die(text: str) -> NoReturn:
    """Print a traceback that ends in `text`, then the frontend's own, and exit with status 1."""
    sys.stderr.write(core_traceback(text) + _FRONT_TRACEBACK)
    sys.stderr.flush()
    raise SystemExit(EXIT_FAILED)
