"""GPU time and energy through a real gateway and manager on a simulated GPU host: who held the card pays for it."""

import csv
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine_simulator.configuration import Simulation
from tests.support.processes import REPOSITORY, short_folder
from tests.support.stack import Stack, running_stack
from tests.support.waiting import wait_until
from tests.testbed.simulated_gpus.host import SimulatedHost, cards

[CARD] = cards(1, 8192)
WH_MJ = 3_600_000
KWH_PRICE = 0.25
CALM = Simulation(claim_mib=1000)
NOBODY = 4_000_000
"""A pid that no process has."""

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stub NVML is compiled with gcc")


@pytest.fixture(scope="module")
def host() -> Iterator[SimulatedHost]:
    with short_folder() as folder:
        yield SimulatedHost.create(folder / "gpus", [CARD])


@pytest.fixture(scope="module")
def stack(host: SimulatedHost) -> Iterator[Stack]:
    settings = {
        **host.env,
        "HOSTLER_DEVICE": "auto",
        "HOSTLER_ENGINE_ENV": f"PYTHONPATH={REPOSITORY} HOSTLER_SIMULATED_GPUS={host.folder}",
        "HOSTLER_STOP_SECONDS": "1",
        "HOSTLER_KWH_PRICE": str(KWH_PRICE),
    }
    with running_stack(settings) as started:
        yield started


def usage(stack: Stack) -> dict[str, dict[str, Any]]:
    """What each endpoint has had."""
    return {row["name"]: row for row in stack.client.get("/api/usage?by=endpoint").json()["rows"]}


def spend(stack: Stack, host: SimulatedHost, energy_mj: int) -> None:
    """The card uses energy, and then shows a change that the manager tells at once; until the gateway has seen both."""
    counter = host.spend(CARD.uuid, energy_mj)
    host.add_foreign(CARD.uuid, 1, pid=NOBODY)

    def is_seen() -> bool:
        [gpu] = stack.client.get("/api/host").json()["gpus"]
        return bool(gpu["energy_mj"] >= counter)

    wait_until(is_seen, "the energy is seen", seconds=30)


def test_a_shared_card_is_paid_for_in_parts_of_its_promises_and_a_restart_keeps_what_was_counted(
    stack: Stack, host: SimulatedHost
) -> None:
    stack.endpoint("small", CALM, gpus=1, gpu_memory_gib=1.5, price={"gpu_hour": 36}, min_workers=1)
    stack.endpoint("large", CALM, gpus=1, gpu_memory_gib=4.5, min_workers=1)
    for name in ("small", "large"):
        stack.wait_for_state(name, "hot", seconds=60)
    spend(stack, host, 4 * WH_MJ)
    rows = usage(stack)
    small, large = rows["small"], rows["large"]
    assert (small["energy_wh"], large["energy_wh"]) == (1.0, 3.0)
    assert (small["energy_cost"], large["energy_cost"]) == (0.00025, 0.00075)
    assert small["gpu_seconds"] > 0
    assert (small["requests"], large["gpu_cost"]) == (0, 0)
    assert small["gpu_cost"] == pytest.approx(small["gpu_seconds"] / 100, abs=1e-4)
    # the totals, since midnight may pass meanwhile
    days = stack.client.get("/api/usage?by=day").json()["total"]
    assert (days["energy_wh"], days["energy_cost"]) == (4.0, 0.001)
    days = stack.client.get("/api/usage?by=day&endpoint=large").json()["total"]
    assert (days["energy_wh"], days["requests"]) == (3.0, 0)
    table = stack.client.get("/api/usage?by=endpoint&format=csv").text.splitlines()
    assert {row["endpoint"]: row["energy_wh"] for row in csv.DictReader(table)} == {"small": "1.0", "large": "3.0"}

    stack.client.patch("/api/endpoints/small", json={"price": {"gpu_hour": 0}}).raise_for_status()
    paid = usage(stack)["small"]["gpu_cost"]
    assert paid >= small["gpu_cost"]
    assert stack.gateway is not None
    stack.gateway.signal(signal.SIGTERM)
    assert stack.gateway.wait(30) == 0
    stack.gateway.stop()
    stack.start_gateway()
    wait_until(stack.is_ready, "the gateway is ready")
    spend(stack, host, 4 * WH_MJ)
    again = usage(stack)["small"]
    assert (again["energy_wh"], again["gpu_cost"]) == (2.0, paid)
    assert again["gpu_seconds"] > small["gpu_seconds"]

    # no key holds a GPU
    stack.ask("small").raise_for_status()
    answer = stack.client.get("/api/usage").json()
    for row in (*answer["rows"], answer["total"]):
        assert [row[name] for name in ("gpu_seconds", "gpu_cost", "energy_wh", "energy_cost")] == [None] * 4
    [row] = stack.client.get("/api/usage?by=endpoint&key=admin").json()["rows"]
    assert (row["name"], row["requests"], row["gpu_seconds"]) == ("small", 1, None)
