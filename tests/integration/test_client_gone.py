"""A client that hangs up, in every phase of its request: the engine gives up the request within 100 ms."""

import random
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.engine_simulator.configuration import Faults, Simulation
from tests.support.battery import Tell, milliseconds, size
from tests.support.raw_http import RawConnection
from tests.support.stack import ADMIN_KEY, CLIENT_SECONDS, Stack, chat, running_stack
from tests.support.waiting import wait_until

CHAT = "/v1/chat/completions"
TIMES = size(20, 250)
ABORT_SECONDS = 0.1
CUTS = 500
CUTS_AT_ONCE = 10
FOREVER = 1_000_000

SLOW = Simulation(tokens_per_second=50, answer_tokens=FOREVER)
SILENT_AT_FIRST = Simulation(ttft_seconds=600)
SILENT_LATER = Simulation(answer_tokens=100, faults=Faults(stall_stream_after=3))


class Watched:
    """A stack with one hot worker, and what its engine says of itself."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        stack.endpoint("watched", per_worker=64)
        stack.client.post(CHAT, json=chat("watched")).raise_for_status()
        self.worker: str = stack.status("watched")["workers"][0]["id"]
        transport = httpx.HTTPTransport(uds=str(stack.run / "engines" / self.worker / "engine.sock"))
        self._engine = httpx.Client(transport=transport, base_url="http://engine", timeout=CLIENT_SECONDS)

    def stats(self) -> dict[str, Any]:
        """`/simulator/stats`."""
        stats: dict[str, Any] = self._engine.get("/simulator/stats").json()
        return stats

    def behave(self, simulation: Simulation) -> None:
        """Change how the engine behaves, and wait until it does."""
        self.stack.behave("watched", simulation)
        self.settle()

    def settle(self) -> None:
        """Wait until the engine has nothing to do and the gateway has no lease out."""
        wait_until(lambda: self.stats()["live"] == 0, "the engine is at rest")
        wait_until(lambda: self.stack.workers()[0]["in_flight"] == 0, "all leases are back")

    def abort_seconds(self, raw: RawConnection) -> float:
        """Hang up; seconds until the engine has given up the request."""
        before = len(self.stats()["abort_times"])
        at = raw.hang_up()
        aborts = wait_until(lambda: self.stats()["abort_times"][before:], "the engine gives up the request")
        return float(aborts[0] - at)

    def close(self) -> None:
        """Let go of the engine."""
        self._engine.close()


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with running_stack({"HOSTLER_STREAM_GRACE_SECONDS": "0.1", "HOSTLER_HEARTBEAT_SECONDS": "0.1"}) as stack:
        made = Watched(stack)
        yield made
        made.close()


def begin(watched: Watched, raw: RawConnection, *, stream: bool, mark: bytes = b"") -> None:
    """Send a request; returns when the engine is serving it and the client has received `mark`."""
    raw.post(CHAT, chat("watched", stream=stream), ADMIN_KEY)
    wait_until(lambda: watched.stats()["live"] == 1, "the engine serves the request")
    raw.read_until(mark)


def check_aborts(watched: Watched, tell: Tell, simulation: Simulation, *, stream: bool, mark: bytes = b"") -> None:
    """Hang up many times in the same phase; each time the engine must have noticed in time."""
    watched.behave(simulation)
    took = []
    for _ in range(TIMES):
        with RawConnection(watched.stack.port) as raw:
            begin(watched, raw, stream=stream, mark=mark)
            took.append(watched.abort_seconds(raw))
    assert max(took) < ABORT_SECONDS, took
    watched.settle()
    how = ("after its first token" if mark else "before its first token") if stream else "without a stream"
    times = f"median {milliseconds(statistics.median(took))}, slowest {milliseconds(max(took))}"
    tell(f"{how}{' and silent' if simulation is SILENT_LATER else ''}", f"{len(took)} of {TIMES}, {times}")


def test_a_client_gone_before_the_first_byte_of_its_stream_ends_its_request(
    watched: Watched, record_property: Tell
) -> None:
    check_aborts(watched, record_property, SILENT_AT_FIRST, stream=True)


def test_a_client_gone_in_the_middle_of_its_stream_ends_its_request(watched: Watched, record_property: Tell) -> None:
    check_aborts(watched, record_property, SLOW, stream=True, mark=b'"content":"')


def test_a_client_gone_while_its_stream_says_nothing_ends_its_request(watched: Watched, record_property: Tell) -> None:
    check_aborts(watched, record_property, SILENT_LATER, stream=True, mark=b'"content":"')


def test_a_client_gone_from_a_request_without_a_stream_ends_it(watched: Watched, record_property: Tell) -> None:
    check_aborts(watched, record_property, SILENT_AT_FIRST, stream=False)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
def test_a_client_gone_while_its_worker_loads_leaves_the_queue_and_the_load_goes_on(
    watched: Watched, *, stream: bool
) -> None:
    stack, name = watched.stack, f"cold-{'stream' if stream else 'json'}"
    stack.endpoint(name, Simulation(load_seconds=1.5))
    with RawConnection(stack.port) as raw:
        raw.post(CHAT, chat(name, stream=stream), ADMIN_KEY)
        if stream:
            raw.read_until(b": loading")
        wait_until(lambda: stack.status(name)["workers"], "the worker loads")
        assert stack.status(name)["waiting"] == 1
        raw.hang_up()
        wait_until(lambda: stack.status(name)["waiting"] == 0, "the queue is empty", seconds=1)
        assert stack.status(name)["state"] == "loading"
    status = stack.wait_for_state(name, "hot")
    assert [worker["in_flight"] for worker in status["workers"]] == [0]
    assert stack.engine_stats(status["workers"][0]["id"])["paths"].get(CHAT, 0) == 0
    stack.client.delete(f"/api/endpoints/{name}")


def cut_at_random(stack: Stack, seed: int) -> None:
    """One request that is cut off somewhere: in its header, in its body, before, in or after its answer."""
    chance = random.Random(seed)  # noqa: S311 - the same cuts in every run
    body = chat("watched", "hello " * chance.randrange(1, 50), stream=chance.random() < 0.7)
    with RawConnection(stack.port) as raw:
        if chance.random() < 0.2:
            lines = (
                f"POST {CHAT} HTTP/1.1",
                "host: h",
                f"authorization: Bearer {ADMIN_KEY}",
                "content-length: 90",
                "",
                "{",
            )
            head = "\r\n".join(lines)
            raw.send(head[: chance.randrange(1, len(head) + 1)].encode())
            return
        raw.post(CHAT, body, ADMIN_KEY, "connection: close")
        for _ in range(chance.choice([0, 0, 1, 2, 4, 8])):
            raw.read_some()


def test_after_five_hundred_random_cuts_no_lease_is_lost_and_everybody_is_served(watched: Watched) -> None:
    stack = watched.stack
    watched.behave(Simulation(tokens_per_second=400, ttft_seconds=0.01, answer_tokens=20))
    with ThreadPoolExecutor(CUTS_AT_ONCE) as pool:
        list(pool.map(lambda seed: cut_at_random(stack, seed), range(CUTS)))
        watched.settle()

        def ask(_: int) -> int:
            return stack.client.post(CHAT, json=chat("watched")).status_code

        assert list(pool.map(ask, range(50))) == [200] * 50
    watched.settle()
    assert all(worker["in_flight"] == 0 for worker in stack.workers())
