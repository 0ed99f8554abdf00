"""Measure the gateway: installed size, memory at rest, seconds until it answers. Prints a table and JSON.

Megabytes are 10^6 bytes; the size is the sum of all files in a fresh site-packages, bytecode included.
"""

import argparse
import contextlib
import http.client
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lib.console import ROOT, Problem, do, say

GOALS = {"site_packages_mb": 75.0, "rss_mb": 80.0, "ready_seconds": 2.0}
REST_SECONDS = 2.0
GIVE_UP_SECONDS = 30.0
MB = 1_000_000


def parse(words: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="scripts/measure", description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 where a figure misses its goal")
    parser.add_argument("--starts", type=int, default=3, metavar="N", help="starts to time; the median counts (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON there")
    return parser.parse_args(words)


def install(folder: Path) -> Path:
    """A fresh environment with the gateway's locked requirements, and nothing else; its python."""
    do([sys.executable, "-m", "venv", "--without-pip", str(folder)], "Making a virtual environment")
    python = folder / "bin" / "python"
    words = ["install", "-q", "--disable-pip-version-check", "--require-hashes", "-r", "requirements/gateway.txt"]
    do([sys.executable, "-m", "pip", "--python", str(python), *words], "Installing the gateway's requirements")
    return python


def size_mb(folder: Path) -> float:
    """Sum of the sizes of all files below a folder, MB."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / MB


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(python: Path) -> tuple[float, float]:
    """Seconds until /livez answers, and RSS at rest in MB, of one fresh gateway."""
    folder = Path(tempfile.mkdtemp(prefix="hostler-"))
    port = free_port()
    settings = {"ADMIN_KEY": secrets.token_hex(16), "PORT": str(port), "HOST": "127.0.0.1"}
    settings |= {name: str(folder / name.lower()) for name in ("DATA", "RUN", "MODELS")}
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)} | {f"HOSTLER_{k}": v for k, v in settings.items()}
    began = time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(python), "-m", "gateway"], cwd=folder, env=env, stdout=log, stderr=log)
    try:
        while not answers(port):
            if process.poll() is not None or time.monotonic() - began > GIVE_UP_SECONDS:
                raise Problem(f"the gateway did not start:\n{(folder / 'log').read_text(errors='replace')[-2000:]}")
            time.sleep(0.01)
        seconds = time.monotonic() - began
        time.sleep(REST_SECONDS)
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return seconds, int(found.group(1)) * 1024 / MB if found else float("nan")
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def answers(port: int) -> bool:
    """Whether /livez answers with success."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status < 300  # noqa: PLR2004 - any success
    except OSError:
        return False
    finally:
        connection.close()


def run(words: list[str]) -> int:
    """The whole of scripts/measure; its exit code."""
    options = parse(words)
    with tempfile.TemporaryDirectory(prefix="hostler-measure-") as folder:
        python = install(Path(folder) / "venv")
        found = {"site_packages_mb": size_mb(next((Path(folder) / "venv" / "lib").glob("python*/site-packages")))}
        start(python)  # the first start writes our own bytecode; an installed gateway has it
        starts = sorted(start(python) for _ in range(max(1, options.starts)))
    found["rss_mb"] = max(rss for _, rss in starts)
    found["ready_seconds"] = starts[len(starts) // 2][0]
    missed = [name for name, value in found.items() if not value <= GOALS[name]]
    for name, value in found.items():
        say(f"{name:<18} {value:7.2f}   goal {GOALS[name]:g}   {'MISSED' if name in missed else 'ok'}")
    text = json.dumps({name: round(value, 2) for name, value in found.items()})
    say(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="ascii")
    return 1 if options.check and missed else 0
