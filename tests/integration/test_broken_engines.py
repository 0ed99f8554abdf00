"""Engines that break in every way the simulator knows, seen by the clients that people use."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.engine_simulator.configuration import Faults, Simulation
from tests.support.raw_http import RawConnection
from tests.support.stack import ADMIN_KEY, Stack, chat, running_stack
from tests.support.waiting import wait_until

CHAT = "/v1/chat/completions"
MESSAGES: Any = [{"role": "user", "content": "hello"}]
SETTINGS = {"HOSTLER_STALL_SECONDS": "0.5", "HOSTLER_FIRST_BYTE_SECONDS": "0.5", "HOSTLER_STREAM_GRACE_SECONDS": "0.3"}
FINE = Simulation(answer_tokens=12)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack(SETTINGS) as started:
        started.endpoint("faulty", per_worker=64)
        started.client.post(CHAT, json=chat("faulty")).raise_for_status()
        yield started


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.address}/v1", api_key=ADMIN_KEY, max_retries=0, timeout=20) as made:
        yield made


@pytest.fixture
def broken(stack: Stack) -> Iterator[Callable[..., None]]:
    """Breaks the engine; after the test it is fine, serves, and no lease is out."""

    def order(**faults: Any) -> None:
        stack.behave("faulty", Simulation(answer_tokens=12, faults=Faults(**faults)))

    yield order
    stack.behave("faulty", FINE)
    assert stack.client.post(CHAT, json=chat("faulty")).status_code == 200
    wait_until(lambda: all(worker["in_flight"] == 0 for worker in stack.workers()), "all leases are back")


def calls(stack: Stack, worker: str | None = None, path: str = CHAT) -> int:
    """How many requests for this path the engine has seen."""
    worker = worker or stack.status("faulty")["workers"][0]["id"]
    return int(stack.engine_stats(worker)["paths"].get(path, 0))


def drain(stream: Any) -> int:
    """Read a stream to its end; the number of chunks."""
    return sum(1 for _ in stream)


# streams that break


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"cut_stream_after": 4}, "ended in the middle of the stream"),
        ({"end_stream_without_done": True}, "ended in the middle of the stream"),
        ({"stall_stream_after": 4}, "stalled in the middle of the stream"),
    ],
    ids=["cut", "no end", "stall"],
)
def test_a_stream_that_breaks_raises_in_the_client_and_is_never_sent_twice(
    stack: Stack, client: openai.OpenAI, broken: Callable[..., None], faults: dict[str, Any], words: str
) -> None:
    broken(**faults)
    before = calls(stack)
    with client.chat.completions.create(model="faulty", messages=MESSAGES, stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.APIError, match=words):
            drain(stream)
    assert calls(stack) == before + 1


def test_a_whole_stream_of_completions_and_responses_is_no_broken_one(
    client: openai.OpenAI, broken: Callable[..., None]
) -> None:
    broken()
    assert drain(client.completions.create(model="faulty", prompt="hello", stream=True))
    assert drain(client.responses.create(model="faulty", input="hello", stream=True))


@pytest.mark.parametrize("faults", [{"cut_stream_after": 4}, {"stall_stream_after": 4}], ids=["cut", "stall"])
def test_a_broken_stream_of_responses_raises_in_the_client(
    client: openai.OpenAI, broken: Callable[..., None], faults: dict[str, Any]
) -> None:
    broken(**faults)
    with pytest.raises(openai.APIError, match="in the middle of the stream"):
        drain(client.responses.create(model="faulty", input="hello", stream=True))


@pytest.mark.parametrize("faults", [{"cut_stream_after": 4}, {"stall_stream_after": 4}], ids=["cut", "stall"])
def test_a_broken_stream_of_messages_ends_with_the_error_event_of_that_dialect(
    stack: Stack, broken: Callable[..., None], faults: dict[str, Any]
) -> None:
    broken(**faults)
    body = {"model": "faulty", "max_tokens": 12, "messages": MESSAGES, "stream": True}
    answer = stack.client.post("/v1/messages", json=body, headers={"anthropic-version": "2023-06-01"})
    name, data = answer.text.rstrip().split("\n\n")[-1].split("\n")
    assert name == "event: error"
    event = json.loads(data.removeprefix("data: "))
    assert event["type"] == "error"
    assert set(event["error"]) == {"type", "message"}
    assert "in the middle of the stream" in event["error"]["message"]
    assert "message_stop" not in answer.text


def test_a_stream_of_garbage_ends_with_an_error_event(stack: Stack, broken: Callable[..., None]) -> None:
    broken(garbage_answer=True)
    answer = stack.client.post(CHAT, json=chat("faulty", stream=True))
    [event] = re.findall(rb'data: ({"error".*)\n', answer.content)
    assert "in the middle of the stream" in json.loads(event)["error"]["message"]


# answers that are none


def test_an_answer_that_is_not_http_is_a_502(stack: Stack, broken: Callable[..., None]) -> None:
    broken(garbage_answer="protocol")
    before = calls(stack)
    answer = stack.client.post(CHAT, json=chat("faulty"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_broke")
    assert "try again" in answer.json()["error"]["message"]
    assert calls(stack) == before + 1


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 503])
def test_an_error_of_the_engine_reaches_the_client_unchanged(
    stack: Stack, broken: Callable[..., None], status: int
) -> None:
    broken(error_status=status)
    before = calls(stack)
    answer = stack.client.post(CHAT, json=chat("faulty"))
    assert answer.status_code == status
    assert answer.json()["error"]["message"] == "simulated failure"
    assert calls(stack) == before + 1


def test_an_engine_that_is_healthy_and_never_answers_is_a_504(
    stack: Stack, client: openai.OpenAI, broken: Callable[..., None]
) -> None:
    broken(hang_with_green_health=True)
    before = calls(stack)
    with pytest.raises(openai.InternalServerError, match="HOSTLER_FIRST_BYTE_SECONDS") as caught:
        client.chat.completions.create(model="faulty", messages=MESSAGES)
    assert caught.value.status_code == 504
    assert calls(stack) == before + 1


# engines that do not load


LOADS = {
    "kv_cache_too_small": ("max_model_len",),
    "missing_model": ("model",),
    "unsupported_arch": ("NoSuchModelForCausalLM",),
    "gated": ("token", "gated"),
    "bad_flag": ("flag",),
}
"""Failures that would come again at once, so that the first one is the answer."""


@pytest.mark.parametrize("kind", LOADS)
def test_an_engine_that_cannot_load_is_told_in_words_and_a_start_is_all_it_takes_once_it_is_mended(
    stack: Stack, client: openai.OpenAI, kind: str
) -> None:
    name = f"load-{kind.replace('_', '-')}"
    stack.endpoint(name, Simulation(faults=Faults(crash_at_load=kind)))
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model=name, messages=MESSAGES)
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) > 0
    message = caught.value.response.json()["error"]["message"]
    assert name in message
    assert any(word in message for word in LOADS[kind]), message
    assert "Traceback" not in message
    status = stack.status(name)
    assert status["state"] == "failed"
    assert status["workers"][0]["failure"]["log_tail"]
    # again before it is mended: told at once
    assert stack.client.post(CHAT, json=chat(name)).status_code == 503
    stack.order(name, FINE)
    assert stack.client.post(f"/api/endpoints/{name}/start").status_code == 202
    assert client.chat.completions.create(model=name, messages=MESSAGES).choices[0].message.content
    stack.client.delete(f"/api/endpoints/{name}")


def test_an_engine_that_dies_at_every_load_is_told_after_its_second_death(stack: Stack, client: openai.OpenAI) -> None:
    stack.endpoint("dying", Simulation(faults=Faults(crash_at_load="driver")))
    with pytest.raises(openai.InternalServerError, match="driver") as caught:
        client.chat.completions.create(model="dying", messages=MESSAGES, timeout=30)
    assert caught.value.status_code == 503
    stack.order("dying", FINE)
    stack.client.post("/api/endpoints/dying/start").raise_for_status()
    assert client.chat.completions.create(model="dying", messages=MESSAGES).choices[0].message.content
    stack.client.delete("/api/endpoints/dying")


def test_a_context_that_does_not_fit_is_shortened_while_the_request_waits_and_the_endpoint_says_so(
    stack: Stack, client: openai.OpenAI
) -> None:
    stack.endpoint("wide", Simulation(kv_mib=64, kv_kib_per_token=16))
    assert client.chat.completions.create(model="wide", messages=MESSAGES).choices[0].message.content
    status = stack.status("wide")
    assert status["state"] == "hot"
    assert "max_model_len was lowered to 4000" in status["reason"]
    assert status["workers"][0]["max_model_len"] == 4000
    assert stack.client.get("/v1/models/wide").json()["hostler"]["max_model_len"] == 4000
    stack.client.delete("/api/endpoints/wide")


def test_a_stream_that_waited_for_an_engine_that_cannot_load_ends_with_the_diagnosis(
    stack: Stack, client: openai.OpenAI
) -> None:
    stack.endpoint("late", Simulation(load_seconds=1, faults=Faults(crash_at_load="unsupported_arch")))
    with pytest.raises(openai.APIError, match="NoSuchModelForCausalLM"):
        drain(client.chat.completions.create(model="late", messages=MESSAGES, stream=True))
    stack.client.delete("/api/endpoints/late")


# two workers


@pytest.fixture
def pair(stack: Stack) -> Iterator[list[str]]:
    """The ids of an endpoint's two ready workers."""
    stack.endpoint("pair", per_worker=1, min_workers=2, max_workers=2)

    def ready() -> list[str]:
        return [worker["id"] for worker in stack.status("pair")["workers"] if worker["state"] == "ready"]

    wait_until(lambda: len(ready()) == 2, "both are ready", seconds=20)
    yield ready()
    stack.client.delete("/api/endpoints/pair")


def test_a_worker_that_refuses_connections_is_passed_over_and_the_other_is_called_once_for_each_request(
    stack: Stack, pair: list[str]
) -> None:
    deaf, other = pair
    stack.behave("pair", Simulation(ttft_seconds=0.3))
    before = calls(stack, deaf), calls(stack, other)
    path = stack.run / "engines" / deaf / "engine.sock"
    hidden = path.with_suffix(".hidden")
    path.rename(hidden)
    with socket.socket(socket.AF_UNIX) as bound, ThreadPoolExecutor(2) as pool:
        bound.bind(str(path))  # bound and not listening: connections are refused
        # each worker takes one request at a time, so that one of two at once meets the deaf one
        served = list(pool.map(lambda _: stack.client.post(CHAT, json=chat("pair")), range(2)))
    path.unlink()
    hidden.rename(path)
    assert [(answer.status_code, answer.headers["x-hostler-worker"]) for answer in served] == [(200, other)] * 2
    assert (calls(stack, deaf), calls(stack, other)) == (before[0], before[1] + 2)
    assert any(line.get("worker") == deaf and line["event"] == "worker did not answer" for line in stack.log_lines())


def test_a_worker_that_dies_before_its_answer_is_replaced_by_the_other_one(stack: Stack, pair: list[str]) -> None:
    stack.behave("pair", Simulation(ttft_seconds=600))
    with RawConnection(stack.port) as raw:
        raw.post(CHAT, chat("pair"), ADMIN_KEY)

        def serving() -> str | None:
            return next((worker for worker in pair if stack.engine_stats(worker)["live"]), None)

        first = wait_until(serving, "one of them serves it")
        assert first is not None
        [other] = set(pair) - {first}
        stack.behave("pair", FINE)
        before = calls(stack, other)
        stack.kill_engine(first)
        answer = raw.answer()
    assert answer.status == 200
    assert answer.headers["x-hostler-worker"] == other
    assert calls(stack, other) == before + 1


def test_a_worker_that_dies_after_its_first_byte_is_not_replaced(stack: Stack, pair: list[str]) -> None:
    stack.behave("pair", Simulation(tokens_per_second=20, answer_tokens=1000))
    before = {worker: calls(stack, worker) for worker in pair}
    with stack.client.stream("POST", CHAT, json=chat("pair", stream=True)) as answer:
        first = answer.headers["x-hostler-worker"]
        lines = answer.iter_lines()
        next(lines)
        stack.kill_engine(first)
        rest = list(lines)
    assert any('"error"' in line for line in rest)
    [other] = set(pair) - {first}
    assert calls(stack, other) == before[other]
