"""What a trial runs on: the compose project as it stands, two simulated cards, and Docker to do harm with."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, NotFound

from tests.engine_simulator.configuration import Faults
from tests.support.compose import ROOT, TAG, ComposeStack, compose_stack
from tests.support.compose import docker as run_docker
from tests.testbed.simulated_gpus.host import SYSTEM_FOLDER, SimulatedHost, cards
from tests.trial.cast import CARD_COUNT, CARD_MIB, MODELS, Model, Pace, simulation

HOOK = Path("/usr/local/bin/nvidia-container-runtime-hook")
IMAGE = f"hostler/engine-simulator:{TAG}"
"""Of this checkout: the simulator as another one knows it would not understand what is ordered here."""
DOCKER_SECONDS = 30
BUILD_SECONDS = 600
FIXED = {
    "HOSTLER_ENGINE_IMAGE": IMAGE,
    "HOSTLER_ENGINE_MEMORY_GIB": "1",
    "HOSTLER_STOP_SECONDS": "5",
    "HOSTLER_SLEEP_MEMORY_MIB": "1000",
    "HOSTLER_FIRST_BYTE_SECONDS": "60",
    "HOSTLER_STALL_SECONDS": "60",
}
LIST = "import os; print(*(f'{a}/{c}' for a, _, b in os.walk('/run/hostler') for c in b), sep='\\n')"


def trouble() -> str:
    """Why no trial can be held here, in a sentence; empty if one can."""
    stand_in = (ROOT / "tests" / "testbed" / "nvidia_hook_stand_in").read_bytes()
    if os.geteuid() != 0 or not HOOK.is_file() or HOOK.read_bytes() != stand_in or not shutil.which("gcc"):
        return "this machine is no simulated GPU host: run tests/testbed/simulated_gpus.sh as root, then start dockerd"
    return ""


class TrialMachine:
    """A running Hostler with its endpoints, and the ways to break it."""

    def __init__(self, stack: ComposeStack, host: SimulatedHost, pace: Pace) -> None:
        self.stack = stack
        self.host = host
        self.pace = pace
        self.models = {model.name: model for model in MODELS}
        self._docker = docker.from_env(timeout=DOCKER_SECONDS)
        self._manager: str = stack.project.container("worker_manager")["Id"]

    def close(self) -> None:
        """Let go of Docker."""
        self._docker.close()

    def register(self, model: Model) -> None:
        """Make a model and an endpoint for it."""
        folder = self.stack.model(model.name, simulation(model, self.pace))
        with (folder / "pytorch_model.bin").open("wb") as file:
            file.truncate(model.weights_mib << 20)
        fields = {"gpus": model.gpus, "gpu_memory_gib": model.gib, "max_workers": model.max_workers}
        self.stack.register(
            model.name, f"local/{model.name}", **fields, per_worker=8, sleep=model.sleep, sleep_after_seconds=5
        )

    def order(self, name: str, faults: Faults | None = None, faulty_before: float | None = None) -> None:
        """Change what goes wrong with a model's engines; without faults: nothing more."""
        self.stack.order(name, simulation(self.models[name], self.pace, faults, faulty_before))

    # Docker

    def containers(self) -> dict[str, str]:
        """State of every container of this Hostler's engines and jobs, by worker or job id."""
        label = f"dev.hostler.instance={self.stack.project.instance}"
        found = self._docker.api.containers(all=True, filters={"label": label})
        return {one["Labels"]["dev.hostler.id"]: one["State"] for one in found}

    def kill(self, worker: str) -> bool:
        """SIGKILL to an engine; False if it was gone."""
        with contextlib.suppress(NotFound, APIError):
            self._docker.api.kill(self._name(worker))
            return True
        return False

    def remove(self, worker: str) -> bool:
        """`docker rm -f` of an engine; False if it was gone."""
        with contextlib.suppress(NotFound, APIError):
            self._docker.api.remove_container(self._name(worker), force=True, v=True)
            return True
        return False

    def linger(self, worker: str, until: float) -> bool:
        """Let an engine's memory stay in use though it ends; False if it is gone."""
        with contextlib.suppress(NotFound, APIError):
            pid = int(self._docker.api.inspect_container(self._name(worker))["State"]["Pid"])
            self.host.linger(pid, until)
            return pid > 0
        return False

    def _name(self, worker: str) -> str:
        return f"{self.stack.project.instance}-{worker}"

    # what is left

    def sockets(self) -> list[str]:
        """What lies in the folders of sockets and proofs, but the manager's own socket."""
        container = self.stack.project.container("gateway")["Id"]
        found = run_docker("exec", container, "python", "-c", LIST).split()
        return [path for path in found if not path.endswith("/manager.sock")]

    def journal(self, since: float) -> list[dict[str, Any]]:
        """What the manager has logged since a time (Unix seconds, and up to a second earlier), line by line."""
        text: bytes = self._docker.api.logs(self._manager, stdout=True, stderr=True, since=max(1, int(since)))
        return [json.loads(line) for line in text.splitlines() if line.startswith(b"{")]


@contextlib.contextmanager
def trial_machine(pace: Pace) -> Iterator[TrialMachine]:
    """A machine for one trial, removed at its end with all it made."""
    build = ["build", "--quiet", "-f", "tests/engine_simulator/Dockerfile", "-t", IMAGE, str(ROOT)]
    if base := os.environ.get("BASE_IMAGE"):
        build[2:2] = ["--build-arg", f"BASE_IMAGE={base}"]
    run_docker(*build, seconds=BUILD_SECONDS)
    host = SimulatedHost.create(SYSTEM_FOLDER, cards(CARD_COUNT, CARD_MIB))
    settings = FIXED | {"HOSTLER_QUEUE_SECONDS": f"{pace.queue:g}"} | pace.settings
    with compose_stack(gpu=True, **settings) as stack:
        machine = TrialMachine(stack, host, pace)
        try:
            for model in MODELS:
                machine.register(model)
            yield machine
        finally:
            machine.close()
