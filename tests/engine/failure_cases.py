"""The ways to die: each changes one thing of a start that would succeed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from worker_manager.engine_flags import FlagValue

WEIGHTS = "model.safetensors"
PATIENCE_SECONDS = 300.0

Change = Callable[[Path], None]


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One way to die. `ends`: `itself`, `killed`, `terminated` (by us, at `kill_at`) or `hangs` (after `patience`)."""

    kind: str
    about: str
    change: Change = lambda _folder: None
    model: str = "local/chat"
    args: dict[str, FlagValue] = {}
    max_model_len: int | None = None
    words: tuple[str, ...] = ()
    """More words of the command line, for what a `WorkerSpec` refuses to say."""
    docker: tuple[str, ...] = ()
    compiles: bool = False
    """Without `enforce-eager`."""
    env: dict[str, str] = {}
    memory: str = "6g"
    inject: str = ""
    """`METHOD of CLASS of MODULE` and the error that it raises in the engine's core, as a plugin of vLLM's: for what a
    machine without a GPU can't meet. All else of the log is vLLM's own."""
    source: str = ""
    """Where an injected error's wording is from."""
    asks: bool = False
    """One request is sent once it serves."""
    ends: str = "itself"
    kill_at: str = "Starting to load model"
    patience: float = PATIENCE_SECONDS


def configured(**values: Any) -> Change:
    """Change the model's config.json; None removes a key."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return change


def without(*names: str) -> Change:
    """Remove files of the model."""

    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)

    return change


def truncated(folder: Path) -> None:
    """Half of the weights file, as after a copy that broke off."""
    path = folder / WEIGHTS
    os.truncate(path, path.stat().st_size // 2)


def garbled(folder: Path) -> None:
    """The page of an error in the place of the weights, as bad downloads leave it."""
    (folder / WEIGHTS).write_bytes(b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>\n" * 100)


def lfs_pointer(folder: Path) -> None:
    """What `git clone` without LFS leaves of a weights file."""
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4988030368\n"
    (folder / WEIGHTS).write_text(text)


def shard_missing(folder: Path) -> None:
    """An index that names two files, and one of them."""
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    with (folder / "model-00001-of-00002.safetensors").open("rb") as file:
        names = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    first = [name for name in names if name != "__metadata__"]
    where = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    where["model.layers.1.mlp.down_proj.weight"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def tensor_missing(folder: Path) -> None:
    """A weights file that lacks the second half of its tensors, whole in itself."""
    path = folder / WEIGHTS
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    kept = {name: entry for name, entry in header.items() if "layers.1." not in name}
    end = max(entry["data_offsets"][1] for name, entry in kept.items() if name != "__metadata__")
    body, offset = b"", 0
    for name, entry in kept.items():
        if name == "__metadata__":
            continue
        begin, stop = entry["data_offsets"]
        body += data[8 + size + begin : 8 + size + stop]
        entry["data_offsets"] = [offset, offset + stop - begin]
        offset += stop - begin
    assert end >= offset
    text = json.dumps(kept).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def unreadable(folder: Path) -> None:
    """Weights that their owner alone may read."""
    (folder / WEIGHTS).chmod(0o600)


def unreadable_folder(folder: Path) -> None:
    """A folder that its owner alone may enter."""
    folder.chmod(0o700)


def never_ending(folder: Path) -> None:
    """Weights that never come, as on a network disk that is gone: opening the file blocks."""
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS, 0o644)


def broken_json(name: str) -> Change:
    """A JSON file that breaks off."""

    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        (folder / name).write_text(text[: len(text) // 2])

    return change


OUT_OF_MEMORY = (
    "torch.OutOfMemoryError('CUDA out of memory. Tried to allocate {asked}. GPU 0 has a total capacity of 23.56 GiB "
    "of which {free} is free. Including non-PyTorch memory, this process has {used} memory in use. Of the allocated "
    "memory {torch} is allocated by PyTorch, and {reserved} is reserved by PyTorch but unallocated. If reserved but "
    "unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  "
    "See documentation for Memory Management  (https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)')"
)
AT_LOAD = "load_model of CPUModelRunner of vllm.v1.worker.cpu_model_runner"
AT_INIT = "init_device of CPUWorker of vllm.v1.worker.cpu_worker"
AT_RUN = "execute_model of CPUModelRunner of vllm.v1.worker.cpu_model_runner"
ISSUES = "https://github.com/vllm-project/vllm/issues"
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
EXL2 = {"quant_method": "exl2", "bits": 4.0}
REMOTE_CODE = {"AutoConfig": "configuration_strange.StrangeConfig", "AutoModelForCausalLM": "modeling_strange.Strange"}

CASES: dict[str, Case] = {
    "flag-unknown": Case(kind="bad_flag", about="a flag that vLLM does not have", words=("--no-such-flag=1",)),
    "flag-choice": Case(kind="bad_flag", about="a value that is none of a flag's choices", args={"dtype": "float99"}),
    "flag-type": Case(kind="bad_flag", about="words where a number belongs", words=("--max-num-seqs=many",)),
    "flag-range": Case(kind="bad_flag", about="a number out of its range", args={"max-num-seqs": 0}),
    "flag-json": Case(
        kind="bad_flag", about="a flag's JSON that breaks off", args={"speculative-config": '{"method": "ngram"'}
    ),
    "flag-combination": Case(
        kind="bad_flag",
        about="more tokens a batch than the context while chunked prefill is off",
        args={"max-num-batched-tokens": 64, "enable-chunked-prefill": False},
    ),
    "tool-parser-unknown": Case(
        kind="bad_flag",
        about="a tool call parser that vLLM does not have",
        args={"enable-auto-tool-choice": True, "tool-call-parser": "no-such"},
    ),
    "tool-parser-missing": Case(
        kind="bad_flag", about="tool calls without their parser", args={"enable-auto-tool-choice": True}
    ),
    "reasoning-parser-unknown": Case(
        kind="bad_flag", about="a reasoning parser that vLLM does not have", args={"reasoning-parser": "no-such"}
    ),
    "sleep-mode-on-cpu": Case(
        kind="bad_flag", about="sleep mode where the platform has none", words=("--enable-sleep-mode",)
    ),
    "length-over-model": Case(
        kind="bad_flag", about="max_model_len above what the model was made for", max_model_len=100_000
    ),
    "tensor-parallel-heads": Case(
        kind="bad_flag", about="4 attention heads on 3 workers", args={"tensor-parallel-size": 3}
    ),
    "tensor-parallel-world": Case(
        kind="bad_flag", about="more workers than the machine has places", args={"tensor-parallel-size": 4}
    ),
    "quantization-flag": Case(
        kind="model_unsupported", about="a quantization that vLLM does not have", args={"quantization": "no-such"}
    ),
    "quantization-mismatch": Case(
        kind="bad_flag",
        about="another quantization asked for than the model's",
        change=configured(quantization_config=AWQ),
        args={"quantization": "gptq"},
    ),
    "runner-mismatch": Case(
        kind="bad_flag",
        about="an embedding model asked to generate",
        model="local/embed",
        args={"runner": "generate"},
    ),
    "kv-cache-too-small": Case(
        kind="kv_cache_too_small",
        about="a context of 4 million tokens beside a KV cache of 1 GiB",
        change=configured(max_position_embeddings=4_000_000),
    ),
    "kv-cache-too-small-asked": Case(
        kind="kv_cache_too_small",
        about="the same, with max_model_len given",
        change=configured(max_position_embeddings=4_000_000),
        max_model_len=3_000_000,
    ),
    "architecture-unsupported": Case(
        kind="model_unsupported",
        about="an architecture that vLLM does not have",
        change=configured(architectures=["StrangeForCausalLM"]),
    ),
    "model-type-unknown": Case(
        kind="model_unsupported",
        about="a model type that Transformers does not know",
        change=configured(architectures=["StrangeForCausalLM"], model_type="strange"),
    ),
    "remote-code": Case(
        kind="model_unsupported",
        about="a model that brings its own code",
        change=configured(architectures=["Strange"], model_type="strange", auto_map=REMOTE_CODE),
    ),
    "quantization-unknown": Case(
        kind="model_unsupported",
        about="weights in a quantization that vLLM does not have",
        change=configured(quantization_config=EXL2),
    ),
    "quantization-on-cpu": Case(
        kind="model_unsupported",
        about="weights in a quantization that the platform lacks",
        change=configured(quantization_config=FP8),
    ),
    "config-missing": Case(kind="model_missing", about="no config.json", change=without("config.json")),
    "config-damaged": Case(kind="model_missing", about="half a config.json", change=broken_json("config.json")),
    "weights-missing": Case(kind="model_missing", about="no weights", change=without(WEIGHTS)),
    "weights-shard-missing": Case(
        kind="model_missing", about="an index that names a file which is not there", change=shard_missing
    ),
    "weights-tensor-missing": Case(
        kind="model_missing", about="a weights file that lacks a layer", change=tensor_missing
    ),
    "weights-truncated": Case(kind="model_missing", about="half a weights file", change=truncated),
    "weights-garbled": Case(kind="model_missing", about="an error page for weights", change=garbled),
    "weights-lfs-pointer": Case(kind="model_missing", about="a Git LFS pointer for weights", change=lfs_pointer),
    "weights-shape": Case(
        kind="model_missing",
        about="weights of other shapes than the config says",
        change=configured(intermediate_size=768),
    ),
    "tokenizer-missing": Case(
        kind="model_missing", about="no tokenizer", change=without("tokenizer.json", "tokenizer_config.json")
    ),
    "tokenizer-damaged": Case(
        kind="model_missing", about="half a tokenizer.json", change=broken_json("tokenizer.json")
    ),
    "weights-unreadable": Case(kind="model_missing", about="weights only root may read", change=unreadable),
    "folder-unreadable": Case(kind="model_missing", about="a folder only root may enter", change=unreadable_folder),
    "hub-offline": Case(
        kind="offline",
        about="a draft model named by its hub name, while engines have no hub",
        args={"speculative-config": '{"model": "meta-llama/Llama-3.2-1B-Instruct", "num_speculative_tokens": 3}'},
    ),
    "socket-folder-unwritable": Case(
        kind="launch_failed", about="a socket folder that the engine may not write", words=("--uds=/etc/engine.sock",)
    ),
    "socket-in-use": Case(kind="launch_failed", about="a file in the socket's place", words=("--uds=/etc/hostname",)),
    "cache-full": Case(
        kind="disk_full",
        about="a full disk below the compile cache; the engine gave up, and hung",
        compiles=True,
        ends="hangs",
        patience=180,
        docker=("--tmpfs", "/full:rw,mode=1777,size=64k"),
        env={"VLLM_CACHE_ROOT": "/full/vllm", "TORCHINDUCTOR_CACHE_DIR": "/full/inductor"},
    ),
    "shared-memory": Case(
        kind="shared_memory",
        about="64 KiB of /dev/shm",
        docker=("--shm-size=64k",),
    ),
    "shared-memory-parallel": Case(
        kind="shared_memory",
        about="two workers and 1 MiB of /dev/shm",
        docker=("--shm-size=1m",),
        args={"tensor-parallel-size": 2},
    ),
    "threads": Case(kind="launch_failed", about="too few processes and threads allowed", docker=("--pids-limit=24",)),
    "no-compiler": Case(
        kind="model_unsupported",
        about="no compiler for the kernels",
        compiles=True,
        env={"CXX": "/nowhere/g++"},
    ),
    "host-memory": Case(kind="out_of_memory_at_load", about="a container of 900 MiB", memory="900m"),
    "host-memory-core": Case(
        kind="out_of_memory_at_load", about="a container of 1300 MiB: no room for 1 GiB of KV cache", memory="1300m"
    ),
    "cuda-out-of-memory-at-load": Case(
        kind="out_of_memory_at_load",
        about="a GPU too small for the weights",
        inject=f"{AT_LOAD}: "
        + OUT_OF_MEMORY.format(
            asked="224.00 MiB", free="112.19 MiB", used="23.44 GiB", torch="23.02 GiB", reserved="13.20 MiB"
        ),
        source=f"the words of PyTorch as in {ISSUES}/16343 and {ISSUES}/28143",
    ),
    "cuda-out-of-memory-at-run": Case(
        kind="out_of_memory_at_run",
        about="a GPU that ran full while it served",
        inject=f"{AT_RUN}: "
        + OUT_OF_MEMORY.format(
            asked="50.00 MiB", free="21.75 MiB", used="23.50 GiB", torch="22.88 GiB", reserved="275.38 MiB"
        ),
        source=f"the words of PyTorch as in {ISSUES}/15039 and https://github.com/noonghunna/club-3090/issues/16",
        asks=True,
    ),
    "cuda-memory-taken": Case(
        kind="out_of_memory_at_load",
        about="another program holds the GPU's memory",
        inject=f"{AT_INIT}: ValueError('Free memory on device cuda:0 (3.51/23.56 GiB) on startup is less than desired "
        "GPU memory utilization (0.92, 21.67 GiB). Decrease GPU memory utilization or reduce GPU memory used by other "
        "processes.')",
        source="vllm/v1/worker/utils.py, request_memory, of vLLM 0.32.0",
    ),
    "driver-too-old": Case(
        kind="driver_mismatch",
        about="a driver that is older than the image's CUDA",
        inject=f"{AT_INIT}: RuntimeError('The NVIDIA driver on your system is too old (found version 12080). Please "
        "update your GPU driver by downloading and installing a new version from the URL: "
        "http://www.nvidia.com/Download/index.aspx Alternatively, go to: https://pytorch.org to install a PyTorch "
        "version that has been compiled with your version of the CUDA driver.')",
        source="the words of PyTorch as in https://github.com/modelscope/FunASR/issues/2973",
    ),
    "nccl-shared-memory": Case(
        kind="shared_memory",
        about="/dev/shm too small for GPUs that talk to each other",
        inject=f"{AT_INIT}: torch.distributed.DistBackendError('NCCL error in: /pytorch/torch/csrc/distributed/c10d/"
        "NCCLUtils.cpp:94, unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.3\\n"
        "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. \\n"
        "Last error:\\nError while creating shared memory segment /dev/shm/nccl-Ewjreo (size 33030528), error: No "
        "space left on device (28)')",
        source=f"the words of PyTorch and NCCL as in {ISSUES}/4618 and https://github.com/llm-d/llm-d/issues/352",
    ),
    "killed": Case(kind="killed", about="SIGKILL while it loads", ends="killed"),
    "terminated": Case(
        kind="killed",
        about="SIGTERM while it serves (vLLM does not listen to it while it loads)",
        ends="terminated",
        kill_at="Application startup complete",
    ),
    "load-hangs": Case(
        kind="load_timeout", about="weights that never come", change=never_ending, ends="hangs", patience=45
    ),
}
