"""Requests that reach the engine changed: an alias becomes the endpoint's name, a stream is made to tell its usage."""

from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.engine_simulator.configuration import Simulation
from tests.support.stack import Stack, running_stack

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": 'say "model":"nick" to me'}]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as started:
        started.endpoint("writer", Simulation(answer_tokens=5), aliases=["nick", "gpt-4o"])
        started.endpoint("reader", Simulation(kind="embed"), aliases=["text-embedding-3-small"])
        yield started


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.address}/v1", api_key=stack.key, max_retries=0) as made:
        yield made


def test_an_alias_is_served_on_every_kind_of_route_and_answered_under_the_endpoints_name(
    client: openai.OpenAI,
) -> None:
    chat = client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert (chat.model, bool(chat.choices[0].message.content)) == ("writer", True)
    stream = client.chat.completions.create(model="nick", messages=MESSAGES, stream=True)
    assert {chunk.model for chunk in stream} == {"writer"}
    assert client.completions.create(model="nick", prompt="hello").model == "writer"
    assert client.responses.create(model="nick", input="hello").model == "writer"
    assert client.embeddings.create(model="text-embedding-3-small", input="hello").model == "reader"
    assert client.audio.transcriptions.create(model="nick", file=("a.wav", b"RIFF\r\n\x00" * 999)).text


def test_a_changed_alias_serves_at_once_and_touches_no_worker(stack: Stack, client: openai.OpenAI) -> None:
    client.completions.create(model="writer", prompt="hello")
    before = [(worker["id"], worker["since"], worker["draining"]) for worker in stack.status("writer")["workers"]]
    stack.client.patch("/api/endpoints/writer", json={"aliases": ["nick", "gpt-4o", "new"]}).raise_for_status()
    assert client.completions.create(model="new", prompt="hello").model == "writer"
    after = [(worker["id"], worker["since"], worker["draining"]) for worker in stack.status("writer")["workers"]]
    assert before == after


@pytest.mark.parametrize("asked", [None, {"include_usage": False}])
def test_a_client_that_asks_for_no_usage_sees_no_event_without_choices(
    client: openai.OpenAI, asked: openai.types.chat.ChatCompletionStreamOptionsParam | None
) -> None:
    options = openai.omit if asked is None else asked
    chunks = list(
        client.chat.completions.create(model="writer", messages=MESSAGES, stream=True, stream_options=options)
    )
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"
    pieces = list(client.completions.create(model="writer", prompt="hello", stream=True, stream_options=options))
    assert all(len(piece.choices) == 1 and piece.usage is None for piece in pieces)


def test_a_client_that_asks_for_usage_gets_it(client: openai.OpenAI) -> None:
    options: openai.types.chat.ChatCompletionStreamOptionsParam = {"include_usage": True}
    *_, last = client.chat.completions.create(model="nick", messages=MESSAGES, stream=True, stream_options=options)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 5
