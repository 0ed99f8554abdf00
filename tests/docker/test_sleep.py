"""Sleep and wake of engines in containers on simulated GPUs: memory and answers are proven through Docker as well."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.docker_machine import DockerMachine
from tests.support.machine import spec
from tests.support.processes import REPOSITORY, short_folder
from tests.support.waiting import wait_until
from tests.testbed.simulated_gpus.host import SYSTEM_FOLDER, SimulatedHost, cards
from worker_manager.contract import Residency, WorkerState

pytestmark = pytest.mark.docker

HOOK = Path("/usr/local/bin/nvidia-container-runtime-hook")
CARDS = cards(2)
GPU = CARDS[0].uuid
PROMISE, RESIDUAL = 12_288, 1200


@pytest.fixture
def host() -> SimulatedHost:
    stand_in = (REPOSITORY / "tests" / "testbed" / "nvidia_hook_stand_in").read_bytes()
    if os.geteuid() != 0 or not HOOK.is_file() or HOOK.read_bytes() != stand_in or not shutil.which("gcc"):
        pytest.skip("this machine is no simulated GPU host: run tests/testbed/simulated_gpus.sh as root")
    return SimulatedHost.create(SYSTEM_FOLDER, CARDS)


@pytest.fixture
def machine(host: SimulatedHost) -> Iterator[DockerMachine]:
    with short_folder() as folder:
        made = DockerMachine(folder, **host.env, HOSTLER_DEVICE="auto")
        made.add_model(residual_mib=RESIDUAL, claim_mib=PROMISE, sleep_seconds=0.2, wake_seconds=0.2)
        yield made
        made.clean_up()


@pytest.mark.parametrize("level", [Residency.ASLEEP_1, Residency.ASLEEP_2])
def test_an_engine_in_a_container_sleeps_survives_a_new_manager_and_wakes(
    machine: DockerMachine, host: SimulatedHost, level: Residency
) -> None:
    worker = spec(gpus=(GPU,), gpu_memory_mib=PROMISE)
    machine.start()
    machine.send(worker)
    assert machine.wait_for(WorkerState.READY).no_sleep_reason == ""
    container = machine.container_id()
    wait_until(lambda: getattr(machine.worker(), "memory_mib", None) == PROMISE, "NVML's pids are ours", seconds=30)

    machine.send(worker, w1=level)
    asleep = machine.wait_for(WorkerState.ASLEEP)
    assert asleep.sleep is not None
    assert asleep.sleep.freed_mib == PROMISE - RESIDUAL
    assert host.used_mib(GPU) == RESIDUAL

    machine.start()
    (found,) = machine.observed().workers
    assert (found.state, found.residency) == (WorkerState.ASLEEP, level)
    machine.send(worker)
    machine.wait_for(WorkerState.READY)
    assert host.used_mib(GPU) == PROMISE
    assert machine.container_id() == container
