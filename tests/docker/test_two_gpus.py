"""Endpoints on a machine with two simulated GPUs, through both compose files as they stand: sharing, turns, changes."""

import asyncio
import contextlib
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from tests.engine_simulator.configuration import Faults, Simulation
from tests.support.compose import ROOT, ComposeStack, compose_stack
from tests.support.hostler import bearer
from tests.support.steady_load import SteadyLoad
from tests.support.waiting import wait_until, wait_until_async
from tests.testbed.simulated_gpus.host import SYSTEM_FOLDER, SimulatedHost, cards
from worker_manager.contract import GPU_CONTEXT_MIB

pytestmark = pytest.mark.timeout(180)

HOOK = Path("/usr/local/bin/nvidia-container-runtime-hook")
CARDS = cards(2)
NAMES = ("one", "two", "three")
LOOK_SECONDS = 0.05
TOKENS = 12
QUICK = Simulation(load_seconds=0.3, answer_tokens=TOKENS)


@pytest.fixture(scope="module")
def host() -> SimulatedHost:
    stand_in = (ROOT / "tests" / "testbed" / "nvidia_hook_stand_in").read_bytes()
    if os.geteuid() != 0 or not HOOK.is_file() or HOOK.read_bytes() != stand_in or not shutil.which("gcc"):
        pytest.skip("this machine is no simulated GPU host: run tests/testbed/simulated_gpus.sh as root")
    return SimulatedHost.create(SYSTEM_FOLDER, CARDS)


@pytest.fixture(scope="module")
def stack(host: SimulatedHost) -> Iterator[ComposeStack]:
    assert host.live_claims() == []
    with compose_stack(gpu=True, HOSTLER_STOP_SECONDS="5", HOSTLER_ENGINE_MEMORY_GIB="1") as found:
        yield found


class Witness:
    """Looks at promises and at memory that is really held, over and over, in the background."""

    def __init__(self, stack: ComposeStack, host: SimulatedHost) -> None:
        self.looks = 0
        self.overfull: list[str] = []
        self.most_workers = 0
        self._stack = stack
        self._host = host
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._thread.join(30)

    def _watch(self) -> None:
        with httpx.Client(base_url=self._stack.address, headers=bearer(self._stack.key), timeout=10) as client:
            while not self._over.wait(LOOK_SECONDS):
                self._look(client.get("/api/workers").json())

    def _look(self, workers: list[dict[str, Any]]) -> None:
        promised: Counter[str] = Counter()
        for worker in workers:
            for uuid in worker["spec"]["gpus"] if worker["state"] != "failed" else ():
                promised[uuid] += worker["spec"]["gpu_memory_mib"]
        held: Counter[str] = Counter()
        for claim in self._host.live_claims():
            held[claim.uuid] += round(claim.memory_mib)
        for what, sums in (("promised", promised), ("held", held)):
            for card in CARDS:
                if sums[card.uuid] > card.memory_total_mib:
                    self.overfull.append(f"{what}: {sums[card.uuid]} MiB of {card.uuid}: {workers}")
        self.looks += 1
        self.most_workers = max(self.most_workers, len(workers))


@contextlib.contextmanager
def endpoints(stack: ComposeStack, *names: str, **fields: Any) -> Iterator[None]:
    """Endpoints for the length of a test."""
    for name in names:
        stack.endpoint(name, QUICK, gpus=1, **fields)
    try:
        yield
    finally:
        for name in names:
            stack.client.delete(f"/api/endpoints/{name}")
        wait_until(lambda: not stack.project.engines(), "all engines are gone", seconds=30, interval=0.1)


def change(stack: ComposeStack, **fields: Any) -> None:
    stack.client.patch("/api/endpoints/rolling", json=fields).raise_for_status()


def changed(stack: ComposeStack) -> dict[str, Any]:
    """What the endpoint says of a change that does not hold."""
    return stack.status("rolling")["change"] or {"state": ""}


def workers_of(stack: ComposeStack) -> set[str]:
    return {worker["id"] for worker in stack.status("rolling")["workers"]}


def ask_all(stack: ComposeStack) -> list[httpx.Response]:
    """One request for each endpoint, all at once."""
    with ThreadPoolExecutor(len(NAMES)) as threads:
        return list(threads.map(lambda name: stack.ask(name, max_tokens=4), NAMES))


def assert_devices(stack: ComposeStack) -> None:
    """Each container was given exactly the cards that its worker was promised."""
    engines = stack.project.engines()
    workers = {worker["spec"]["id"]: worker["spec"]["gpus"] for worker in stack.workers()}
    assert engines
    assert engines.keys() == workers.keys()
    for worker, engine in engines.items():
        (request,) = engine["HostConfig"]["DeviceRequests"]
        assert (request["Driver"], request["Capabilities"]) == ("nvidia", [["gpu"]])
        assert request["DeviceIDs"] == workers[worker]
        assert len(request["DeviceIDs"]) == 1
        assert f"NVIDIA_VISIBLE_DEVICES={request['DeviceIDs'][0]}" in engine["Config"]["Env"] + environment(engine)


def environment(engine: dict[str, Any]) -> list[str]:
    """What the engine's process finds in its environment: Docker adds the devices at the start."""
    return Path(f"/proc/{engine['State']['Pid']}/environ").read_text().split("\0")


def test_the_manager_sees_both_cards_through_nvml(stack: ComposeStack) -> None:
    facts = stack.client.get("/api/host").json()
    assert facts["device"] == "cuda"
    assert [(gpu["index"], gpu["uuid"], gpu["name"], gpu["memory_total_mib"]) for gpu in facts["gpus"]] == [
        (card.index, card.uuid, card.name, card.memory_total_mib) for card in CARDS
    ]


def test_three_small_endpoints_share_two_cards(stack: ComposeStack, host: SimulatedHost) -> None:
    with endpoints(stack, *NAMES, gpu_memory_gib=10), Witness(stack, host) as witness:
        answers = ask_all(stack)
        assert [answer.status_code for answer in answers] == [200] * 3, [answer.text for answer in answers]
        assert_devices(stack)
        assert len(stack.project.engines()) == 3
        assert {claim.uuid for claim in host.live_claims()} == {card.uuid for card in CARDS}
        # what CUDA itself holds is part of the promise and not the engine's to take
        assert [round(claim.memory_mib, -1) for claim in host.live_claims()] == [round(10240 - GPU_CONTEXT_MIB, -1)] * 3
        used = {gpu["uuid"]: gpu["memory_used_mib"] for gpu in stack.client.get("/api/host").json()["gpus"]}
        assert sorted(used) == sorted(card.uuid for card in CARDS)
        wait_until(lambda: witness.looks > 3, "some looks")
    assert witness.overfull == []
    assert witness.most_workers == 3


async def test_a_change_moves_to_the_other_card_and_one_that_fails_moves_nothing_while_requests_go_on(
    stack: ComposeStack, host: SimulatedHost
) -> None:
    with endpoints(stack, "rolling", per_worker=64), Witness(stack, host) as witness:
        old = stack.ask("rolling").headers["x-hostler-worker"]
        async with SteadyLoad(stack, "rolling", TOKENS).running() as load:
            await load.goes_on()
            change(stack, engine_args={"max-num-seqs": 99})
            await wait_until_async(lambda: old not in workers_of(stack), "the old worker is gone", seconds=60)
            load.phase = 1
            await load.goes_on()
            (new,) = workers_of(stack)
            stack.model("broken", Simulation(faults=Faults(crash_at_load="missing_model")))
            change(stack, model="local/broken")
            await wait_until_async(lambda: changed(stack)["state"] == "rolled_back", "it is rolled back", seconds=60)
            await wait_until_async(lambda: workers_of(stack) == {new}, "the failed one is gone", seconds=60)
            await load.goes_on()
        assert load.workers_of[1] == {new}
        assert changed(stack)["failure"]["kind"] == "model_missing"
        await asyncio.to_thread(assert_devices, stack)
    assert witness.overfull == []


def test_three_endpoints_of_a_whole_card_each_take_turns(stack: ComposeStack, host: SimulatedHost) -> None:
    with endpoints(stack, *NAMES), Witness(stack, host) as witness:
        began = time.monotonic()
        answers = ask_all(stack)
        assert [answer.status_code for answer in answers] == [200] * 3, [answer.text for answer in answers]
        assert_devices(stack)
        again = ask_all(stack)
        assert [answer.status_code for answer in again] == [200] * 3, [answer.text for answer in again]
        assert time.monotonic() - began < 90
    assert witness.overfull == []
    assert witness.most_workers <= 3
    assert witness.looks > 10
    stack.wait_for_agreement()
    assert stack.project.faults() == []
    assert host.live_claims() == []
