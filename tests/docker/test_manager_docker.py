"""A real manager process with the Docker launcher: what happens behind its back."""

import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.battery import Tell, milliseconds
from tests.support.docker_machine import DockerMachine
from tests.support.machine import spec
from tests.support.processes import short_folder
from worker_manager.contract import FailureKind, WorkerState

pytestmark = pytest.mark.docker


@pytest.fixture
def machine() -> Iterator[DockerMachine]:
    with short_folder() as folder:
        made = DockerMachine(folder)
        made.add_model()
        yield made
        made.clean_up()


def test_a_container_removed_behind_our_back_leaves_the_observed_set_within_a_second(
    machine: DockerMachine, record_property: Tell
) -> None:
    machine.start()
    machine.send(spec())
    machine.wait_for(WorkerState.READY)
    before = machine.container_id()
    version = machine.observed().version
    threading.Thread(target=lambda: machine.engine.api.remove_container(before, force=True)).start()
    started = time.monotonic()
    while (seen := machine.observed(version, 10)).workers[0].state is WorkerState.READY:
        version = seen.version
    seconds = time.monotonic() - started
    assert seconds < 1.0
    record_property("container removed: out of the manager's workers after", milliseconds(seconds))
    machine.wait_for_restarts(1)
    again = machine.wait_for(WorkerState.READY)
    assert again.failure is not None
    assert again.failure.kind is FailureKind.KILLED
    assert machine.container_id() != before
    assert machine.container_count() == 1


def test_a_killed_manager_finds_its_containers_again_and_restarts_none(machine: DockerMachine) -> None:
    manager = machine.start()
    machine.send(spec("w1"), spec("w2"))
    machine.wait_for(WorkerState.READY, "w1")
    machine.wait_for(WorkerState.READY, "w2")
    before = machine.container_id("w1"), machine.container_id("w2")
    manager.kill()
    assert machine.ask_engine() == 200
    machine.start()
    assert [each.state for each in machine.observed().workers] == [WorkerState.READY, WorkerState.READY]
    machine.send(spec("w1"), spec("w2"))
    machine.wait_for(WorkerState.READY, "w1")
    assert (machine.container_id("w1"), machine.container_id("w2")) == before


def test_an_engine_that_crashes_is_diagnosed_from_its_containers_log(machine: DockerMachine) -> None:
    machine.add_model("broken", faults={"crash_at_load": "kv_cache_too_small"})
    machine.start()
    machine.send(spec(model="local/broken"))
    failed = machine.wait_for(WorkerState.FAILED)
    assert failed.failure is not None
    assert failed.failure.kind is FailureKind.KV_CACHE_TOO_SMALL
    assert failed.failure.log_tail
    assert machine.container_count() == 0
