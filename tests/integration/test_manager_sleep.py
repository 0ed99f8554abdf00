"""A real manager lets simulated engines on simulated GPUs sleep and wakes them: the proofs, and what follows if not."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.support.adapters import adapter_folder
from tests.support.machine import Machine, is_running, spec
from tests.support.processes import REPOSITORY, short_folder
from tests.support.waiting import wait_until
from tests.testbed.simulated_gpus.host import SimulatedHost, cards
from worker_manager.contract import (
    Adapter,
    AdapterState,
    DesiredSet,
    FailureKind,
    LoraRoom,
    ObservedWorker,
    Residency,
    WorkerSpec,
    WorkerState,
)

TOTAL = 10_000
CARDS = cards(1, TOTAL)
GPU = CARDS[0].uuid
PROMISE, RESIDUAL = 6000, 1000
SMALL, SMALL_RESIDUAL = 2400, 200
"""For workers that share the card."""

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


def on_card(worker: str = "w1", promise: int = PROMISE, **change: Any) -> WorkerSpec:
    return spec(worker, gpus=(GPU,), gpu_memory_mib=promise, **change)


def started(machine: Machine, **orders: Any) -> ObservedWorker:
    """One worker, ready; `orders` are for its engine."""
    machine.add_model(residual_mib=RESIDUAL, claim_mib=PROMISE, **orders)
    machine.start()
    machine.send(on_card())
    return machine.wait_for(WorkerState.READY)


def side_by_side(machine: Machine, orders: dict[str, dict[str, Any]]) -> list[WorkerSpec]:
    """Workers that share the card, each with a model and orders of its own, by id; all of them ready."""
    specs = []
    for worker, order in orders.items():
        machine.add_model(worker, residual_mib=SMALL_RESIDUAL, claim_mib=SMALL, **order)
        specs.append(on_card(worker, SMALL, model=f"local/{worker}"))
    machine.send(*specs)
    for worker in orders:
        assert machine.wait_for(WorkerState.READY, worker).no_sleep_reason == ""
    return specs


def put_to_sleep(machine: Machine, level: Residency = Residency.ASLEEP_1) -> ObservedWorker:
    machine.send(on_card(), w1=level)
    return machine.wait_for(WorkerState.ASLEEP)


def stats(machine: Machine, worker: str = "w1") -> dict[str, Any]:
    socket = machine.folder / "run" / "engines" / worker / "engine.sock"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://engine") as client:
        found: dict[str, Any] = client.get("/simulator/stats", timeout=20).json()
        return found


def order(machine: Machine, worker: str, **orders: Any) -> None:
    """Give a running engine its orders anew, and wait until it has read them."""
    model = machine.worker(worker)
    assert model is not None
    machine.add_model(model.spec.model.rpartition("/")[2], claim_mib=model.spec.gpu_memory_mib, **orders)
    faults = orders.get("faults", {})
    wait_until(lambda: faults.items() <= stats(machine, worker)["simulation"]["faults"].items(), "the order is read")


def wait_until_it_says(machine: Machine, worker: str, words: str) -> None:
    wait_until(lambda: words in getattr(machine.worker(worker), "reason", ""), f"{worker} says: {words}", seconds=30)


def wait_until_told(machine: Machine, worker: str, kind: FailureKind) -> None:
    def told() -> bool:
        seen = machine.worker(worker)
        return seen is not None and seen.failure is not None and seen.failure.kind is kind

    wait_until(told, f"the failure of {worker} is told", seconds=30, interval=0.05)


def wait_until_ended(engine: int) -> None:
    wait_until(lambda: not is_running(engine), "the engine was ended", seconds=40, interval=0.05)


def assert_recycled(machine: Machine, worker: str, first: int, kind: FailureKind) -> None:
    """It is ready with another process, tells the failure that ended the first, and does not sleep again."""
    ready = machine.wait_for(WorkerState.READY, worker)
    assert machine.pid(worker) != first
    assert ready.failure is not None
    assert ready.failure.kind is kind
    assert not ready.can_sleep
    assert "it failed before" in ready.no_sleep_reason
    assert ready.restarts == 0


def test_sleep_gives_the_memory_back_and_the_same_engine_wakes_with_the_same_answers(
    machine: Machine, host: SimulatedHost
) -> None:
    machine.start()
    levels = {"w1": Residency.ASLEEP_1, "w2": Residency.ASLEEP_2}
    specs = side_by_side(machine, {worker: {"sleep_seconds": 0.1, "wake_seconds": 0.1} for worker in levels})
    engines = {worker: (machine.pid(worker), stats(machine, worker)["seed"]) for worker in levels}
    wait_until(lambda: getattr(machine.worker(), "memory_mib", None) == SMALL, "what it holds is shown")

    machine.send(*specs, **levels)
    for worker, level in levels.items():
        asleep = machine.wait_for(WorkerState.ASLEEP, worker)
        assert asleep.residency is level
        assert asleep.sleep is not None
        assert asleep.sleep.freed_mib == SMALL - SMALL_RESIDUAL
        assert asleep.sleep.sleep_seconds is not None
        assert asleep.sleep.sleep_seconds >= 0.1
    assert host.used_mib(GPU) == 2 * SMALL_RESIDUAL
    wait_until(lambda: getattr(machine.worker(), "memory_mib", None) == SMALL_RESIDUAL, "what it still holds is shown")

    machine.send(*specs)
    for worker in levels:
        awake = machine.wait_for(WorkerState.READY, worker)
        assert awake.residency is Residency.HOT
        assert awake.sleep is not None
        assert awake.sleep.wake_seconds is not None
        assert (machine.pid(worker), stats(machine, worker)["seed"]) == engines[worker]
    assert host.used_mib(GPU) == 2 * SMALL


def wait_until_nothing_is_held(machine: Machine, worker: str) -> None:
    def nothing() -> bool:
        seen = machine.worker(worker)
        return seen is not None and seen.memory_mib is None

    wait_until(nothing, f"the next reading of the cards shows nothing of {worker}")


def test_a_sleep_that_fails_ends_the_engine_and_is_not_tried_again(machine: Machine) -> None:
    machine.start(HOSTLER_SLEEP_SECONDS="8")
    faults = {"refused": "refuse_sleep", "hung": "hang_on_sleep", "kept": "memory_not_returned"}
    specs = side_by_side(machine, {worker: {"faults": {fault: True}} for worker, fault in faults.items()})
    engines = {worker: machine.pid(worker) for worker in faults}
    asleep = dict.fromkeys(faults, Residency.ASLEEP_1)
    machine.send(*specs, **asleep)
    for worker, engine in engines.items():
        wait_until_ended(engine)
        # the memory is wanted by somebody else: nothing is started in order to sleep
        wait_until_told(machine, worker, FailureKind.SLEEP_FAILED)
        machine.wait_for(WorkerState.WAITING, worker)
        wait_until_nothing_is_held(machine, worker)
    machine.send(*specs)
    for worker, engine in engines.items():
        assert_recycled(machine, worker, engine, FailureKind.SLEEP_FAILED)
    second = {worker: machine.pid(worker) for worker in faults}
    machine.send(*specs, **asleep)
    for worker in faults:
        wait_until_it_says(machine, worker, "can't sleep")
    assert {worker: machine.pid(worker) for worker in faults} == second


def test_a_wake_that_fails_ends_the_engine_and_the_worker_starts_anew(machine: Machine) -> None:
    machine.start(HOSTLER_WAKE_SECONDS="4")
    faults = {"refused": "refuse_wake", "hung": "hang_on_wake", "other": "bad_wake", "embeds": "bad_wake"}
    kinds = {worker: "embed" if worker == "embeds" else "generate" for worker in faults}
    specs = side_by_side(machine, {worker: {"kind": kind} for worker, kind in kinds.items()})
    engines = {worker: machine.pid(worker) for worker in faults}
    machine.send(*specs, **dict.fromkeys(faults, Residency.ASLEEP_1))
    for worker, fault in faults.items():
        machine.wait_for(WorkerState.ASLEEP, worker)
        order(machine, worker, kind=kinds[worker], residual_mib=SMALL_RESIDUAL, faults={fault: True})
    machine.send(*specs)
    for worker, engine in engines.items():
        wait_until_ended(engine)
        assert_recycled(machine, worker, engine, FailureKind.WAKE_FAILED)


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


@pytest.mark.parametrize("kept", [False, True], ids=["memory back", "memory kept"])
def test_where_nvml_tells_no_processes_the_cards_total_proves_the_sleep(
    machine: Machine, host: SimulatedHost, *, kept: bool
) -> None:
    machine.add_model(residual_mib=RESIDUAL, claim_mib=PROMISE, faults={"memory_not_returned": kept})
    host.add_foreign(GPU, 700)
    machine.start(HOSTLER_SIMULATED_GPUS_HIDE_PROCESSES="1")
    machine.send(on_card())
    assert machine.wait_for(WorkerState.READY).memory_mib is None
    engine = machine.pid()
    machine.send(on_card(), w1=Residency.ASLEEP_1)
    if kept:
        wait_until_ended(engine)
        failed = machine.wait_for(WorkerState.WAITING)
        assert f"only 0 of {PROMISE + 700} MiB came back" in failed.no_sleep_reason
        return
    asleep = machine.wait_for(WorkerState.ASLEEP)
    assert asleep.sleep is not None
    assert asleep.sleep.freed_mib == PROMISE - RESIDUAL
    machine.send(on_card())
    machine.wait_for(WorkerState.READY)
    assert machine.pid() == engine


def test_an_engine_that_does_not_start_with_sleep_mode_starts_without_it(machine: Machine) -> None:
    ready = started(machine, faults={"crash_with_sleep_mode": True})
    assert "cumem_allocator" in ready.no_sleep_reason
    assert list(ready.broken_sleep) == [Residency.ASLEEP_1]
    assert ready.failure is not None
    assert (ready.failure.kind, ready.restarts) == (FailureKind.SLEEP_FAILED, 0)
    assert not starts_with_sleep_mode(machine)


def test_a_worker_that_must_not_sleep_is_started_without_sleep_mode(machine: Machine) -> None:
    machine.add_model(residual_mib=RESIDUAL, claim_mib=PROMISE)
    machine.start()
    why = "it failed before: under an earlier manager"
    machine.put(DesiredSet(generation=1, workers=(on_card(),), sleepless={"w1": why}))
    ready = machine.wait_for(WorkerState.READY)
    assert (ready.can_sleep, ready.no_sleep_reason) == (False, why)
    assert not starts_with_sleep_mode(machine)


def starts_with_sleep_mode(machine: Machine, worker: str = "w1") -> bool:
    """Whether the engine that runs was given the flag."""
    return "--enable-sleep-mode" in Path(f"/proc/{machine.pid(worker)}/cmdline").read_text().split("\0")


def test_a_wake_waits_for_the_memory(machine: Machine, host: SimulatedHost) -> None:
    started(machine)
    engine = machine.pid()
    put_to_sleep(machine)
    host.add_foreign(GPU, TOTAL - RESIDUAL - 100)
    machine.send(on_card())
    wait_until_it_says(machine, "w1", "can't wake yet")
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
    machine.send(on_card())
    machine.wait_for(WorkerState.READY)
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
        wait_until_ended(engine)
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
    order(machine, "w1", wake_seconds=1.5, residual_mib=RESIDUAL, faults={"bad_wake": wrong})
    machine.send(on_card())
    wait_until(lambda: stats(machine)["paths"].get("/wake_up"), "the engine was told", interval=0.02)
    assert machine.manager is not None
    machine.manager.signal(signal.SIGKILL)
    machine.start()
    machine.send(on_card())
    if wrong:
        wait_until_ended(engine)
        assert_recycled(machine, "w1", engine, FailureKind.WAKE_FAILED)
    else:
        assert machine.wait_for(WorkerState.READY).can_sleep
        assert machine.pid() == engine


def test_an_engine_that_is_known_not_to_sleep_well_is_left_hot(machine: Machine) -> None:
    machine.add_model("old", version="0.16.2")
    machine.add_model("flag")
    specs = [
        on_card("old", SMALL, model="local/old"),
        on_card("flag", SMALL, model="local/flag", args={"kv-cache-dtype": "fp8"}),
    ]
    asleep = {"old": Residency.ASLEEP_1, "flag": Residency.ASLEEP_1}
    machine.start()
    machine.send(*specs, **asleep)
    machine.wait_for(WorkerState.WAITING, "old")  # nothing is started in order to sleep
    machine.send(*specs)
    for worker, word in (("old", "0.16.2"), ("flag", "fp8")):
        ready = machine.wait_for(WorkerState.READY, worker)
        assert not ready.can_sleep
        assert word in ready.no_sleep_reason
    machine.send(*specs, **asleep)
    for worker in asleep:
        wait_until_it_says(machine, worker, "can't sleep")
        assert stats(machine, worker)["sleep_level"] == 0
        assert not {"/sleep", "/wake_up"} & stats(machine, worker)["paths"].keys()


def test_what_slept_has_its_adapters_loaded_again_by_whichever_manager_and_is_not_put_to_level_2(
    machine: Machine,
) -> None:
    red = Adapter(name="red", path="local/red", revision="a1", rank=8)
    adapter_folder(machine.folder / "models" / "local" / "red")
    machine.add_model(residual_mib=RESIDUAL, claim_mib=PROMISE)
    machine.start()
    wanted = DesiredSet(generation=1, workers=(on_card(lora=LoraRoom()),), adapters={"w1": (red,)})

    def order(generation: int, **residencies: Residency) -> None:
        fresh = msgspec.structs.replace(wanted, generation=generation, residencies=residencies)
        assert machine.put(fresh).status_code == 200

    def has_it() -> bool:
        seen = machine.worker()
        return seen is not None and [one.state for one in seen.adapters] == [AdapterState.READY]

    order(1)
    wait_until(has_it, "it has the adapter", seconds=30)
    assert machine.wait_for(WorkerState.READY).can_sleep
    assert not machine.wait_for(WorkerState.READY).can_sleep_deep
    order(2, w1=Residency.ASLEEP_1)
    assert [one.state for one in machine.wait_for(WorkerState.ASLEEP).adapters] == [AdapterState.LOADING]
    assert stats(machine)["adapters"] == {}, "a manager that finds it awake can't take them for good"
    machine.start()
    order(3)
    wait_until(has_it, "it has the adapter again", seconds=30)
    assert stats(machine)["paths"]["/v1/load_lora_adapter"] == 2
