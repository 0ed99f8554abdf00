"""The gateway and the manager together, as a user meets them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from tests.engine_simulator.configuration import Simulation
from tests.support.stack import ADMIN_KEY, Stack, bearer, chat, running_stack
from tests.support.waiting import wait_until

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as started:
        started.endpoint("first")
        yield started


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.address}/v1", api_key=ADMIN_KEY, max_retries=0) as made:
        yield made


def test_a_request_for_a_cold_endpoint_starts_a_worker_and_is_answered(stack: Stack, client: openai.OpenAI) -> None:
    stack.endpoint("cold", Simulation(load_seconds=0.5))
    answer = client.chat.completions.create(model="cold", messages=[{"role": "user", "content": "hello"}])
    assert answer.choices[0].message.content
    assert stack.status("cold")["state"] == "hot"


def test_chunks_of_a_stream_arrive_as_they_are_generated(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="first", messages=[{"role": "user", "content": "hello"}], stream=True)
    pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices]
    assert len([piece for piece in pieces if piece]) > 5


async def test_the_asynchronous_client_is_served_too(stack: Stack) -> None:
    async with openai.AsyncOpenAI(base_url=f"{stack.address}/v1", api_key=ADMIN_KEY) as client:
        answer = await client.completions.create(model="first", prompt="hello")
        assert answer.choices[0].text


def test_the_list_of_models_tells_how_each_does(stack: Stack, client: openai.OpenAI) -> None:
    assert "first" in [model.id for model in client.models.list()]
    model = stack.client.get("/v1/models/first").json()
    assert model["hostler"]["state"] in {"hot", "cold"}


def test_every_answer_tells_its_worker_and_request_id(stack: Stack) -> None:
    answer = stack.client.post("/v1/chat/completions", json=chat("first"), headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-hostler-worker"].startswith("first-")
    assert int(answer.headers["x-hostler-queue-ms"]) >= 0


def test_batch_requests_wait_behind_interactive_ones(stack: Stack) -> None:
    stack.endpoint("narrow", Simulation(answer_tokens=10_000, tokens_per_second=200), per_worker=1)
    finished: list[str] = []

    def ask(priority: str) -> None:
        body = chat("narrow", max_tokens=2)
        stack.client.post(CHAT, json=body, headers={"x-hostler-priority": priority}).raise_for_status()
        finished.append(priority)

    def waiting() -> int:
        return int(stack.status("narrow")["waiting"])

    with ThreadPoolExecutor(2) as pool:
        with stack.client.stream("POST", CHAT, json=chat("narrow", stream=True)) as running:
            chunks = running.iter_raw()
            next(chunks)
            batch = pool.submit(ask, "batch")
            wait_until(lambda: waiting() == 1, "the batch request waits")
            interactive = pool.submit(ask, "interactive")
            wait_until(lambda: waiting() == 2, "both wait")
        interactive.result()
        batch.result()
    assert finished == ["interactive", "batch"]
    stack.client.delete("/api/endpoints/narrow")


def test_an_idle_worker_goes_after_idle_seconds(stack: Stack) -> None:
    stack.endpoint("brief", idle_seconds=1)
    assert stack.client.post("/v1/chat/completions", json=chat("brief")).status_code == 200
    stack.wait_for_state("brief", "cold")
    assert stack.client.post("/v1/chat/completions", json=chat("brief")).status_code == 200


def test_a_deleted_endpoint_takes_its_worker_with_it(stack: Stack) -> None:
    stack.endpoint("gone")
    stack.client.post("/v1/chat/completions", json=chat("gone"))
    assert stack.client.delete("/api/endpoints/gone").status_code == 204
    assert stack.client.post("/v1/chat/completions", json=chat("gone")).status_code == 404


def test_no_prompt_and_no_key_is_in_the_log(stack: Stack) -> None:
    stack.client.post("/v1/chat/completions", json=chat("first", "a very private prompt"))
    httpx.post(f"{stack.address}/v1/chat/completions", json=chat("first"), headers=bearer("hst_wrong-key"))
    assert stack.gateway is not None
    wait_until(lambda: any(line.get("status") == 401 for line in stack.log_lines()), "both are in the log")
    assert "private prompt" not in stack.gateway.output
    assert ADMIN_KEY not in stack.gateway.output
    assert "hst_wrong" not in stack.gateway.output


def test_the_gateway_at_rest_holds_at_most_80_mb(stack: Stack) -> None:
    assert stack.gateway is not None
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{stack.gateway.pid}/status").read_text().splitlines() if ":" in line
    )
    assert int(fields["VmRSS"].split()[0]) <= 80 * 1024
