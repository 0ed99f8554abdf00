"""Make real vLLM die in every way we know, and keep what it said: tests/data/engine_logs/NAME.log and NAME.json.

    python -m tests.engine.record_failures [NAME ...]

Needs Docker and the image of vLLM on CPUs. The containers are as Hostler's own: no network, read-only, another user.
One container that has imported vLLM already serves every case that needs no limits of its own, which saves a minute
each; the only thing in its logs that a plain start would not say is the outermost file in tracebacks.

What is kept are the log's lines unaltered, of progress bars the last state; a long middle is cut, marked by a line
`[... N lines cut ...]`. The keys
`cause` and `hint` of a NAME.json, what the diagnosis should say, are written by hand and stay as they are.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec

from tests.conftest import VLLM_IMAGE
from tests.engine.failure_cases import CASES, Case
from tests.support.processes import REPOSITORY
from worker_manager.contract import WorkerSpec
from worker_manager.engines import vllm

NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
FOLDER = REPOSITORY / "tests" / "data" / "engine_logs"
NAME_PREFIX = "hostler-failure-log"
KEPT_LINES = 300
HEAD_LINES = 20
PLUGIN = """\
import importlib

import torch


def fault():
    def fail(*args, **kwargs):
        raise {error}

    setattr(importlib.import_module({module!r}).{owner}, {method!r}, fail)
"""


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
            case = msgspec.structs.replace(case, ends="dying")
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
