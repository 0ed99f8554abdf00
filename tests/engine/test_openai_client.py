"""The openai client against a real vLLM that its request starts, in a container and as a process."""

import itertools
import json
import time
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.engine.conftest import START_SECONDS, client
from tests.support.hostler import Hostler, bearer, chat
from tests.support.stack import Stack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(START_SECONDS + 20)

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me of the sea"}]
TOKENS = 1900
"""Of one stream. A model this small makes some hundred a second, and on few cores whoever reads gets them in bursts."""
MOMENTS = 5
"""Arrivals with a pause between them, at the least."""
PAUSE_SECONDS = 0.002
SPREAD_SECONDS = 0.2
TRIES = 10
"""vLLM and whoever reads share few cores, and now and then one of them does not get to run for seconds. What gathered
chunks on their way would do so at every try."""


@pytest.fixture(scope="module", params=["containers", "processes"])
def stack(request: pytest.FixtureRequest) -> Hostler:
    found: Hostler = request.getfixturevalue(request.param)
    return found


def test_a_chat_completion(stack: Hostler) -> None:
    with client(stack) as user:
        answer = user.chat.completions.create(model="chat", messages=MESSAGES, max_tokens=16)
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 16
    assert stack.status("chat")["state"] == "hot"


def arrives_bit_by_bit(times: list[float]) -> bool:
    """Whether data came over a while, and more than a few times after a pause."""
    moments = sum(later - earlier > PAUSE_SECONDS for earlier, later in itertools.pairwise(times))
    return times[-1] - times[0] > SPREAD_SECONDS and moments >= MOMENTS


def chunk_times(stack: Hostler) -> list[float]:
    """When the openai client got each chunk of a stream."""
    times: list[float] = []
    pieces: list[str] = []
    with client(stack) as user:
        stream = user.chat.completions.create(
            model="chat", messages=MESSAGES, max_tokens=TOKENS, stream=True, extra_body={"ignore_eos": True}
        )
        for chunk in stream:
            times.append(time.monotonic())
            pieces.extend(choice.delta.content or "" for choice in chunk.choices)
    assert len("".join(pieces)) > TOKENS / 2
    return times


def read_times(stack: Hostler) -> list[float]:
    """When each piece of a stream's body arrived, heartbeats left out."""
    body = chat("chat", stream=True, max_tokens=TOKENS, ignore_eos=True)
    reads: list[tuple[float, bytes]] = []
    with (
        httpx.Client(timeout=START_SECONDS, headers=bearer(stack.key)) as user,
        user.stream("POST", f"{stack.address}/v1/chat/completions", json=body) as answer,
    ):
        assert answer.status_code == 200
        reads.extend((time.monotonic(), data) for data in answer.iter_raw() if b"data: " in data)
    assert b"".join(data for _, data in reads).rstrip().endswith(b"data: [DONE]")
    return [at for at, _ in reads]


def test_chunks_arrive_as_they_are_generated(stack: Hostler) -> None:
    assert any(arrives_bit_by_bit(chunk_times(stack)) for _ in range(TRIES))


def test_nothing_gathers_bytes_on_their_way(stack: Hostler) -> None:
    assert any(arrives_bit_by_bit(read_times(stack)) for _ in range(TRIES))


async def test_the_asynchronous_client(stack: Hostler) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{stack.address}/v1", api_key=stack.key, timeout=START_SECONDS, max_retries=0
    ) as user:
        answer = await user.chat.completions.create(model="chat", messages=MESSAGES, max_tokens=8)
        assert answer.choices[0].message.content
        stream = await user.chat.completions.create(
            model="chat",
            messages=MESSAGES,
            max_tokens=32,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        chunks = [chunk async for chunk in stream]
    assert len(chunks) > 8
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 32
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "length"


def test_a_stream_is_the_same_whether_its_usage_was_asked_for_or_not(stack: Hostler) -> None:
    asked = chat("chat", stream=True, max_tokens=8, temperature=0)
    without = events(stack, asked)
    *with_usage, last = events(stack, {**asked, "stream_options": {"include_usage": True}})
    # which tokens share an event differs from one run to the next
    assert text_of(with_usage) == text_of(without)
    assert fields_of(with_usage) == fields_of(without)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 8


def text_of(stream: list[dict[str, Any]]) -> str:
    """What the model said."""
    return "".join(event["choices"][0]["delta"]["content"] for event in stream)


def fields_of(stream: list[dict[str, Any]]) -> set[tuple[str, ...]]:
    """The fields of events, whatever is in them."""
    return {tuple(name for name in event if name != "system_fingerprint") for event in stream}


def events(stack: Hostler, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Every event of a stream of chat completions but its end marker."""
    with httpx.Client(timeout=START_SECONDS, headers=bearer(stack.key)) as user:
        text = user.post(f"{stack.address}/v1/chat/completions", json=body).text
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_completion(stack: Hostler) -> None:
    with client(stack) as user:
        answer = user.completions.create(model="chat", prompt="The sea is", max_tokens=8)
    assert answer.choices[0].text
    assert answer.model == "chat"


def test_the_list_of_models(stack: Hostler) -> None:
    with client(stack) as user:
        assert "chat" in [model.id for model in user.models.list()]
        assert user.models.retrieve("chat").id == "chat"


def test_a_request_that_vllm_refuses_is_told_in_its_words(stack: Hostler) -> None:
    with client(stack) as user, pytest.raises(openai.BadRequestError, match=r"maximum context length|max_tokens"):
        user.chat.completions.create(model="chat", messages=MESSAGES, max_tokens=50_000)


def test_a_client_that_leaves_ends_its_request_at_vllm(processes: Stack) -> None:
    body = chat("chat", stream=True, max_tokens=2 * TOKENS, ignore_eos=True)
    with httpx.Client(timeout=START_SECONDS, headers=bearer(processes.key)) as user:
        finished = user.post(f"{processes.address}/v1/chat/completions", json=chat("chat", max_tokens=1))
        worker = finished.headers["x-hostler-worker"]
        before = metric(processes, worker, "vllm:request_success_total")
        with user.stream("POST", f"{processes.address}/v1/chat/completions", json=body) as answer:
            assert next(data for data in answer.iter_raw() if b"data: " in data)
    wait_until(lambda: metric(processes, worker, "vllm:num_requests_running") == 0, "vLLM rests", interval=0.1)
    # vLLM counts what it was told to give up nowhere; what it generated to the end counts as a success
    assert metric(processes, worker, "vllm:request_success_total") == before


def metric(stack: Stack, worker: str, name: str) -> float:
    """One of vLLM's own figures, summed over its labels."""
    socket = stack.run / "engines" / worker / "engine.sock"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=10) as engine:
        lines = engine.get("http://engine/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))
