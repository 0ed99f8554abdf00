"""A real manager and an engine that hangs behind a green /health."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.machine import Machine, is_running, spec
from tests.support.processes import short_folder
from tests.support.waiting import wait_until
from worker_manager.contract import FailureKind, WorkerState

SETTINGS = {"HOSTLER_CANARY_SECONDS": "0.6", "HOSTLER_CANARY_TIMEOUT_SECONDS": "0.5", "HOSTLER_CANARY_TRIES": "2"}


@pytest.fixture
def machine() -> Iterator[Machine]:
    with short_folder() as folder:
        made = Machine(folder, **SETTINGS)
        made.add_model()
        yield made
        made.clean_up()


def ask_until_it_breaks(machine: Machine) -> None:
    """The simulator reads its orders every 50 ms: a request may still be answered before it hangs."""
    while True:
        machine.ask_engine()


def test_a_hung_engine_is_killed_diagnosed_and_started_again(machine: Machine) -> None:
    machine.start()
    machine.send(spec())
    machine.wait_for(WorkerState.READY)
    hung = machine.pid()
    machine.add_model(faults={"hang_with_green_health": True})
    with ThreadPoolExecutor(1) as thread:
        held = thread.submit(ask_until_it_breaks, machine)
        wait_until(lambda: not is_running(hung), "the hung engine was ended", seconds=30, interval=0.05)
        # told to end it would have answered 200 and not a word, which nobody can tell from an answer
        assert isinstance(held.exception(10), httpx.RemoteProtocolError | httpx.ReadError)
    machine.add_model()
    machine.wait_for_restarts(1)
    again = machine.wait_for(WorkerState.READY)
    assert machine.pid() != hung
    assert again.failure is not None
    assert again.failure.kind is FailureKind.HUNG
    assert "generates nothing" in again.failure.message
    assert again.failure.log_tail
    assert machine.ask_engine() == 200
