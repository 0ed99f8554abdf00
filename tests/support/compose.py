"""A compose project of a test's own: its name, port, key and models folder clash with no other."""

import contextlib
import json
import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
SIMULATOR_IMAGE = "hostler/engine-simulator:latest"
UP_SECONDS = 120


def docker(*words: str, seconds: float = 60) -> str:
    """The output of a docker command. Raises AssertionError with its stderr."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, f"docker {' '.join(words)}: {done.stderr}"
    return done.stdout


class ComposeProject:
    """One `compose.yaml` project; `variables` override what .env would say. No .env is read."""

    def __init__(self, models: Path, *, gpu: bool = False, **variables: str) -> None:
        self.instance = f"hostler-test-{secrets.token_hex(4)}"
        self.key = secrets.token_hex(16)
        self.port = free_port()
        self.models = models
        self._files = ["-f", "compose.yaml", *(["-f", "compose.gpu.yaml"] if gpu else [])]
        self._variables = {
            "HOSTLER_INSTANCE": self.instance,
            "HOSTLER_ADMIN_KEY": self.key,
            "HOSTLER_PORT": str(self.port),
            "HOSTLER_MODELS": str(models),
            "HOSTLER_ENGINE_IMAGE": SIMULATOR_IMAGE,
            **variables,
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def compose(self, *words: str, seconds: float = UP_SECONDS) -> str:
        """The output of a `docker compose` command in this project. Raises AssertionError with its stderr."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HOSTLER_", "DOCKER_GID"))}
        command = ["docker", "compose", "--env-file", os.devnull, *self._files, *words]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=kept | self._variables,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def config(self) -> dict[str, Any]:
        """The services as compose understands them, by name."""
        services: dict[str, Any] = json.loads(self.compose("config", "--format", "json"))["services"]
        return services

    def container(self, service: str) -> dict[str, Any]:
        """`docker inspect` of a service's container."""
        found: list[dict[str, Any]] = json.loads(docker("inspect", self.compose("ps", "-aq", service).strip()))
        return found[0]

    def workers(self) -> list[dict[str, Any]]:
        """`docker inspect` of every engine and job of this instance."""
        ids = docker("ps", "-aq", "--filter", f"label=dev.hostler.instance={self.instance}").split()
        return json.loads(docker("inspect", *ids)) if ids else []

    def logs(self) -> str:
        return self.compose("logs", "--no-color")

    def down(self) -> None:
        """Remove services, engines and volumes."""
        self.compose("stop", "--timeout", "5")
        if ids := [worker["Id"] for worker in self.workers()]:
            docker("rm", "--force", "--volumes", *ids)
        self.compose("down", "--volumes", "--timeout", "1")


@contextlib.contextmanager
def project(*, gpu: bool = False, **variables: str) -> Iterator[ComposeProject]:
    """A running project, removed at the end with all it made."""
    with tempfile.TemporaryDirectory(prefix="hostler-models-") as folder:
        models = Path(folder)
        models.chmod(0o755)  # engines and gateway are other users
        made = ComposeProject(models, gpu=gpu, **variables)
        try:
            made.compose("up", "--detach", "--no-build")
            yield made
        finally:
            made.down()
