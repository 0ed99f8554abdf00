"""`/api/events` and the decision log of a real gateway: what they tell, to whom, and what becomes of listeners."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.events import SECONDS, listening
from tests.support.processes import REPOSITORY
from tests.support.stack import Stack, bearer, running_stack
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as started:
        yield started


def test_everything_that_becomes_of_an_endpoint_is_told_in_order_and_a_listener_resumes_where_it_was(
    stack: Stack,
) -> None:
    with listening(stack, endpoint="first") as listener:
        stack.endpoint("first")
        listener.until(kind="endpoint", change="created")
        place = listener.last
        stack.ask("first").raise_for_status()
        start = listener.until(kind="decision", verb="start")
        assert "1 waiting" in start["reason"]
        worker = start["worker"]
        for state in ("loading", "ready"):
            assert listener.until(kind="worker", state=state)["id"] == worker
        listener.until(kind="endpoint", change="state", state="hot")
        stack.client.patch("/api/endpoints/first", json={"labels": {"a": "b"}}).raise_for_status()
        assert listener.until(kind="endpoint", change="changed")["fields"] == ["labels"]
        end = listener.last
    with listening(stack, last=place, endpoint="first", kind="worker,endpoint") as listener:
        assert listener.until(kind="worker", state="ready")["id"] == worker
        listener.until(kind="endpoint", change="changed")
        assert listener.last == end
    stack.client.delete("/api/endpoints/first").raise_for_status()


def test_who_names_an_event_of_another_life_is_told_what_is_lacking_and_given_what_is_kept(stack: Stack) -> None:
    stack.endpoint("later")
    with listening(stack, last="01234567-5") as listener:
        assert listener.next()["kind"] == "missed"
        listener.until(kind="endpoint", endpoint="later", change="created")
    stack.client.delete("/api/endpoints/later").raise_for_status()


def test_a_key_needs_the_scope_and_loses_the_stream_when_it_is_revoked(stack: Stack) -> None:
    def key(*scopes: str) -> dict[str, str]:
        made: dict[str, str] = stack.client.post("/api/keys", json={"name": "k", "scopes": scopes}).json()
        return made

    url = f"{stack.address}/api/events"
    assert httpx.get(url, headers=bearer(key("inference")["key"])).status_code == 403
    assert httpx.get(url).status_code == 401
    assert stack.client.get("/api/events", params={"kind": "weather"}).status_code == 400
    assert stack.client.get("/api/events", params={"color": "red"}).status_code == 400
    mine = key("endpoints")
    with listening(stack, mine["key"]) as listener:
        stack.client.delete(f"/api/keys/{mine['id']}").raise_for_status()
        stack.endpoint("stir")  # whatever happens next is not told any more
        assert listener.until(kind="error")["error"]["code"] == "invalid_api_key"
    stack.client.delete("/api/endpoints/stir").raise_for_status()


def test_listeners_that_leave_leave_nothing_behind_and_a_stopping_gateway_ends_those_who_stay(stack: Stack) -> None:
    tasks = stack.metrics()["hostler_tasks"]
    with contextlib.ExitStack() as streams:
        for _ in range(20):
            streams.enter_context(listening(stack))
        assert stack.metrics()["hostler_tasks"] > tasks
    wait_until(lambda: stack.metrics()["hostler_tasks"] <= tasks, "no task is left of them")
    assert stack.gateway is not None
    with httpx.stream("GET", f"{stack.address}/api/events", headers=bearer(stack.key), timeout=SECONDS) as response:
        text = response.iter_text()
        assert next(text)
        began = time.monotonic()
        stack.gateway.stop()
        assert time.monotonic() - began < SECONDS / 2, "it does not wait for the end of the drain"
        for _ in text:  # to its clean end; httpx raises where an answer is cut
            pass
    stack.start_gateway()
    wait_until(stack.is_ready, "the gateway is ready")


def test_the_decision_log_goes_through_the_planner_again_and_nothing_differs(stack: Stack, tmp_path: Path) -> None:
    stack.endpoint("logged")
    stack.ask("logged").raise_for_status()

    def text() -> str:
        return stack.client.get("/api/plan/log").text

    wait_until(lambda: '"verb":"start"' in text(), "the start is in the log")
    file = tmp_path / "log"
    file.write_text(text())
    replayed = subprocess.run(
        [str(REPOSITORY / "scripts" / "replay"), "--show", str(file)],
        env=os.environ | {"HOSTLER_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert "start logged" in replayed.stdout
    assert ", 0 of them are other ones now" in replayed.stdout
    stack.client.delete("/api/endpoints/logged").raise_for_status()


def test_the_plan_tells_why_each_worker_is_there_long_after_it_was_decided(stack: Stack) -> None:
    stack.endpoint("explained")
    worker = stack.ask("explained").headers["x-hostler-worker"]
    decision = stack.client.get("/api/plan").json()["workers"][worker]["decision"]
    assert (decision["verb"], decision["endpoint"]) == ("start", "explained")
    assert "1 waiting" in decision["reason"]
    assert decision["numbers"]["waiting"] == 1
    assert decision["numbers"]["promise_mib"] > 0
    (shown,) = [one for one in stack.workers() if one["spec"]["id"] == worker]
    assert shown["why"]["decision"] == decision
    stack.client.delete("/api/endpoints/explained").raise_for_status()


def test_each_answer_tells_how_long_it_waited_for_its_worker_and_how_long_the_engine_took(stack: Stack) -> None:
    stack.endpoint("timed")
    cold, hot = stack.ask("timed"), stack.ask("timed")
    times = [
        {name: int(answer.headers[f"x-hostler-{name}-ms"]) for name in ("queue", "wake", "engine")}
        for answer in (cold, hot)
    ]
    assert times[0]["queue"] >= times[0]["wake"] > 0
    assert times[1]["wake"] == 0
    assert all(one["engine"] > 0 for one in times)
    stack.client.delete("/api/endpoints/timed").raise_for_status()
