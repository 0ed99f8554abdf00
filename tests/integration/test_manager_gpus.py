"""A real manager on a simulated GPU host: inventory, who holds what, and the memory gate before a start."""

import dataclasses
import os
import shutil
from collections.abc import Iterator

import pytest

from tests.support.machine import Machine, spec
from tests.support.processes import REPOSITORY, short_folder
from tests.support.waiting import wait_until
from tests.testbed.simulated_gpus.host import SimulatedHost, cards
from worker_manager.contract import FailureKind, Gpu, WorkerState

TOTAL = 10_000
CARDS = [cards(1, TOTAL)[0], dataclasses.replace(cards(2, TOTAL)[1], energy_mj=None)]
FIRST, SECOND = (card.uuid for card in CARDS)

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stub NVML is compiled with gcc")


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    with short_folder() as folder:
        yield SimulatedHost.create(folder / "gpus", CARDS)


@pytest.fixture
def asleep(host: SimulatedHost) -> Iterator[Machine]:
    """A machine whose manager was not started yet."""
    engine_env = f"PYTHONPATH={REPOSITORY} HOSTLER_SIMULATED_GPUS={host.folder}"
    with short_folder() as folder:
        made = Machine(folder, **host.env, HOSTLER_DEVICE="auto", HOSTLER_ENGINE_ENV=engine_env)
        made.add_model()
        yield made
        made.clean_up()


@pytest.fixture
def machine(asleep: Machine) -> Machine:
    asleep.start()
    return asleep


def gpu(machine: Machine, uuid: str = FIRST) -> Gpu:
    return next(each for each in machine.observed().host.gpus if each.uuid == uuid)


def test_the_cards_are_listed_with_their_memory(machine: Machine) -> None:
    facts = machine.observed().host
    assert facts.device == "cuda"
    assert facts.driver
    assert [(each.index, each.uuid, each.memory_total_mib) for each in facts.gpus] == [
        (0, FIRST, TOTAL),
        (1, SECOND, TOTAL),
    ]


def test_while_nvml_fails_at_the_start_the_machine_is_not_taken_for_one_without_gpus(
    asleep: Machine, host: SimulatedHost
) -> None:
    with host.failing():
        manager = asleep.start()
        manager.wait_for_output("NVML fails (Unknown Error), so nobody can say whether there are GPUs")
        asleep.send(spec(gpus=(FIRST,), gpu_memory_mib=5000))
        manager.wait_for_output("launcher_unavailable")
    asleep.wait_for(WorkerState.READY)
    assert asleep.observed().host.device == "cuda"


def test_energy_is_told_where_a_card_counts_it_and_alone_is_no_news(machine: Machine, host: SimulatedHost) -> None:
    before = machine.observed()
    assert [each.energy_mj for each in before.host.gpus] == [1_000_000, None]
    counter = host.spend(FIRST, 5_000)
    wait_until(lambda: gpu(machine).energy_mj == counter, "the energy is seen", seconds=30)
    assert machine.observed().version == before.version


def test_memory_is_told_apart_by_who_holds_it(machine: Machine, host: SimulatedHost) -> None:
    host.add_foreign(FIRST, 1000, pid=os.getpid())
    machine.send(spec(gpus=(FIRST,), gpu_memory_mib=5000))
    machine.wait_for(WorkerState.READY)
    wait_until(lambda: gpu(machine).memory_used_mib > 5000, "the engine holds its memory", seconds=15)
    seen = gpu(machine)
    owners = {use.worker: use.memory_mib for use in seen.users}
    assert owners.keys() == {None, "w1"}
    assert seen.memory_foreign_mib == seen.memory_used_mib - owners["w1"]
    assert gpu(machine, SECOND).memory_used_mib == 0


def test_a_start_waits_until_the_memory_is_free(machine: Machine, host: SimulatedHost) -> None:
    host.add_foreign(FIRST, 8000)
    machine.send(spec(gpus=(FIRST,), gpu_memory_mib=5000))
    waiting = machine.wait_for(WorkerState.WAITING)
    wait_until(lambda: "2000 MiB free" in getattr(machine.worker(), "reason", ""), "the reason is told")
    assert waiting.failure is None
    host.clear_foreign()
    machine.wait_for(WorkerState.READY)


def test_two_workers_share_a_card_and_a_third_that_does_not_fit_waits(machine: Machine) -> None:
    share = {"gpus": (FIRST,), "gpu_memory_mib": 4000}
    machine.send(spec("w1", **share), spec("w2", **share), spec("w3", **share))
    machine.wait_for(WorkerState.READY, "w1")
    machine.wait_for(WorkerState.READY, "w2")
    third = machine.worker("w3")
    assert third is not None
    assert third.state is WorkerState.WAITING
    machine.send(spec("w2", **share), spec("w3", **share))
    machine.wait_for(WorkerState.READY, "w3")


def test_a_gpu_that_is_not_there_is_refused(machine: Machine) -> None:
    machine.send(spec(gpus=("GPU-none",)))
    failed = machine.wait_for(WorkerState.FAILED)
    assert failed.failure is not None
    assert failed.failure.kind is FailureKind.REFUSED
