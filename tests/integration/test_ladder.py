"""The planner and the manager together: two models that do not fit one card take turns, asleep in between."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine_simulator.configuration import Faults, Simulation
from tests.support.events import ALL, listening
from tests.support.processes import REPOSITORY, short_folder
from tests.support.stack import Stack, running_stack
from tests.support.waiting import wait_until
from tests.testbed.simulated_gpus.host import SimulatedHost, cards

PROMISE_GIB = 2.0
CARDS = cards(1, 4096)
CALM = Simulation(claim_mib=1900, residual_mib=300)

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stub NVML is compiled with gcc")


@pytest.fixture
def stack() -> Iterator[Stack]:
    with short_folder() as folder:
        host = SimulatedHost.create(folder / "gpus", CARDS)
        settings = {
            **host.env,
            "HOSTLER_DEVICE": "auto",
            "HOSTLER_ENGINE_ENV": f"PYTHONPATH={REPOSITORY} HOSTLER_SIMULATED_GPUS={host.folder}",
            "HOSTLER_STOP_SECONDS": "1",
            "HOSTLER_SLEEP_MEMORY_MIB": "5000",
        }
        with running_stack(settings) as started:
            yield started


def served_by(stack: Stack, name: str) -> str:
    """Ask, and tell which worker answered."""
    answer = stack.ask(name)
    answer.raise_for_status()
    return answer.headers["x-hostler-worker"]


def rests(stack: Stack, name: str) -> None:
    """Wait until its worker sleeps: not all endpoints fit, so it does so ahead of need."""

    def asleep() -> bool:
        return [worker["residency"] for worker in stack.status(name)["workers"]] == ["asleep_1"]

    wait_until(asleep, f"{name} sleeps", seconds=30)


def pid(stack: Stack, worker: str) -> int:
    """Which process an engine is."""
    found: int = stack.engine_stats(worker)["pid"]
    return found


def test_two_models_share_a_card_that_holds_one_and_the_one_that_rests_wakes_instead_of_starting(stack: Stack) -> None:
    for name in ("one", "two"):
        stack.endpoint(name, CALM, gpu_memory_gib=PROMISE_GIB)
    engines = {}
    for name in ("one", "two"):
        worker = served_by(stack, name)
        engines[worker] = pid(stack, worker)
        rests(stack, name)
    for name in ("one", "two"):
        served_by(stack, name)
    assert {worker: pid(stack, worker) for worker in engines} == engines, "nobody was started twice"
    freed = [worker["sleep"]["freed_mib"] for worker in stack.workers()]
    assert freed == [1600, 1600]
    with listening(stack, last=ALL, endpoint="one") as listener:
        for told in (
            {"residency": "asleep_1", "state": "asleep"},
            {"verb": "wake"},
            {"residency": "hot", "state": "ready"},
        ):
            listener.until(endpoint="one", **told)


def cannot_sleep(stack: Stack, name: str) -> bool:
    """Whether its status says so."""
    return stack.status(name)["sleep"]["possible"] is False


def test_a_model_whose_memory_did_not_come_back_is_stopped_instead_whoever_comes_after_both_processes(
    stack: Stack,
) -> None:
    faulty = Simulation(claim_mib=1900, residual_mib=300, faults=Faults(memory_not_returned=True))
    stack.endpoint("bad", faulty, gpu_memory_gib=PROMISE_GIB)
    stack.endpoint("good", CALM, gpu_memory_gib=PROMISE_GIB)
    first = pid(stack, served_by(stack, "bad"))
    wait_until(lambda: cannot_sleep(stack, "bad"), "its first sleep, ahead of need, has failed", seconds=30)
    assert pid(stack, served_by(stack, "bad")) != first
    served_by(stack, "good")
    wait_until(lambda: not stack.status("bad")["workers"], "it is stopped and does not sleep", seconds=30)

    for process in (stack.manager, stack.gateway):
        assert process is not None
        process.kill()
        process.stop()
    stack.start()
    assert cannot_sleep(stack, "bad")
    assert "0 of 1900 MiB came back" in stack.status("bad")["sleep"]["reason"]
    unable = served_by(stack, "bad")
    assert "--enable-sleep-mode" not in Path(f"/proc/{pid(stack, unable)}/cmdline").read_text()
    (seen,) = [one for one in stack.workers() if one["spec"]["id"] == unable]
    assert "0 of 1900 MiB came back" in seen["no_sleep_reason"]
    assert not cannot_sleep(stack, "good")
