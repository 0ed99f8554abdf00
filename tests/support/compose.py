"""A compose project of a test's own: its name, port, key, models folder and images clash with no other."""

import contextlib
import functools
import hashlib
import json
import os
import secrets
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.support.hostler import Hostler
from tests.support.processes import free_port
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
SIMULATOR_IMAGE = "hostler/engine-simulator:latest"
TAG = f"test-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]}"
"""Of this checkout's images of gateway and manager: another checkout's tests use others."""
BUILD_SECONDS = 600
UP_SECONDS = 120
READY_SECONDS = 60
FAULT_WORDS = (
    "Conflict",
    "already in use",
    "action_failed",
    "pass_failed",
    "Traceback",
    "planning failed",
    "watching failed",
)
"""What stands in a log where containers got in each other's way, or a loop met a bug."""


def docker(*words: str, seconds: float = 60, stdin: str | None = None) -> str:
    """The output of a docker command. Raises AssertionError with its stderr."""
    done = subprocess.run(["docker", *words], input=stdin, capture_output=True, text=True, timeout=seconds, check=False)
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
        self.variables = {
            "HOSTLER_INSTANCE": self.instance,
            "HOSTLER_ADMIN_KEY": self.key,
            "HOSTLER_PORT": str(self.port),
            "HOSTLER_MODELS": str(models),
            "HOSTLER_ENGINE_IMAGE": SIMULATOR_IMAGE,
            "HOSTLER_TAG": TAG,
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
            env=kept | self.variables,
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
        # what is removed between the two commands is left out, and makes the second fail
        done = subprocess.run(["docker", "inspect", *ids], capture_output=True, text=True, timeout=60, check=False)
        found: list[dict[str, Any]] = json.loads(done.stdout or "[]") if ids else []
        return found

    def engines(self) -> dict[str, dict[str, Any]]:
        """`docker inspect` of every engine that was not removed, by worker id."""
        return {
            found["Config"]["Labels"]["dev.hostler.id"]: found
            for found in self.workers()
            if found["Config"]["Labels"]["dev.hostler.kind"] == "worker"
        }

    def kill(self, service: str) -> None:
        """SIGKILL to a service; Docker does not bring back what was killed through it."""
        docker("kill", "--signal", "KILL", self.container(service)["Id"])

    def bring_back(self, service: str) -> None:
        """Start the killed container of a service again."""
        docker("start", self.container(service)["Id"])

    def crash(self, service: str, module: str) -> None:
        """`kill -9` of a service's own process, from inside; Docker brings the service back by itself."""
        code = (
            "import os, pathlib\n"
            "for entry in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
            "    words = entry.read_bytes().split(b'\\0')\n"
            f"    if words[1:3] == [b'-m', b'{module}'] and entry.parent.name != '1':\n"
            "        os.kill(int(entry.parent.name), 9)\n"
        )
        before = self.container(service)["State"]["StartedAt"]
        command = ["docker", "exec", self.container(service)["Id"], "python", "-c", code]
        # the exec ends with the container it runs in, whatever its status is
        subprocess.run(command, capture_output=True, timeout=UP_SECONDS, check=False)
        wait_until(
            lambda: self.container(service)["State"]["StartedAt"] != before,
            f"{service} restarted",
            seconds=READY_SECONDS,
            interval=0.05,
        )

    def logs(self, *services: str) -> str:
        return self.compose("logs", "--no-color", *services)

    def faults(self) -> list[str]:
        """Log lines of both services that tell of a conflict or a bug."""
        return [line for line in self.logs().splitlines() if any(word in line for word in FAULT_WORDS)]

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
        build_images()
        made = ComposeProject(models, gpu=gpu, **variables)
        try:
            made.compose("up", "--detach", "--no-build")
            yield made
        finally:
            made.down()


@functools.cache
def build_images() -> None:
    """The images of gateway and manager, from this checkout as it is; once a session."""
    with tempfile.TemporaryDirectory() as folder:
        ComposeProject(Path(folder)).compose("build", "--quiet", seconds=BUILD_SECONDS)


class ComposeStack(Hostler):
    """A Hostler out of compose files, and its containers."""

    def __init__(self, found: ComposeProject, trust: ssl.SSLContext | None = None) -> None:
        address = found.url if trust is None else found.url.replace("http:", "https:")
        super().__init__(address, found.key, found.models, seconds=UP_SECONDS, trust=trust)
        self.project = found

    def is_up(self) -> bool:
        """Whether it can be reached and is ready."""
        try:
            return self.is_ready()
        except httpx.TransportError:
            return False

    def wait_ready(self) -> None:
        """Wait for `/readyz`; what the services logged is in the error."""
        try:
            wait_until(self.is_up, "readiness", seconds=READY_SECONDS, interval=0.05)
        except AssertionError as missed:
            raise AssertionError(f"{missed}\n{self.project.logs()}") from missed

    def containers_agree(self) -> bool:
        """Whether the containers are exactly the workers that the manager reports: no orphan, none missing."""
        return {worker["spec"]["id"] for worker in self.workers()} == set(self.project.engines())

    def wait_for_agreement(self, seconds: float = 20) -> None:
        """Wait until there is neither an orphan nor a missing container."""
        wait_until(self.containers_agree, "containers and workers agree", seconds=seconds, interval=0.1)


@contextlib.contextmanager
def compose_stack(
    trust: ssl.SSLContext | None = None, /, *, gpu: bool = False, **variables: str
) -> Iterator[ComposeStack]:
    """A compose project that is ready, with clients for it; with `trust` they speak TLS."""
    with project(gpu=gpu, **variables) as found:
        stack = ComposeStack(found, trust)
        with contextlib.closing(stack.client):
            stack.wait_ready()
            yield stack
