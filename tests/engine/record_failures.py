"""Make real vLLM die in every way we know, and keep what it said: tests/data/engine_logs/NAME.log and NAME.json.

    python -m tests.engine.record_failures [NAME ...]

Each case changes one thing of a start that would succeed: a file of the model, a flag, or the container's limits. The
container is as Hostler's own (no network, read-only, another user), one at a time. What is kept are the log's lines
unaltered; a header of progress bars or a long middle may be cut, marked by a line `[... N lines cut ...]`.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec

from tests.conftest import VLLM_IMAGE
from tests.support.processes import REPOSITORY
from worker_manager.contract import FlagValue, WorkerSpec
from worker_manager.engines import vllm

NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
FOLDER = REPOSITORY / "tests" / "data" / "engine_logs"
NAME_PREFIX = "hostler-failure-log"
PATIENCE_SECONDS = 150.0
WEIGHTS = "model.safetensors"
KEPT_LINES = 300
HEAD_LINES = 20
WIDEST = 2000

Change = Callable[[Path], None]


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One way to die. `ends`: `itself`, `killed` (by us, once it loads) or `hangs` (killed after `patience`)."""

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


def broken_template(folder: Path) -> None:
    """A chat template that is no Jinja."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": "{% for m in messages %}{{ m['x' }}"}))


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
PLUGIN = """\
import importlib

import torch


def fault():
    def fail(*args, **kwargs):
        raise {error}

    setattr(importlib.import_module({module!r}).{owner}, {method!r}, fail)
"""

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
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
        about="a full disk below the compile cache",
        compiles=True,
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
    "threads": Case(kind="unknown", about="too few processes and threads allowed", docker=("--pids-limit=24",)),
    "no-compiler": Case(
        kind="unknown",
        about="no compiler for the kernels",
        compiles=True,
        env={"PATH": "/opt/venv/bin", "CXX": "/nowhere/g++"},
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
        source=f"the words of PyTorch as in {ISSUES}/15039 and {ISSUES}/26863",
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
    "terminated": Case(kind="unknown", about="SIGTERM while it loads", ends="terminated"),
    "load-hangs": Case(
        kind="load_timeout", about="weights that never come", change=never_ending, ends="hangs", patience=45
    ),
}


def plugin(case: Case, folder: Path) -> tuple[str, ...]:
    """What to add to Python's path so that an injected error comes into the engine."""
    if not case.inject:
        return ()
    place, _, error = case.inject.partition(": ")
    method, owner, module = place.split(" of ")
    folder.mkdir()
    (folder / "fault.py").write_text(PLUGIN.format(error=error, module=module, owner=owner, method=method))
    info = folder / "fault-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fault\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vllm.general_plugins]\nfault = fault:fault\n")
    return (f"/plugins/{folder.name}",)


@contextlib.contextmanager
def workshop() -> Iterator[Path]:
    """A folder with the demo models, a socket folder and a compile cache that all cases share."""
    with tempfile.TemporaryDirectory(prefix="hostler-failures-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for model, kind in (("chat", "llama"), ("embed", "embedding")):
            script = str(REPOSITORY / "scripts" / "make_demo_model")
            target = str(folder / "models" / "local" / model)
            subprocess.run(
                [sys.executable, script, "--kind", kind, target], check=True, capture_output=True, timeout=120
            )
        for shared in ("engines", "cache", "orders", "plugins"):
            (folder / shared).mkdir()
            (folder / shared).chmod(0o777)
        yield folder


def words_of(case: Case) -> tuple[str, ...]:
    """What stands after `vllm serve`."""
    words = vllm.serve_arguments(
        spec_of(case),
        model_folder=f"/models/{case.model}",
        socket="/engine/engine.sock",
        stop_seconds=10,
        gpu_totals_mib={},
    )
    return (*words, *case.words)


def spec_of(case: Case) -> WorkerSpec:
    """The worker that the case is about."""
    args = case.args if case.compiles else {"enforce-eager": True} | case.args
    return WorkerSpec(
        id="w", endpoint="e", model=case.model, served_names=("e",), args=args, max_model_len=case.max_model_len
    )


def environment_of(case: Case) -> dict[str, str]:
    """As Hostler sets it."""
    return vllm.environment(spec_of(case), home="/cache", cpu_kv_cache_gib=1, device="cpu", extra=case.env)


def container(case: Case, folder: Path, name: str) -> list[str]:
    """The words of `docker run` before the image."""
    shared = () if any("shm-size" in word for word in case.docker) else ("--shm-size=1g",)
    binds = {"engines": "/engine", "cache": "/cache", "orders": "/orders", "plugins": "/plugins"}
    return [
        *("run", "--detach", "--name", name, "--network=none", "--read-only", "--cap-drop=ALL", "--init"),
        *("--user=10001:10001", "--cpus=2", f"--memory={case.memory}", f"--memory-swap={case.memory}", *shared),
        *("--tmpfs", "/tmp:rw,exec,mode=1777", "--security-opt=no-new-privileges:true", "--workdir=/tmp"),
        *(word for source, inside in binds.items() for word in ("--volume", f"{folder}/{source}:{inside}")),
        *("--volume", f"{Path(__file__).with_name('preloaded_vllm.py')}:/preloaded_vllm.py:ro"),
        *(word for key, value in sorted(environment_of(case).items()) for word in ("--env", f"{key}={value}")),
        *case.docker,
    ]


def docker(*words: str) -> str:
    """A `docker` command's output, both streams together."""
    done = subprocess.run(["docker", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=60)
    return done.stdout.decode(errors="replace")


def state(name: str) -> dict[str, Any]:
    """`State` of `docker inspect`."""
    found: dict[str, Any] = json.loads(docker("inspect", name))[0]["State"]
    return found


def play(case: Case, name: str, socket: Path) -> None:
    """Wait until the engine is dead, by itself or by us."""
    deadline = time.monotonic() + case.patience
    while time.monotonic() < deadline:
        if not state(name)["Running"]:
            return
        if case.ends in ("killed", "terminated") and case.kill_at in docker("logs", name):
            docker("kill", *(("--signal=TERM",) if case.ends == "terminated" else ()), name)
            case = msgspec.structs.replace(case, ends="itself")
        if case.ends == "itself" and socket.exists() and "Application startup complete" in docker("logs", name):
            break
        time.sleep(0.5)
    docker("kill", name)


def ask(socket: Path) -> None:
    """One request, whatever comes of it; then the engine has its time to die."""
    body = {"model": "e", "prompt": "a", "max_tokens": 1}
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=30) as client:
        with contextlib.suppress(httpx.HTTPError):
            client.post("http://engine/v1/completions", json=body)
        with contextlib.suppress(httpx.HTTPError):
            client.get("http://engine/health")
    time.sleep(10)


def trimmed(text: str) -> list[str]:
    """The log without its long middle: the first lines, then the last."""
    lines = text.replace("\r\n", "\n").split("\n")
    lines = [line.rsplit("\r", 1)[-1] for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    if len(lines) > KEPT_LINES:
        cut = len(lines) - KEPT_LINES
        lines = [*lines[:HEAD_LINES], f"[... {cut} lines cut ...]", *lines[HEAD_LINES + cut :]]
    return lines


def alone(name: str, case: Case, folder: Path) -> tuple[str, int | None, bool]:
    """One start in a container of its own: its log, exit code, and whether the kernel ended it for want of memory."""
    unit = f"{NAME_PREFIX}-{name}"
    model = ("--volume", f"{folder}/models/{case.model}:/models/{case.model}:ro")
    docker(*container(case, folder, unit), *model, VLLM_IMAGE, *words_of(case))
    try:
        play(case, unit, folder / "engines" / "engine.sock")
        end = state(unit)
        return docker("logs", unit), None if case.ends == "hangs" else end["ExitCode"], end["OOMKilled"]
    finally:
        docker("rm", "--force", unit)


def together(name: str, case: Case, folder: Path) -> tuple[str, int | None, bool]:
    """One start in the container that has imported vLLM already."""
    orders, socket = folder / "orders", folder / "engines" / "engine.sock"
    path = plugin(case, folder / "plugins" / name)
    order = {"words": words_of(case), "env": case.env, "path": path, "seconds": case.patience}
    (orders / f"{name}.new").write_text(json.dumps(order))
    (orders / f"{name}.new").rename(orders / f"{name}.json")
    asks = case.asks
    log, end = orders / f"{name}.log", orders / f"{name}.exit"
    while not end.exists():
        if log.exists() and "Application startup complete" in log.read_text(errors="replace"):
            if asks:
                ask(socket)
            asks = False
            (orders / f"{name}.enough").touch()
        time.sleep(0.2)
    return log.read_text(errors="replace"), json.loads(end.read_text()), False


@contextlib.contextmanager
def preloaded(folder: Path) -> Iterator[None]:
    """A container that has imported vLLM and takes orders in the folder `orders`."""
    unit = f"{NAME_PREFIX}s"
    plain = Case(kind="", about="")
    models = ("--volume", f"{folder}/models/local:/models/local:ro")
    entry = ("--entrypoint", "python")
    docker(*container(plain, folder, unit), *models, *entry, VLLM_IMAGE, "/preloaded_vllm.py", "/orders")
    try:
        while not (folder / "orders" / "ready").exists():
            if not state(unit)["Running"]:
                raise RuntimeError(docker("logs", unit))
            time.sleep(0.5)
        yield
    finally:
        docker("rm", "--force", unit)


def record(name: str, case: Case, folder: Path) -> None:
    """One case, from its files to its log."""
    begun = time.monotonic()
    model = folder / "models" / case.model
    with tempfile.TemporaryDirectory(dir=folder) as kept:
        shutil.copytree(model, Path(kept) / "model")
        case.change(model)
        (folder / "engines" / "engine.sock").unlink(missing_ok=True)
        start = alone if is_alone(case) else together
        log, exit_code, out_of_memory = start(name, case, folder)
        shutil.rmtree(model)
        shutil.copytree(Path(kept) / "model", model)
        model.chmod(0o755)
    note = {
        "kind": case.kind,
        "about": case.about,
        "engine": "vLLM 0.32.0 on the CPU",
        "command": " ".join(["vllm", "serve", *words_of(case)]),
        "container": " ".join([*case.docker, *([f"--memory={case.memory}"] if is_alone(case) else [])]),
        "environment": case.env,
        "exit_code": exit_code,
        "out_of_memory": out_of_memory,
        "was_ready": case.asks,
    }
    if case.inject:
        note |= {"injected": case.inject, "wording": case.source}
    note_file = FOLDER / f"{name}.json"
    # what is expected of the diagnosis is written by hand
    old = json.loads(note_file.read_text()) if note_file.exists() else {}
    note |= {key: old.get(key, "") for key in ("cause", "hint")}
    lines = trimmed(log)
    (FOLDER / f"{name}.log").write_text("\n".join(lines) + "\n")
    note_file.write_text(json.dumps(note, indent=2) + "\n")
    sys.stdout.write(f"{name} {time.monotonic() - begun:.0f} s, exit code {exit_code}, {len(lines)} lines\n")
    sys.stdout.flush()


def is_alone(case: Case) -> bool:
    """Whether the case needs a container of its own."""
    return bool(case.docker) or case.ends != "itself" or case.memory != Case(kind="", about="").memory


def main() -> None:
    """Record the named cases, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which (all)")
    names = parser.parse_args().names or list(CASES)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with workshop() as folder, preloaded(folder) if not all(is_alone(CASES[name]) for name in names) else NOTHING:
        for name in names:
            record(name, CASES[name], folder)


if __name__ == "__main__":
    main()
