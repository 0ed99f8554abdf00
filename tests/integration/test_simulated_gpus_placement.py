"""Two simulated GPUs and three endpoints of one GPU each: all are served, and no card is promised twice."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from tests.engine_simulator.configuration import Simulation
from tests.support.processes import REPOSITORY, short_folder
from tests.support.stack import ADMIN_KEY, Stack, bearer, chat, running_stack
from tests.support.waiting import wait_until
from tests.testbed.simulated_gpus.host import SimulatedHost, cards

CHAT = "/v1/chat/completions"
TOTAL_MIB = 8192
MARGIN_MIB = 512
NAMES = ("one", "two", "three")
QUICK = Simulation(load_seconds=0.1, answer_tokens=8)
WAIT_SECONDS = 60


class Machine:
    """A Hostler on a machine with two simulated cards."""

    def __init__(self, stack: Stack, host: SimulatedHost) -> None:
        self.stack = stack
        self.host = host
        self.uuids = [card.uuid for card in cards(2, TOTAL_MIB)]

    def ask(self, name: str) -> httpx.Response:
        """One request."""
        return self.stack.client.post(CHAT, json=chat(name), timeout=WAIT_SECONDS)

    def gpus(self, name: str) -> list[str]:
        """The cards of an endpoint's only worker, as the manager placed it."""
        [worker] = [found for found in self.stack.workers() if found["spec"]["endpoint"] == name]
        return list(worker["spec"]["gpus"])

    def clear(self) -> None:
        """Take all endpoints away and wait until the cards are empty."""
        for name in (one["name"] for one in self.stack.client.get("/api/endpoints").json()):
            self.stack.client.delete(f"/api/endpoints/{name}")
        wait_until(lambda: not self.stack.workers(), "all workers are gone", seconds=20)
        wait_until(lambda: not self.host.live_claims(), "all cards are empty")


@pytest.fixture(scope="module")
def running() -> Iterator[Machine]:
    with short_folder() as folder:
        host = SimulatedHost.create(folder / "gpus", cards(2, TOTAL_MIB))
        settings = {
            "HOSTLER_DEVICE": "cuda",
            "HOSTLER_GPU_MARGIN_MIB": str(MARGIN_MIB),
            # engines inherit little: what they need beside is named
            "HOSTLER_ENGINE_ENV": f"PYTHONPATH={REPOSITORY} HOSTLER_SIMULATED_GPUS={host.folder}",
            **host.env,
        }
        with running_stack(settings) as stack:
            yield Machine(stack, host)


@pytest.fixture
def machine(running: Machine) -> Iterator[Machine]:
    yield running
    running.host.clear_foreign()
    running.clear()


class Sampler:
    """Looks at promises and memory all the time, and keeps what must never be seen."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler")
        self.wrongs: list[str] = []
        self.samples = 0
        self.most: Counter[str] = Counter()
        """MiB that engines really held at most, by card."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        with httpx.Client(base_url=self._machine.stack.address, headers=bearer(ADMIN_KEY), timeout=10) as client:
            while not self._stop.wait(0.01):
                self._look(client.get("/api/workers").json())
                self.samples += 1

    def _look(self, workers: list[dict[str, Any]]) -> None:
        promised: Counter[str] = Counter()
        for worker in workers:
            if worker["state"] not in {"failed", "waiting"}:
                promised.update(dict.fromkeys(worker["spec"]["gpus"], worker["spec"]["gpu_memory_mib"]))
        for uuid in self._machine.uuids:
            held = self._machine.host.used_mib(uuid)
            if promised[uuid] > TOTAL_MIB - MARGIN_MIB or held > TOTAL_MIB:
                self.wrongs.append(f"{uuid}: {promised[uuid]} MiB promised, {held} MiB held")
            self.most[uuid] = max(self.most[uuid], round(held))


def test_requests_to_three_whole_card_endpoints_on_two_cards_are_all_served(machine: Machine) -> None:
    for name in NAMES:
        machine.stack.endpoint(name, QUICK, gpus=1)
    with Sampler(machine) as sampler, ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(machine.ask, NAMES * 3))
    assert [answer.status_code for answer in answers] == [200] * 9, [answer.text for answer in answers]
    assert not sampler.wrongs
    assert sampler.samples > 10
    assert all(sampler.most[uuid] for uuid in machine.uuids), "both cards were used"


def test_an_engine_sees_the_card_it_was_promised_and_no_other(machine: Machine) -> None:
    for name in NAMES[:2]:
        machine.stack.endpoint(name, QUICK, gpus=1)
        assert machine.ask(name).status_code == 200
    placed = {name: machine.gpus(name) for name in NAMES[:2]}
    assert sorted(card for cards_of_one in placed.values() for card in cards_of_one) == sorted(machine.uuids)
    for name in NAMES[:2]:
        worker = machine.stack.status(name)["workers"][0]["id"]
        pid = machine.stack.engine_stats(worker)["pid"]
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert f"CUDA_VISIBLE_DEVICES={placed[name][0]}".encode() in environment
        assert [claim.uuid for claim in machine.host.live_claims() if claim.pid == pid] == placed[name]


def test_endpoints_that_fit_share_a_card_and_all_stay_hot(machine: Machine) -> None:
    for name in (*NAMES, "four"):
        machine.stack.endpoint(name, QUICK, gpus=1, gpu_memory_gib=3.5)
    with Sampler(machine) as sampler, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(machine.ask, (*NAMES, "four")))
    assert [answer.status_code for answer in answers] == [200] * 4, [answer.text for answer in answers]
    assert not sampler.wrongs
    assert Counter(machine.gpus(name)[0] for name in (*NAMES, "four")) == dict.fromkeys(machine.uuids, 2)


def test_a_worker_goes_to_the_card_that_no_other_program_holds(machine: Machine) -> None:
    machine.host.add_foreign(machine.uuids[0], TOTAL_MIB - 1024)
    machine.stack.endpoint("one", QUICK, gpus=1, gpu_memory_gib=4)
    assert machine.ask("one").status_code == 200
    assert machine.gpus("one") == [machine.uuids[1]]


def test_a_worker_waits_while_other_programs_hold_both_cards_and_starts_when_they_end(machine: Machine) -> None:
    for uuid in machine.uuids:
        machine.host.add_foreign(uuid, TOTAL_MIB - 1024)

    def foreign() -> list[int]:
        return [gpu["memory_foreign_mib"] for gpu in machine.stack.client.get("/api/host").json()["gpus"]]

    wait_until(lambda: min(foreign()) >= TOTAL_MIB - 1024, "the manager sees them", seconds=20)
    machine.stack.endpoint("one", QUICK, gpus=1, gpu_memory_gib=4)
    refused = machine.stack.client.post(CHAT, json=chat("one"), headers={"x-hostler-timeout": "0.5"})
    assert refused.status_code == 503
    assert not machine.stack.workers()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(machine.ask, "one")
        wait_until(lambda: machine.stack.status("one")["waiting"] == 1, "the request waits")
        wait_until(lambda: "MiB" in machine.stack.status("one")["reason"], "the reason is told")
        machine.host.clear_foreign()
        assert waiting.result(WAIT_SECONDS).status_code == 200
