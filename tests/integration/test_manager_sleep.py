"""A real manager lets simulated engines on simulated GPUs sleep and wakes them: the proofs, and what follows if not."""

import json
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.machine import Machine, is_running, spec
from tests.support.processes import REPOSITORY, short_folder
from tests.support.waiting import wait_until
from tests.testbed.simulated_gpus.host import SimulatedHost, cards
from worker_manager.contract import FailureKind, ObservedWorker, Residency, WorkerSpec, WorkerState

TOTAL = 10_000
CARDS = cards(1, TOTAL)
GPU = CARDS[0].uuid
PROMISE, RESIDUAL = 6000, 1000
BOTH_LEVELS = (Residency.ASLEEP_1, Residency.ASLEEP_2)

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stub NVML is compiled with gcc")


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    with short_folder() as folder:
        yield SimulatedHost.create(folder / "gpus", CARDS)


@pytest.fixture
def machine(host: SimulatedHost) -> Iterator[Machine]:
    engine_env = f"PYTHONPATH={REPOSITORY} HOSTLER_SIMULATED_GPUS={host.folder}"
    limits = {"HOSTLER_SLEEP_SECONDS": "20", "HOSTLER_WAKE_SECONDS": "20", "HOSTLER_STOP_SECONDS": "1"}
    with short_folder() as folder:
        made = Machine(folder, **host.env, **limits, HOSTLER_DEVICE="auto", HOSTLER_ENGINE_ENV=engine_env)
        yield made
        made.clean_up()


def on_card(worker: str = "w1", **change: Any) -> WorkerSpec:
    return spec(worker, gpus=(GPU,), gpu_memory_mib=PROMISE, **change)


def started(machine: Machine, *, settings: dict[str, str] | None = None, **orders: Any) -> ObservedWorker:
    """One worker, ready; `orders` are for its engine."""
    machine.add_model(residual_mib=RESIDUAL, **orders)
    machine.start(**(settings or {}))
    machine.send(on_card())
    return machine.wait_for(WorkerState.READY)


def put_to_sleep(machine: Machine, level: Residency = Residency.ASLEEP_1) -> ObservedWorker:
    machine.send(on_card(), w1=level)
    return machine.wait_for(WorkerState.ASLEEP)


def awake_again(machine: Machine) -> ObservedWorker:
    machine.send(on_card())
    return machine.wait_for(WorkerState.READY)


def stats(machine: Machine) -> dict[str, Any]:
    socket = machine.folder / "run" / "engines" / "w1" / "engine.sock"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://engine") as client:
        found: dict[str, Any] = client.get("/simulator/stats", timeout=20).json()
        return found


def wait_until_recycled(machine: Machine, first: int, kind: FailureKind) -> ObservedWorker:
    """The worker, ready with another process, and with the failure that ended the first."""
    wait_until(lambda: not is_running(first), "the engine was ended", seconds=30, interval=0.05)
    machine.send(on_card())
    ready = machine.wait_for(WorkerState.READY)
    assert machine.pid() != first
    assert ready.failure is not None
    assert ready.failure.kind is kind
    assert not ready.can_sleep
    assert "it failed before" in ready.no_sleep_reason
    assert ready.restarts == 0
    return ready


@pytest.mark.parametrize("level", BOTH_LEVELS)
def test_sleep_gives_the_memory_back_and_the_same_engine_wakes_with_the_same_answers(
    machine: Machine, host: SimulatedHost, level: Residency
) -> None:
    ready = started(machine, sleep_seconds=0.1, wake_seconds=0.1)
    assert (ready.can_sleep, ready.can_sleep_deep, ready.no_sleep_reason) == (True, True, "")
    wait_until(lambda: getattr(machine.worker(), "memory_mib", None) == PROMISE, "what it holds is shown")
    engine, seed = machine.pid(), stats(machine)["seed"]

    asleep = put_to_sleep(machine, level)
    assert asleep.residency is level
    assert host.used_mib(GPU) == RESIDUAL
    assert asleep.sleep is not None
    assert asleep.sleep.freed_mib == PROMISE - RESIDUAL
    assert asleep.sleep.sleep_seconds is not None
    assert asleep.sleep.sleep_seconds >= 0.1
    wait_until(lambda: getattr(machine.worker(), "memory_mib", None) == RESIDUAL, "what it still holds is shown")

    awake = awake_again(machine)
    assert awake.residency is Residency.HOT
    assert awake.sleep is not None
    assert awake.sleep.wake_seconds is not None
    assert host.used_mib(GPU) == PROMISE
    assert (machine.pid(), stats(machine)["seed"]) == (engine, seed)
    assert machine.ask_engine() == 200


def test_a_pooling_model_proves_itself_by_an_embedding(machine: Machine) -> None:
    assert started(machine, kind="embed").can_sleep
    engine = machine.pid()
    put_to_sleep(machine)
    machine.add_model(kind="embed", residual_mib=RESIDUAL, faults={"bad_wake": True})
    wait_until(lambda: stats(machine)["simulation"]["faults"]["bad_wake"], "the order is read")
    machine.send(on_card())
    wait_until_recycled(machine, engine, FailureKind.WAKE_FAILED)


@pytest.mark.parametrize(
    "orders",
    [
        {"faults": {"refuse_sleep": True}},
        {"faults": {"hang_on_sleep": True}},
        {"faults": {"memory_not_returned": True}},
    ],
    ids=["refused", "hung", "memory kept"],
)
def test_a_sleep_that_fails_ends_the_engine_and_is_not_tried_again(machine: Machine, orders: dict[str, Any]) -> None:
    started(machine, settings={"HOSTLER_SLEEP_SECONDS": "8"}, **orders)
    engine = machine.pid()
    machine.send(on_card(), w1=Residency.ASLEEP_1)
    wait_until(lambda: not is_running(engine), "the engine was ended", seconds=30, interval=0.05)
    # the memory is wanted by somebody else: nothing is started in order to sleep
    waiting = machine.wait_for(WorkerState.WAITING)
    assert waiting.failure is not None
    assert waiting.failure.kind is FailureKind.SLEEP_FAILED
    wait_until_recycled(machine, engine, FailureKind.SLEEP_FAILED)
    second = machine.pid()
    machine.send(on_card(), w1=Residency.ASLEEP_1)
    wait_until(lambda: "can't sleep" in getattr(machine.worker(), "reason", ""), "the reason is told")
    assert machine.pid() == second


@pytest.mark.parametrize("fault", ["refuse_wake", "hang_on_wake", "bad_wake"], ids=["refused", "hung", "other answers"])
def test_a_wake_that_fails_ends_the_engine_and_the_worker_starts_anew(machine: Machine, fault: str) -> None:
    started(machine, settings={"HOSTLER_WAKE_SECONDS": "3"})
    engine = machine.pid()
    put_to_sleep(machine)
    machine.add_model(residual_mib=RESIDUAL, faults={fault: True})
    wait_until(lambda: stats(machine)["simulation"]["faults"][fault], "the order is read")
    machine.send(on_card())
    wait_until_recycled(machine, engine, FailureKind.WAKE_FAILED)
    assert machine.ask_engine() == 200


def test_what_failed_is_not_tried_with_another_worker_of_the_same_model(machine: Machine) -> None:
    machine.add_model(residual_mib=RESIDUAL, claim_mib=3000, faults={"refuse_sleep": True})
    machine.start()
    pair = [spec(name, gpus=(GPU,), gpu_memory_mib=3000) for name in ("w1", "w2")]
    machine.send(*pair)
    machine.wait_for(WorkerState.READY, "w1")
    assert machine.wait_for(WorkerState.READY, "w2").can_sleep
    machine.send(*pair, w1=Residency.ASLEEP_1)
    wait_until(lambda: not getattr(machine.worker("w2"), "can_sleep", True), "the other one is told", seconds=30)
    other = machine.worker("w2")
    assert other is not None
    assert (other.state, other.restarts) == (WorkerState.READY, 0)


def test_a_wake_waits_for_the_memory(machine: Machine, host: SimulatedHost) -> None:
    started(machine)
    engine = machine.pid()
    put_to_sleep(machine)
    host.add_foreign(GPU, TOTAL - RESIDUAL - 100)
    machine.send(on_card())
    wait_until(lambda: "can't wake yet" in getattr(machine.worker(), "reason", ""), "the reason is told", seconds=15)
    host.clear_foreign()
    machine.wait_for(WorkerState.READY)
    assert machine.pid() == engine


def test_another_worker_gets_the_memory_of_one_that_sleeps(machine: Machine, host: SimulatedHost) -> None:
    started(machine)
    second = spec("w2", gpus=(GPU,), gpu_memory_mib=PROMISE)
    machine.send(on_card(), second, w1=Residency.ASLEEP_1)
    machine.wait_for(WorkerState.READY, "w2")
    first = machine.worker("w1")
    assert first is not None
    assert first.state is WorkerState.ASLEEP
    assert host.used_mib(GPU) == PROMISE + RESIDUAL


def test_an_engine_with_requests_is_not_told_to_sleep(machine: Machine) -> None:
    started(machine, tokens_per_second=20, answer_tokens=40)
    socket = machine.folder / "run" / "engines" / "w1" / "engine.sock"
    body = {"model": "tiny", "prompt": "a", "max_tokens": 40, "stream": True}
    with (
        httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://engine", timeout=20) as client,
        client.stream("POST", "/v1/completions", json=body) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        machine.send(on_card(), w1=Residency.ASLEEP_1)
        machine.wait_for(WorkerState.SLEEPING)
        rest = "".join(lines)
    assert '"abort"' not in rest
    assert rest.endswith("[DONE]")
    machine.wait_for(WorkerState.ASLEEP)


def test_a_sleeper_that_is_no_longer_wanted_is_stopped(machine: Machine, host: SimulatedHost) -> None:
    started(machine)
    engine = machine.pid()
    put_to_sleep(machine)
    proofs = machine.folder / "run" / "manager" / "proofs"
    assert len(list(proofs.iterdir())) == 1
    machine.send()
    machine.wait_until_gone()
    assert not is_running(engine)
    assert host.live_claims() == []
    assert list(proofs.iterdir()) == []


def test_a_new_manager_finds_a_sleeper_and_leaves_it_asleep(machine: Machine, host: SimulatedHost) -> None:
    started(machine)
    engine = machine.pid()
    put_to_sleep(machine, Residency.ASLEEP_2)
    assert machine.manager is not None
    machine.manager.signal(signal.SIGKILL)
    machine.start()
    (found,) = machine.observed().workers  # the first picture is whole: the gateway never sees it otherwise
    assert (found.state, found.residency) == (WorkerState.ASLEEP, Residency.ASLEEP_2)
    machine.send(on_card(), w1=Residency.ASLEEP_2)
    assert machine.wait_for(WorkerState.ASLEEP).can_sleep
    assert host.used_mib(GPU) == RESIDUAL
    awake_again(machine)
    assert machine.pid() == engine


@pytest.mark.parametrize("kept", [False, True], ids=["memory back", "memory kept"])
def test_a_manager_killed_while_an_engine_falls_asleep_converges(
    machine: Machine, host: SimulatedHost, *, kept: bool
) -> None:
    started(machine, sleep_seconds=1.5, faults={"memory_not_returned": kept})
    engine = machine.pid()
    machine.send(on_card(), w1=Residency.ASLEEP_1)
    wait_until(lambda: stats(machine)["sleep_level"] == 1, "the engine was told", interval=0.02)
    assert machine.manager is not None
    machine.manager.signal(signal.SIGKILL)
    machine.start()
    machine.send(on_card(), w1=Residency.ASLEEP_1)
    if kept:
        wait_until(lambda: not is_running(engine), "the engine was ended", seconds=30, interval=0.05)
        assert "it failed before" in machine.wait_for(WorkerState.WAITING).no_sleep_reason
    else:
        machine.wait_for(WorkerState.ASLEEP)
        assert machine.pid() == engine
        assert host.used_mib(GPU) == RESIDUAL


@pytest.mark.parametrize("wrong", [False, True], ids=["same answers", "other answers"])
def test_a_manager_killed_while_an_engine_wakes_proves_the_wake_afterwards(machine: Machine, *, wrong: bool) -> None:
    started(machine, wake_seconds=1.5)
    engine = machine.pid()
    put_to_sleep(machine)
    machine.add_model(wake_seconds=1.5, residual_mib=RESIDUAL, faults={"bad_wake": wrong})
    wait_until(lambda: stats(machine)["simulation"]["faults"]["bad_wake"] is wrong, "the order is read")
    machine.send(on_card())
    wait_until(lambda: stats(machine)["paths"].get("/wake_up"), "the engine was told", interval=0.02)
    assert machine.manager is not None
    machine.manager.signal(signal.SIGKILL)
    machine.start()
    machine.send(on_card())
    if wrong:
        wait_until_recycled(machine, engine, FailureKind.WAKE_FAILED)
    else:
        assert machine.wait_for(WorkerState.READY).can_sleep
        assert machine.pid() == engine


@pytest.mark.parametrize(
    ("change", "orders", "settings", "words"),
    [
        ({}, {"version": "0.16.2"}, {}, "0.16.2"),
        ({"args": {"kv-cache-dtype": "fp8"}}, {}, {}, "fp8"),
        ({}, {}, {"HOSTLER_SLEEP": "0"}, "HOSTLER_SLEEP"),
    ],
    ids=["version", "flag", "setting"],
)
def test_an_engine_that_is_known_not_to_sleep_well_is_left_hot(
    machine: Machine, change: dict[str, Any], orders: dict[str, Any], settings: dict[str, str], words: str
) -> None:
    machine.add_model(**orders)
    machine.start(**settings)
    machine.send(on_card(**change), w1=Residency.ASLEEP_1)
    ready = machine.wait_for(WorkerState.WAITING)  # nothing is started in order to sleep
    machine.send(on_card(**change))
    ready = machine.wait_for(WorkerState.READY)
    assert not ready.can_sleep
    assert words in ready.no_sleep_reason
    machine.send(on_card(**change), w1=Residency.ASLEEP_1)
    wait_until(lambda: "can't sleep" in getattr(machine.worker(), "reason", ""), "the reason is told")
    assert stats(machine)["sleep_level"] == 0
    assert "/sleep" not in stats(machine)["paths"]
    assert json.dumps(stats(machine)["paths"]).count("wake") == 0
