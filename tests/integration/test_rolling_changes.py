"""Changes of how an endpoint is served, under load: with room for two workers and for one, that work and that fail."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine_simulator.configuration import Faults, Simulation
from tests.support.processes import REPOSITORY, short_folder
from tests.support.stack import Stack, running_stack
from tests.support.steady_load import SteadyLoad
from tests.support.waiting import wait_until, wait_until_async
from tests.testbed.simulated_gpus.host import SimulatedHost, cards

TOTAL_MIB = 8192
TWO_FIT, ONE_FITS = 3.0, 5.0
"""GiB of a worker on the one card."""
TOKENS = 12
QUICK = Simulation(load_seconds=0.1, answer_tokens=TOKENS)
SECONDS = 60.0


@pytest.fixture(scope="module")
def running() -> Iterator[Stack]:
    with short_folder() as folder:
        host = SimulatedHost.create(folder / "gpus", cards(1, TOTAL_MIB))
        settings = {
            "HOSTLER_DEVICE": "cuda",
            "HOSTLER_GPU_MARGIN_MIB": "512",
            "HOSTLER_ENGINE_ENV": f"PYTHONPATH={REPOSITORY} HOSTLER_SIMULATED_GPUS={host.folder}",
            **host.env,
        }
        with running_stack(settings) as stack:
            yield stack


@pytest.fixture
def stack(running: Stack) -> Iterator[Stack]:
    """One endpoint `first` at a time, hot, on a model that works."""
    yield running
    running.client.delete("/api/endpoints/first").raise_for_status()
    wait_until(lambda: not running.workers(), "all workers are gone", seconds=SECONDS)


def begin(stack: Stack, gib: float) -> str:
    """Have the endpoint hot; its worker."""
    stack.endpoint("first", QUICK, gpu_memory_gib=gib, per_worker=64)
    assert stack.ask("first").status_code == 200
    wait_until(lambda: serving(stack), "the first worker is proven")
    return serving(stack)


def serving(stack: Stack) -> str:
    """The one worker that gets requests; empty while there is none, or more than one."""
    ready = [
        one["id"]
        for one in stack.status("first")["workers"]
        if one["state"] == "ready" and not one["draining"] and not one["on_trial"]
    ]
    return str(ready[0]) if len(ready) == 1 else ""


def patch(stack: Stack, **change: Any) -> dict[str, Any]:
    answer = stack.client.patch("/api/endpoints/first", json=change)
    assert answer.status_code == 200, answer.text
    status: dict[str, Any] = answer.json()["status"]
    return status


@pytest.mark.parametrize("gib", [TWO_FIT, ONE_FITS])
async def test_of_a_change_that_works_no_request_notices_more_than_a_wait(stack: Stack, gib: float) -> None:
    old = begin(stack, gib)
    async with SteadyLoad(stack, "first", TOKENS).running() as load:
        await load.goes_on()
        patch(stack, engine_args={"max-num-seqs": 99})
        await wait_until_async(lambda: serving(stack) not in ("", old), "the new worker serves", seconds=SECONDS)
        new = serving(stack)
        load.phase = 1
        await load.goes_on()
        await wait_until_async(lambda: len(stack.status("first")["workers"]) == 1, "the old one is gone")
    assert load.workers_of[1] == {new}, "new requests go to the new worker only"
    assert stack.status("first")["change"] is None


@pytest.mark.parametrize("gib", [TWO_FIT, ONE_FITS])
async def test_after_a_change_that_fails_the_endpoint_is_served_as_before_and_says_why(
    stack: Stack, gib: float
) -> None:
    old = begin(stack, gib)
    stack.model("broken", Simulation(faults=Faults(crash_at_load="missing_model")))
    async with SteadyLoad(stack, "first", TOKENS).running() as load:
        await load.goes_on()
        patch(stack, model="local/broken")
        await wait_until_async(lambda: change(stack)["state"] == "rolled_back", "it is rolled back", seconds=SECONDS)
        await load.goes_on()
        assert {old} == set(load.workers) if gib == TWO_FIT else serving(stack)
    told = change(stack)
    assert told["changed"] == {"model": {"from": "local/first", "to": "local/broken"}}
    assert told["failure"]["kind"] == "model_missing"
    assert told["failure"]["hint"]
    status = stack.status("first")
    assert status["state"] == "hot"
    assert "the change of model was rolled back" in status["reason"]
    patch(stack, model="local/first")
    assert stack.status("first")["change"] is None


def change(stack: Stack) -> dict[str, Any]:
    """What the endpoint says of a change that does not hold."""
    return stack.status("first")["change"] or {"state": ""}


def test_a_worker_that_becomes_ready_and_answers_no_request_of_the_gateway_gets_none_of_users(stack: Stack) -> None:
    old = begin(stack, TWO_FIT)
    # the manager's ladder asks for one token: the gateway's own request is the second
    stack.model("frail", Simulation(load_seconds=0.1, faults=Faults(crash_after_requests=1)))
    patch(stack, model="local/frail")
    wait_until(lambda: change(stack)["state"] == "rolled_back", "it is rolled back", seconds=SECONDS)
    assert stack.ask("first").headers["x-hostler-worker"] == old


def test_a_restart_of_either_side_with_other_settings_touches_no_worker_and_no_roll_back(stack: Stack) -> None:
    worker = begin(stack, TWO_FIT)
    process = stack.engine_stats(worker)["pid"]
    stack.model("broken", Simulation(faults=Faults(crash_at_load="missing_model")))
    patch(stack, model="local/broken")
    wait_until(lambda: change(stack)["state"] == "rolled_back", "it is rolled back", seconds=SECONDS)
    patch(stack, idle_seconds=1800, priority=5, aliases=["nick"], labels={"a": "b"}, max_workers=2, per_worker=8)
    stack.env |= {"HOSTLER_QUEUE_SECONDS": "500", "HOSTLER_GPU_MARGIN_MIB": "600", "HOSTLER_LOAD_SECONDS": "500"}
    for side, start in ((stack.gateway, stack.start_gateway), (stack.manager, stack.start_manager)):
        assert side is not None
        side.stop()
        start()
        wait_until(stack.is_ready, "the gateway is ready")
        assert stack.ask("nick").headers["x-hostler-worker"] == worker
        assert change(stack)["failure"]["kind"] == "model_missing"
    assert stack.engine_stats(worker)["pid"] == process
