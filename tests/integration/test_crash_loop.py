"""An engine that dies each time it loads, while requests wait for it."""

import time
from collections.abc import Iterator

import pytest

from tests.engine_simulator.configuration import Faults, Simulation
from tests.support.stack import Stack, chat, running_stack

CRASHING = Simulation(faults=Faults(crash_at_load="free_memory"))
"""A cause that may pass: it is tried again, other than a bad flag."""
FIRST_BACK_OFF_SECONDS = 9
STARTS = '"worker_starts"'


@pytest.fixture
def stack() -> Iterator[Stack]:
    with running_stack() as started:
        yield started


def test_a_crash_loop_backs_off_though_a_request_waits_and_the_second_death_is_told(stack: Stack) -> None:
    stack.endpoint("crashing", CRASHING)
    began = time.monotonic()
    answer = stack.client.post("/v1/chat/completions", json=chat("crashing"), timeout=60)
    assert time.monotonic() - began > FIRST_BACK_OFF_SECONDS
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["code"] == "endpoint_failed"
    assert "Less GPU memory was free than the engine was promised" in answer.json()["error"]["message"]
    assert stack.manager is not None
    assert stack.manager.output.count(STARTS) == 2
    (worker,) = stack.workers()
    assert (worker["spec"]["id"].rpartition("-")[2], worker["restarts"], worker["state"]) == ("1", 2, "backoff")


def test_the_next_request_after_a_told_failure_is_refused_at_once_with_the_same_reason(stack: Stack) -> None:
    stack.endpoint("crashing", Simulation(faults=Faults(crash_at_load="unsupported_arch")))
    first = stack.client.post("/v1/chat/completions", json=chat("crashing"), timeout=60)
    again = stack.client.post("/v1/chat/completions", json=chat("crashing"), timeout=5)
    assert [answer.status_code for answer in (first, again)] == [503, 503]
    assert first.json()["error"]["message"] == again.json()["error"]["message"]
    assert int(again.headers["retry-after"]) > 0
    assert stack.manager is not None
    assert stack.manager.output.count(STARTS) == 1
    assert stack.status("crashing")["state"] == "failed"
