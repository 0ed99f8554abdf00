"""A real manager process with the Docker launcher: what happens behind its back, and to its Docker Engine."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.docker_machine import DOCKER_HOST, DockerMachine
from tests.support.machine import MANAGER_SECONDS, spec
from tests.support.processes import short_folder
from tests.support.waiting import wait_until
from worker_manager.contract import FailureKind, WorkerState

pytestmark = pytest.mark.docker


@pytest.fixture
def machine() -> Iterator[DockerMachine]:
    with short_folder() as folder:
        made = DockerMachine(folder)
        made.add_model()
        yield made
        made.clean_up()


def test_a_container_removed_behind_our_back_leaves_the_observed_set_within_a_second(machine: DockerMachine) -> None:
    machine.start()
    machine.send(spec())
    machine.wait_for(WorkerState.READY)
    before = machine.container_id()
    version = machine.observed().version
    threading.Thread(target=lambda: machine.engine.api.remove_container(before, force=True)).start()
    started = time.monotonic()
    while (seen := machine.observed(version, 10)).workers[0].state is WorkerState.READY:
        version = seen.version
    assert time.monotonic() - started < 1.0
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


def test_a_manager_killed_in_the_middle_of_a_start_leaves_no_orphan_and_no_double(machine: DockerMachine) -> None:
    manager = machine.start()
    machine.send(spec())
    wait_until(lambda: machine.container_count() == 1, "created", seconds=MANAGER_SECONDS, interval=0.001)
    manager.kill()
    machine.start()
    machine.send(spec())
    machine.wait_for(WorkerState.READY)
    assert machine.container_count() == 1


def test_an_engine_that_crashes_is_diagnosed_from_its_containers_log(machine: DockerMachine) -> None:
    machine.add_model("broken", faults={"crash_at_load": "kv_cache_too_small"})
    machine.start()
    machine.send(spec(model="local/broken"))
    failed = machine.wait_for(WorkerState.FAILED)
    assert failed.failure is not None
    assert failed.failure.kind is FailureKind.KV_CACHE_TOO_SMALL
    assert failed.failure.log_tail
    assert machine.container_count() == 0


# a Docker Engine that comes and goes


class Door:
    """A socket in front of the Docker Engine that can be shut: then nobody answers behind it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: list[socket.socket] = []
        self._listener: socket.socket | None = None

    def open(self) -> None:
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self.path.unlink(missing_ok=True)
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                engine = socket.socket(socket.AF_UNIX)
                engine.connect(DOCKER_HOST.removeprefix("unix://"))
                self._open += [client, engine]
                for one, other in ((client, engine), (engine, client)):
                    threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def test_a_docker_engine_that_is_away_for_a_while_costs_no_worker() -> None:
    with short_folder() as folder:
        door = Door(folder / "docker.sock")
        door.open()
        machine = DockerMachine(folder, f"unix://{door.path}")
        machine.add_model()
        try:
            machine.start()
            machine.send(spec())
            machine.wait_for(WorkerState.READY)
            before = machine.container_id()
            door.shut()
            machine.send(spec(), spec("w2"))
            machine.wait_for(WorkerState.READY)
            assert machine.ask_engine() == 200
            door.open()
            machine.wait_for(WorkerState.READY, "w2")
            assert machine.container_id() == before
            assert machine.worker("w1") is not None
        finally:
            machine.clean_up()
            door.shut()
