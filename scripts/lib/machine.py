"""What this machine can do: Docker with GPUs, Docker with the CPU image, or plain processes."""

import json
import os
import shutil
import stat
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lib.console import answer

DEFAULT_SOCKET = "/var/run/docker.sock"
COMPOSE_AT_LEAST = (2, 20)


class Mode(StrEnum):
    """How Hostler runs on a machine."""

    DOCKER_GPU = "Docker with NVIDIA GPUs"
    DOCKER_CPU = "Docker, engines on the CPU"
    PROCESS_GPU = "no Docker: plain processes, engines on NVIDIA GPUs"
    PROCESS_CPU = "no Docker: plain processes, engines on the CPU"

    @property
    def docker(self) -> bool:
        """Whether containers are used."""
        return self in {Mode.DOCKER_GPU, Mode.DOCKER_CPU}

    @property
    def gpu(self) -> bool:
        """Whether engines get GPUs."""
        return self in {Mode.DOCKER_GPU, Mode.PROCESS_GPU}


@dataclass(frozen=True)
class Choice:
    """The mode, and why none better."""

    mode: Mode
    reasons: tuple[str, ...]


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs that the driver shows, one a card."""
    listed = answer(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    return [line.strip() for line in (listed or "").splitlines() if line.strip()]


def docker_trouble() -> str | None:
    """Why Docker can't be used here, in a sentence; None if it can."""
    if not shutil.which("docker"):
        return "Docker is not installed"
    # `docker version` fails where the daemon does not answer; `docker info` exits 0 with some clients
    if answer(["docker", "version", "--format", "{{.Server.Version}}"]) is None:
        socket = Path(docker_socket())
        if socket.exists() and not os.access(socket, os.R_OK | os.W_OK):
            return f"you may not use Docker's socket {socket} (join the group docker, or use sudo)"
        return "Docker is installed but its daemon does not answer (is it running?)"
    found = answer(["docker", "compose", "version", "--short"])
    if found is None:
        return "Docker Compose v2 is missing (the plugin `docker compose`)"
    numbers = tuple(int(part) for part in found.lstrip("v").split("-")[0].split(".")[:2] if part.isdigit())
    if numbers < COMPOSE_AT_LEAST:
        return f"Docker Compose {found} is too old: {'.'.join(map(str, COMPOSE_AT_LEAST))} or newer is needed"
    return None


def docker_gives_gpus() -> bool:
    """Whether Docker can hand GPUs to containers: NVIDIA's container toolkit is in place."""
    runtimes = answer(["docker", "info", "--format", "{{json .Runtimes}}"]) or "{}"
    try:
        if "nvidia" in json.loads(runtimes):
            return True
    except ValueError:
        pass
    return any(shutil.which(tool) for tool in ("nvidia-container-runtime-hook", "nvidia-container-runtime"))


def docker_socket() -> str:
    """The Docker daemon's socket on this machine, as a path."""
    host = os.environ.get("DOCKER_HOST") or answer(
        ["docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"]
    )
    return host.removeprefix("unix://") if host and host.startswith("unix://") else DEFAULT_SOCKET


def socket_group() -> int | None:
    """The group that may use Docker's socket; None where only its owner may, or the daemon runs rootless.

    A rootless daemon's socket belongs to its user, who is uid 0 inside its containers: no group is needed there.
    """
    try:
        facts = Path(docker_socket()).stat()
    except OSError:
        return None
    both = stat.S_IRGRP | stat.S_IWGRP
    return facts.st_gid if facts.st_uid == 0 and facts.st_mode & both == both else None


def choose(*, no_docker: bool = False, cpu: bool = False) -> Choice:
    """The best way for Hostler to run here, within what the user forced."""
    reasons: list[str] = []
    cards = [] if cpu else gpus()
    if cpu:
        reasons.append("--cpu was given")
    elif not cards:
        reasons.append("no NVIDIA GPU: nvidia-smi shows none")
    trouble = "--no-docker was given" if no_docker else docker_trouble()
    if trouble:
        reasons.append(trouble)
        return Choice(Mode.PROCESS_GPU if cards else Mode.PROCESS_CPU, tuple(reasons))
    if cards and not docker_gives_gpus():
        reasons.append(
            f"Docker cannot hand out the {len(cards)} GPU(s) here: install nvidia-container-toolkit (docs/operate.md)"
        )
        return Choice(Mode.DOCKER_CPU, tuple(reasons))
    return Choice(Mode.DOCKER_GPU if cards else Mode.DOCKER_CPU, tuple(reasons))
