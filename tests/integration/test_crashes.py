"""kill -9 of the manager, the gateway and engines under load."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.engine_simulator.configuration import Simulation
from tests.support.battery import Tell, hold, milliseconds
from tests.support.processes import accepts_connections
from tests.support.raw_http import RawConnection
from tests.support.stack import ADMIN_KEY, Stack, chat, running_stack
from tests.support.waiting import wait_until

CHAT = "/v1/chat/completions"
STREAMS = 20
LONG = Simulation(tokens_per_second=100, answer_tokens=400)
"""Streams of four seconds."""
NOTICED_SECONDS = 1.0
RETURN_SECONDS = 5.0
RESTART_SECONDS = 8.0
"""The first death of an engine that has served is not held against it: it starts again at once."""


@pytest.fixture
def stack() -> Iterator[Stack]:
    with running_stack() as started:
        yield started
        check_nothing_is_left_over(started)


def warm(stack: Stack, name: str, simulation: Simulation | None = None, **fields: Any) -> dict[str, Any]:
    """An endpoint with one ready worker: id, pid and when it became ready."""
    stack.endpoint(name, per_worker=64, **fields)
    stack.client.post(CHAT, json=chat(name)).raise_for_status()
    if simulation is not None:
        stack.behave(name, simulation)
    return identity(stack, name)


def identity(stack: Stack, name: str) -> dict[str, Any]:
    """Which process serves an endpoint."""
    [worker] = stack.status(name)["workers"]
    return {"id": worker["id"], "pid": stack.engine_stats(worker["id"])["pid"]}


def engine_pids(stack: Stack) -> set[int]:
    """Every engine process of this Hostler, found by its command line."""
    found = subprocess.run(["pgrep", "-f", f"engine_simulator serve {stack.folder}"], capture_output=True, check=False)
    return {int(pid) for pid in found.stdout.split()}


def check_nothing_is_left_over(stack: Stack) -> None:
    """Every engine process is one that the manager knows, no two workers have a name, and no lease is out."""
    if not accepts_connections(("127.0.0.1", stack.port)):
        return
    wait_until(lambda: all(worker["in_flight"] == 0 for worker in stack.workers()), "all leases are back")
    workers = [worker["spec"]["id"] for worker in stack.workers() if worker["state"] == "ready"]
    assert len(set(workers)) == len(workers)
    assert {stack.engine_stats(worker)["pid"] for worker in workers} == engine_pids(stack)


class Streams:
    """Twenty streams through the gateway, each read to its end by a thread."""

    def __init__(self, stack: Stack, name: str, pool: ThreadPoolExecutor) -> None:
        self._first = threading.Semaphore(0)
        self._texts: list[Future[bytes]] = [pool.submit(self._read, stack, name) for _ in range(STREAMS)]
        for _ in range(STREAMS):
            assert self._first.acquire(timeout=15), "every stream has begun"

    def _read(self, stack: Stack, name: str) -> bytes:
        with RawConnection(stack.port) as raw:
            raw.post(CHAT, chat(name, stream=True), ADMIN_KEY, "connection: close")
            try:
                raw.read_until(b'"content":"')
            finally:
                self._first.release()
            return raw.read_to_end()

    def check_whole(self, tokens: int) -> None:
        """Every stream came to its end, with every token, and without an error."""
        for text in self._texts:
            received = text.result(timeout=30)
            assert received.rstrip().endswith(b"0") or b"[DONE]" in received
            assert received.count(b"data: [DONE]") == 1
            assert b'"error"' not in received
            assert received.count(b'"content":"') >= tokens

    @property
    def open(self) -> int:
        """How many have not ended."""
        return sum(not text.done() for text in self._texts)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(STREAMS) as made:
        yield made


def test_killing_the_manager_breaks_no_stream_and_on_its_return_it_adopts_its_workers(
    stack: Stack, pool: ThreadPoolExecutor
) -> None:
    before = warm(stack, "first", LONG)
    streams = Streams(stack, "first", pool)
    assert stack.manager is not None
    stack.manager.kill()
    assert streams.open == STREAMS
    stack.manager.stop()
    # a whole request without a manager
    assert stack.client.post(CHAT, json=chat("first", max_tokens=1)).status_code == 200
    stack.start_manager()
    streams.check_whole(LONG.answer_tokens)
    wait_until(lambda: [worker["state"] for worker in stack.workers()] == ["ready"], "the worker is adopted")
    assert identity(stack, "first") == before
    assert stack.workers()[0]["restarts"] == 0
    assert stack.client.post(CHAT, json=chat("first", max_tokens=1)).status_code == 200


def test_killing_the_gateway_leaves_engines_alone_and_on_its_return_it_uses_them(stack: Stack) -> None:
    before = warm(stack, "first")
    assert stack.gateway is not None
    with RawConnection(stack.port) as raw:
        stack.behave("first", LONG)
        raw.post(CHAT, chat("first", stream=True), ADMIN_KEY)
        raw.read_until(b'"content":"')
        stack.gateway.kill()
    assert engine_pids(stack) == {before["pid"]}
    stack.gateway.stop()
    stack.start_gateway()
    began = time.monotonic()
    assert stack.client.post(CHAT, json=chat("first", max_tokens=1)).status_code == 200
    assert time.monotonic() - began < RETURN_SECONDS
    assert identity(stack, "first") == before
    assert stack.workers()[0]["restarts"] == 0


def errors_counted(stack: Stack, name: str) -> int:
    """Failed requests of an endpoint by the report of usage."""
    rows = stack.client.get("/api/usage", params={"by": "endpoint"}).json()["rows"]
    return sum(row["errors"] for row in rows if row["name"] == name)


def test_killing_an_engine_ends_its_streams_with_an_error_and_the_next_request_is_served(
    stack: Stack, record_property: Tell
) -> None:
    before = warm(stack, "first", LONG)
    with openai.OpenAI(base_url=f"{stack.address}/v1", api_key=ADMIN_KEY, max_retries=0, timeout=30) as client:
        messages: Any = [{"role": "user", "content": "hello"}]
        stream = client.chat.completions.create(model="first", messages=messages, stream=True)
        next(stream)
        os.kill(before["pid"], signal.SIGKILL)
        at = time.monotonic()
        with pytest.raises(openai.APIError, match="in the middle of the stream"):
            for _ in stream:
                pass
        seconds = time.monotonic() - at
        hold(seconds, NOTICED_SECONDS, "the client gets an error")
        record_property("error after", milliseconds(seconds))
        wait_until(lambda: errors_counted(stack, "first") == 1, "its record of usage is closed")
        stack.order("first", Simulation())
        answer = client.chat.completions.create(model="first", messages=messages, timeout=RESTART_SECONDS)
        assert answer.choices[0].message.content
    assert identity(stack, "first")["pid"] != before["pid"]


def test_an_idle_engine_killed_behind_our_back_is_noticed_within_a_second(stack: Stack, record_property: Tell) -> None:
    before = warm(stack, "first")
    os.kill(before["pid"], signal.SIGKILL)
    at = time.monotonic()
    wait_until(lambda: stack.workers()[0]["state"] != "ready", "the death is noticed", seconds=NOTICED_SECONDS)
    seconds = time.monotonic() - at
    assert seconds < NOTICED_SECONDS
    record_property("process: out of the workers after", milliseconds(seconds))
    answer = stack.client.post(CHAT, json=chat("first"), timeout=RESTART_SECONDS)
    assert answer.status_code == 200
    assert identity(stack, "first")["pid"] != before["pid"]
