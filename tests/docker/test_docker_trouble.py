"""A manager that is killed at any step, and a Docker Engine that is away, hangs or fails: all comes right again."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import httpx
import msgspec
import pytest
from docker.errors import NotFound
from docker.models.containers import Container

from tests.support.battery import WHOLE, Tell, hold, size
from tests.support.docker_door import DockerDoor, Fault, Moment
from tests.support.docker_machine import IMAGE, DockerMachine
from tests.support.machine import MANAGER_SECONDS, spec
from tests.support.processes import short_folder
from tests.support.waiting import wait_until
from worker_manager.contract import WorkerState

pytestmark = pytest.mark.docker

CONVERGE_SECONDS = 10.0
RECOVER_SECONDS = 15.0
ANSWER_SECONDS = 2.0
STOP_SECONDS = 1
ENDS_SECONDS = STOP_SECONDS + 2.0
TIMES = size(1, 20)
FAULT_SECONDS = size(1, 30)
CREATE, START = "POST /containers/create", "POST /containers/{name}/start"
LOOK, STOP, REMOVE = "GET /containers/{name}/json", "POST /containers/{name}/stop", "DELETE /containers/{name}"
STEPS = [
    ((CREATE, Moment.AFTER), (STOP, Moment.AFTER)),
    ((START, Moment.AFTER), (REMOVE, Moment.BEFORE)),
]
MORE_STEPS = [
    ((CREATE, Moment.BEFORE), (REMOVE, Moment.AFTER)),
    (("GET /images/{name}/json", Moment.BEFORE), (LOOK, Moment.BEFORE)),
    ((START, Moment.BEFORE), (STOP, Moment.BEFORE)),
]
"""Of a start and of an end; between two of a kind the manager only computes."""
Step = tuple[str, Moment]


class Trouble:
    """A machine whose manager reaches Docker through a door."""

    def __init__(self, machine: DockerMachine, door: DockerDoor) -> None:
        self.machine, self.door = machine, door

    def rest(self) -> None:
        """A manager that runs, and no worker."""
        if self.machine.manager is None or self.machine.manager.exit_code is not None:
            self.machine.start()
        self.machine.send()
        wait_until(self.is_empty, "no container is left", seconds=MANAGER_SECONDS, interval=0.05)

    def is_empty(self) -> bool:
        return not self.machine.observed().workers and self.machine.container_count() == 0

    def kill_at(self, step: Step, act: Callable[[], object]) -> None:
        """Begin something; SIGKILL to the manager at this step of it."""
        manager, dead, turn = self.machine.manager, threading.Event(), threading.Lock()
        assert manager is not None

        def interrupt(call: str, moment: Moment) -> bool:
            with turn:
                if (call, moment) == step and not dead.is_set():
                    manager.kill()
                    dead.set()
            return dead.is_set()

        self.door.interrupt = interrupt
        with contextlib.suppress(httpx.TransportError):  # it may die before it answers
            act()
        assert dead.wait(MANAGER_SECONDS), step
        self.door.interrupt = lambda _call, _moment: False

    def back(self, *workers: str) -> float:
        """Bring the manager back; seconds until exactly these workers serve and nothing else is there."""
        began = time.monotonic()
        self.machine.start()
        self.machine.send(*(spec(worker) for worker in workers))
        for worker in workers:
            self.machine.wait_for(WorkerState.READY, worker)
        wait_until(partial(self.has_only, workers), f"{workers} and no other", seconds=MANAGER_SECONDS, interval=0.05)
        return time.monotonic() - began

    def has_only(self, workers: tuple[str, ...]) -> bool:
        seen = {worker.spec.id for worker in self.machine.observed().workers}
        return seen == set(workers) and self.machine.container_count() == len(workers)


@pytest.fixture(scope="module")
def troubled() -> Iterator[Trouble]:
    with short_folder() as folder:
        door = DockerDoor(folder / "docker.sock")
        machine = DockerMachine(folder, door.host, HOSTLER_STOP_SECONDS=str(STOP_SECONDS))
        machine.add_model()
        try:
            yield Trouble(machine, door)
        finally:
            door.set(Fault.NONE)
            machine.clean_up()
            door.close()


@pytest.fixture
def trouble(troubled: Trouble) -> Trouble:
    troubled.rest()
    return troubled


@pytest.mark.parametrize(
    ("starting", "ending"),
    STEPS + MORE_STEPS * WHOLE,
    ids=lambda step: f"{step[0].split('/')[-1]} {step[1].name.lower()}",
)
def test_a_manager_killed_at_a_step_of_a_start_and_of_an_end_leaves_neither_orphan_nor_double(
    trouble: Trouble, starting: Step, ending: Step, record_property: Tell
) -> None:
    slowest = 0.0
    for _ in range(TIMES):
        trouble.kill_at(starting, lambda: trouble.machine.send(spec()))
        slowest = max(slowest, trouble.back("w1"))
        trouble.kill_at(ending, trouble.machine.send)
        slowest = max(slowest, trouble.back())
    hold(slowest, CONVERGE_SECONDS, "all is as it should be after a return")
    for call, moment in (starting, ending):
        record_property(f"{call} ({moment.value})", f"{TIMES} kills")
    record_property(f"slowest return at {starting[0]} and {ending[0]}", f"{slowest:.1f} s")


@pytest.mark.parametrize("fault", [Fault.AWAY, Fault.HANGS, Fault.FAILS], ids=lambda fault: fault.name.lower())
def test_a_docker_engine_in_trouble_costs_no_worker_and_what_was_asked_meanwhile_is_done_afterwards(
    trouble: Trouble, fault: Fault, record_property: Tell
) -> None:
    machine = trouble.machine
    machine.send(spec())
    machine.wait_for(WorkerState.READY)
    before = machine.container_id()
    trouble.door.set(fault)
    machine.send(spec(), spec("w2"))
    slowest, until = 0.0, time.monotonic() + FAULT_SECONDS
    while time.monotonic() < until:
        began = time.monotonic()
        assert machine.ask_engine() == 200
        seen = machine.worker()
        assert seen is not None
        assert seen.state is WorkerState.READY
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.1)
    hold(slowest, ANSWER_SECONDS, "engine and manager answer while Docker does not")
    trouble.door.set(Fault.NONE)
    began = time.monotonic()
    machine.wait_for(WorkerState.READY, "w2")
    seconds = time.monotonic() - began
    hold(seconds, RECOVER_SECONDS, "what was asked meanwhile is done")
    assert machine.container_id() == before
    assert machine.container_count() == 2
    record_property(f"{fault.name.lower()} for {FAULT_SECONDS} s", f"well {seconds:.1f} s later")
    record_property(f"slowest answer meanwhile ({fault.name.lower()})", f"{slowest:.2f} s")
    if WHOLE:
        assert machine.manager is not None
        assert '"launcher_unavailable"' in machine.manager.output, "no call waited for as long as it lasted"


def test_a_manager_that_starts_while_docker_is_away_tells_nothing_rather_than_that_no_worker_runs(
    trouble: Trouble,
) -> None:
    machine = trouble.machine
    machine.send(spec())
    before = machine.wait_for(WorkerState.READY).made_at
    trouble.door.set(Fault.AWAY)
    machine.start()
    answer = machine.client.get("/observed")
    assert (answer.status_code, answer.json()["error"]["kind"]) == (503, "not_listed")
    assert machine.ask_engine() == 200
    trouble.door.set(Fault.NONE)
    wait_until(lambda: machine.client.get("/observed").is_success, "Docker has told what runs", seconds=MANAGER_SECONDS)
    assert machine.wait_for(WorkerState.READY).made_at == before
    assert machine.observed().refusals == ()


def test_an_engine_in_a_container_that_does_not_listen_to_term_is_gone_soon_after_its_grace(
    trouble: Trouble, record_property: Tell
) -> None:
    machine = trouble.machine
    machine.send(spec())
    machine.wait_for(WorkerState.READY)
    deaf = machine.engine.containers.get(machine.container_id()).exec_run(["/bin/sh", "-c", "kill -STOP -1"])
    assert deaf.exit_code == 0, deaf.output
    began = time.monotonic()
    machine.send()
    wait_until(lambda: machine.container_count() == 0, "it is gone", seconds=MANAGER_SECONDS, interval=0.02)
    seconds = time.monotonic() - began
    assert seconds > STOP_SECONDS
    hold(seconds, ENDS_SECONDS, "it is gone")
    record_property(f"container, grace {STOP_SECONDS} s: gone after", f"{seconds:.1f} s")


def run_container(stack: contextlib.ExitStack, machine: DockerMachine, name: str, labels: dict[str, str]) -> Container:
    """A container that does nothing, until the stack ends."""
    made = machine.engine.containers.create(IMAGE, entrypoint=["sleep", "600"], name=name, labels=labels)
    stack.callback(partial(remove, made))
    made.start()
    made.reload()
    return made


def remove(container: Container) -> None:
    with contextlib.suppress(NotFound):
        container.remove(force=True)


def test_what_is_not_ours_is_never_touched_and_what_is_ours_not_before_the_gateway_has_spoken(
    trouble: Trouble, record_property: Tell
) -> None:
    machine = trouble.machine
    label = {
        "dev.hostler.kind": "worker",
        "dev.hostler.id": "stray",
        "dev.hostler.spec": msgspec.json.encode(spec("stray")).decode(),
    }
    ours = label | {"dev.hostler.instance": machine.instance}
    with contextlib.ExitStack() as stack:
        run = partial(run_container, stack, machine)
        others = [
            run(f"{machine.instance}-w9", {}),
            run(f"{machine.instance}-other", label | {"dev.hostler.instance": f"{machine.instance}-2"}),
            run(f"not-{machine.instance}", label),
        ]
        run(f"{machine.instance}-stray", ours)
        machine.start()
        machine.wait_for(WorkerState.LOADING, "stray")
        assert machine.container_count() == 1
        machine.send(spec())
        machine.wait_for(WorkerState.READY)
        wait_until(lambda: machine.worker("stray") is None, "the stray one is gone", seconds=MANAGER_SECONDS)
        assert machine.container_count() == 1
        for container in others:
            before = container.attrs["State"]["StartedAt"]
            container.reload()
            assert (container.status, container.attrs["State"]["StartedAt"]) == ("running", before)
    record_property("of others, untouched", f"{len(others)} of {len(others)}")
