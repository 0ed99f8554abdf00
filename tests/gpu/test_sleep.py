"""A real vLLM on a real GPU sleeps and wakes, at both levels: memory back, the same answers, and how long it took.

With `vllm` on the PATH (or in HOSTLER_TEST_VLLM_COMMAND) it runs as a process; with the image here, in a container.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu.test_inventory import nvidia_smi
from tests.support.docker_machine import DockerMachine
from tests.support.machine import Machine, spec
from tests.support.processes import REPOSITORY, short_folder
from worker_manager.contract import Residency, WorkerSpec, WorkerState
from worker_manager.settings import Settings

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]

IMAGE = Settings().engine_image
LOAD_SECONDS = 600.0
SLEEP_SECONDS = 300.0
PROMISE_MIB = 6144


def vllm_command() -> str | None:
    return os.environ.get("HOSTLER_TEST_VLLM_COMMAND") or shutil.which("vllm")


def has_image() -> bool:
    if shutil.which("docker") is None:
        return False
    looked = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, timeout=30, check=False)
    return looked.returncode == 0


@pytest.fixture(params=["process", "container"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    command = vllm_command()
    with short_folder() as folder:
        if request.param == "process":
            if command is None:
                pytest.skip("no vllm on the PATH and none in HOSTLER_TEST_VLLM_COMMAND")
            made = Machine(folder, HOSTLER_DEVICE="cuda", HOSTLER_VLLM_COMMAND=command, HOSTLER_ENGINE_ENV="")
        else:
            if not has_image():
                pytest.skip(f"the image {IMAGE} is not here")
            made = DockerMachine(
                folder, HOSTLER_DEVICE="cuda", HOSTLER_ENGINE_IMAGE=IMAGE, HOSTLER_ENGINE_MEMORY_GIB="0"
            )
        make_model(folder / "models" / "local" / "tiny")
        yield made
        made.clean_up()


def make_model(folder: Path) -> None:
    script = str(REPOSITORY / "scripts" / "make_demo_model")
    folder.parent.mkdir(parents=True)
    subprocess.run([sys.executable, script, str(folder)], check=True, capture_output=True, timeout=120)


def on_first_card() -> WorkerSpec:
    return spec(gpus=(min(nvidia_smi(), key=lambda uuid: nvidia_smi()[uuid][0]),), gpu_memory_mib=PROMISE_MIB)


def test_a_real_engine_gives_its_memory_back_and_answers_as_before(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = on_first_card()
    machine.start()
    machine.send(worker)
    ready = machine.wait_for(WorkerState.READY, seconds=LOAD_SECONDS)
    assert (ready.can_sleep, ready.no_sleep_reason) == (True, "")
    for level in (Residency.ASLEEP_1, Residency.ASLEEP_1, Residency.ASLEEP_2):
        machine.send(worker, w1=level)
        asleep = machine.wait_for(WorkerState.ASLEEP, seconds=SLEEP_SECONDS)
        machine.send(worker)
        awake = machine.wait_for(WorkerState.READY, seconds=SLEEP_SECONDS)
        assert awake.failure is None
        assert asleep.sleep is not None
        assert awake.sleep is not None
        assert asleep.sleep.freed_mib is None or asleep.sleep.freed_mib > 0
        with capsys.disabled():
            sys.stdout.write(
                f"\n{level}: {awake.sleep}, {asleep.memory_mib} MiB asleep, {awake.memory_mib} MiB awake\n"
            )
    assert machine.ask_engine() == 200
