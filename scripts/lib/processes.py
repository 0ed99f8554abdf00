"""Hostler without Docker: the two processes, detached, with log and pid files in the run folder."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from lib import dotenv, venv
from lib.console import ROOT, Problem, say

MODULES = {"worker_manager": "worker_manager", "gateway": "gateway"}
"""In the order of their start: the gateway's first look for the manager then finds it."""
LOG_LIMIT_BYTES = 10_000_000
WORKER_STOP_SECONDS = 10


def run_folder() -> Path:
    """The folder of sockets, logs and pid files."""
    return (ROOT / (dotenv.settings().get("HOSTLER_RUN") or "run")).absolute()


def log_file(name: str) -> Path:
    """Where a process writes."""
    return run_folder() / "logs" / f"{name}.log"


def environment(*, gpu: bool) -> dict[str, str]:
    """What both processes get: .env, the shell's variables, and the launcher."""
    env = dotenv.settings()
    env["HOSTLER_LAUNCHER"] = "process"
    if not env.get("HOSTLER_DEVICE"):
        env["HOSTLER_DEVICE"] = "cuda" if gpu else "cpu"
    if command := venv.vllm_command():
        env["HOSTLER_VLLM_COMMAND"] = command
    env["PYTHONUNBUFFERED"] = "1"
    return env


def start(python: Path, *, gpu: bool) -> None:
    """Start what does not run yet."""
    (run_folder() / "logs").mkdir(parents=True, exist_ok=True)
    env = environment(gpu=gpu)
    for name, module in MODULES.items():
        if pid := alive(name):
            say(f"   {name} runs already (pid {pid})")
            continue
        log = log_file(name)
        if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
            log.replace(log.with_suffix(".log.1"))
        mine = env if name == "gateway" else {k: v for k, v in env.items() if k != dotenv.KEY}
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [str(python), "-m", module],
                cwd=ROOT,
                env=mine,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        _pid_file(name).write_text(f"{process.pid} {_started(process.pid)}\n", encoding="ascii")
        say(f"   {name}: pid {process.pid}, log {log}")


def alive(name: str) -> int | None:
    """The pid of a process that `start` started and that still runs."""
    try:
        pid, _, started = _pid_file(name).read_text(encoding="ascii").strip().partition(" ")
    except FileNotFoundError:
        return None
    # a pid is given out again some day: its start time tells whether it still is ours
    return int(pid) if started and _started(int(pid)) == started else None


def any_alive() -> bool:
    """Whether any of the two processes runs."""
    return any(alive(name) for name in MODULES)


def anything_left() -> bool:
    """Whether there is anything to stop: one of the two processes, or a unit that outlived them."""
    return any_alive() or any((run_folder() / "units").glob("*.json"))


def trouble() -> str | None:
    """Which process ended while it should run."""
    ended = [name for name in MODULES if not alive(name)]
    return f"{' and '.join(ended)} ended right after the start" if ended else None


def tail(lines: int = 15) -> str:
    """The last lines of both logs."""
    parts = []
    for name in MODULES:
        with contextlib.suppress(FileNotFoundError):
            text = log_file(name).read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
            parts.append(f"   --- {log_file(name)}\n" + "\n".join(f"   {line}" for line in text))
    return "\n".join(parts)


def stop(name: str, seconds: float) -> bool:
    """End a process: SIGTERM, then SIGKILL after `seconds`. False if it did not run."""
    pid = alive(name)
    if pid is None:
        _pid_file(name).unlink(missing_ok=True)
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while alive(name):
        if time.monotonic() > deadline:
            say(f"   {name} did not stop within {seconds:.0f} s; it is killed")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            deadline += 5
        time.sleep(0.05)
    _pid_file(name).unlink(missing_ok=True)
    return True


def stop_workers() -> None:
    """Stop every engine and job of this instance that the process launcher started."""
    python = venv.python()
    if not python.exists():
        return
    # the gateway is gone by now, so there is no request left that an engine might finish
    env = environment(gpu=False) | {"HOSTLER_STOP_SECONDS": str(WORKER_STOP_SECONDS)}
    command = [str(python), "-m", "worker_manager", "stop-workers"]
    seconds = WORKER_STOP_SECONDS + 30
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, timeout=seconds, check=False, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        raise Problem(f"the engines did not stop within {seconds:.0f} s; see {run_folder() / 'logs'}") from None
    if done.returncode != 0:
        raise Problem(f"the engines could not be stopped: {(done.stderr or done.stdout).strip()[-500:]}")


def _pid_file(name: str) -> Path:
    return run_folder() / f"{name}.pid"


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty where it has ended (or is a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] == "Z" else fields[19]
