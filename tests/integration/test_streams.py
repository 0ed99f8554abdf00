"""Answers on their way: heartbeats while a worker loads, bytes unchanged, every route."""

import asyncio
import contextlib
import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine_simulator.configuration import Simulation
from tests.support.battery import Tell
from tests.support.crowd import calling
from tests.support.raw_server import raw_server, read_call, until_closed
from tests.support.stack import CLIENT_SECONDS, Stack, chat, running_stack

CHAT = "/v1/chat/completions"
SETTINGS = {"HOSTLER_STREAM_GRACE_SECONDS": "0.3", "HOSTLER_HEARTBEAT_SECONDS": "0.3", "HOSTLER_STALL_SECONDS": "60"}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack(SETTINGS) as started:
        started.endpoint("writer", Simulation(answer_tokens=20), per_worker=64)
        started.endpoint("reader", Simulation(kind="embed"), per_worker=64)
        yield started


@contextlib.contextmanager
def engine_of(stack: Stack, name: str) -> Iterator[httpx.Client]:
    """A client on the socket of an endpoint's engine, past the gateway."""
    worker = stack.status(name)["workers"][0]["id"]
    transport = httpx.HTTPTransport(uds=str(stack.run / "engines" / worker / "engine.sock"))
    with httpx.Client(transport=transport, base_url="http://engine", timeout=CLIENT_SECONDS) as client:
        yield client


# while a worker loads


def test_a_stream_for_a_loading_endpoint_is_kept_alive_and_then_served(stack: Stack) -> None:
    stack.endpoint("slow", Simulation(load_seconds=1.5))
    began = time.monotonic()
    with stack.client.stream("POST", CHAT, json=chat("slow", stream=True)) as answer:
        assert answer.status_code == 200
        assert time.monotonic() - began < 1.5, "the headers come before the worker"
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.headers["x-request-id"]
        lines = list(answer.iter_lines())
    beats = [line for line in lines if line.startswith(": loading slow")]
    assert len(beats) >= 2
    assert lines.index(beats[-1]) < next(n for n, line in enumerate(lines) if line.startswith("data: "))
    assert [line for line in lines if line][-1] == "data: [DONE]"
    stack.client.delete("/api/endpoints/slow")


def test_heartbeats_and_retry_after_tell_the_time_left_once_a_load_was_seen(stack: Stack) -> None:
    stack.endpoint("again", Simulation(load_seconds=1.5))
    stack.client.post(CHAT, json=chat("again")).raise_for_status()
    stack.client.post("/api/endpoints/again/stop").raise_for_status()
    stack.wait_for_state("again", "cold")
    refused = stack.client.post(CHAT, json=chat("again"), headers={"x-hostler-timeout": "0.2"})
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) < 20, "the load took some seconds; what is said without one is 30"
    text = stack.client.post(CHAT, json=chat("again", stream=True)).text
    assert re.search(r"^: loading again, about \d+ s left$", text, re.MULTILINE), text[:300]
    stack.client.delete("/api/endpoints/again")


def test_a_request_without_a_stream_waits_as_long_as_it_says_and_learns_when_to_come_back(stack: Stack) -> None:
    stack.endpoint("late", Simulation(load_seconds=3))
    began = time.monotonic()
    answer = stack.client.post(CHAT, json=chat("late"), headers={"x-hostler-timeout": "0.5"})
    took = time.monotonic() - began
    assert answer.status_code == 503
    assert 0.5 <= took < 2
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "no_worker"
    assert "late" in answer.json()["error"]["message"]
    # the load was not for this request alone: it goes on
    stack.wait_for_state("late", "hot")
    stack.client.delete("/api/endpoints/late")


def test_a_stream_that_waited_too_long_ends_with_an_error_event(stack: Stack) -> None:
    stack.endpoint("later", Simulation(load_seconds=3))
    text = stack.client.post(CHAT, json=chat("later", stream=True), headers={"x-hostler-timeout": "1"}).text
    assert ": loading later" in text
    assert '"code":"no_worker"' in text
    stack.client.delete("/api/endpoints/later")


# bytes


def without_ids(data: bytes) -> bytes:
    """Without what differs from one answer to the next: its id and its time."""
    data = re.sub(rb'"id":"(chatcmpl|cmpl|msg|resp)[-_][0-9a-f]+"', b'"id":""', data)
    data = re.sub(rb'"(created|created_at)":\d+', b"", data)
    return re.sub(rb"(resp|msg)_[0-9a-f]+", b"", data)


def without_fingerprint(data: bytes) -> bytes:
    """Without the one thing that moves when usage is asked for: out of the last event with choices."""
    return re.sub(rb',"system_fingerprint":"[^"]+"', b"", data)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat("writer", stream=True, stream_options={"include_usage": True})),
        (CHAT, chat("writer", stream=True, stream_options={"include_usage": False, "continuous_usage_stats": True})),
        ("/v1/completions", {"model": "writer", "prompt": "hello", "stream": True}),
        ("/v1/responses", {"model": "writer", "input": "hello", "stream": True}),
        ("/v1/messages", {**chat("writer"), "max_tokens": 9, "stream": True}),
        (CHAT, chat("writer")),
    ],
    ids=["chat with usage", "chat without", "completions", "responses", "messages", "json"],
)
def test_the_bytes_are_the_engines_own(stack: Stack, path: str, body: dict[str, Any]) -> None:
    stack.client.post(path, json=body)  # both find the same prefix cache
    through = stack.client.post(path, json=body)
    with engine_of(stack, "writer") as engine:
        direct = engine.post(path, json=body)
    assert through.status_code == direct.status_code == 200
    assert without_fingerprint(without_ids(through.content)) == without_fingerprint(without_ids(direct.content))
    assert through.headers["content-type"] == direct.headers["content-type"]
    if body.get("stream"):
        assert through.headers["cache-control"] == "no-cache"
        assert through.headers["x-accel-buffering"] == "no"


SPOKEN = 'data: {"choices":[{"index":0,"delta":{"content":"süß, 海 and 🌊"}}]}'
AWKWARD = (
    f": a comment\n\n{SPOKEN}\r\n\r\n: another\r\n{SPOKEN}\n\nevent: x\nid: 7\nretry: 9\ndata: a\ndata: b\n\n".encode()
    + b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % (b"a" * 1_000_000)
    + b"data: [DONE]\n\n"
)
"""Comments, both ends of lines, characters of many bytes, several fields and an event of a megabyte."""


@pytest.fixture(scope="module")
def awkward_socket(stack: Stack) -> Iterator[Path]:
    """A ready worker's socket, at which its engine does not listen any more and no connection is open."""
    stack.endpoint("awkward")
    stack.client.post("/api/endpoints/awkward/start").raise_for_status()
    [worker] = stack.wait_for_state("awkward", "hot")["workers"]
    with stack.socket_hidden(worker["id"]) as path:
        yield path


@pytest.mark.parametrize("step", [1, 7, 4096])
async def test_every_byte_of_an_awkward_stream_arrives_wherever_its_chunks_end(
    stack: Stack, awkward_socket: Path, step: int, record_property: Tell
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_call(reader, writer)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        cuts = [*range(0, 400, step), *range(400 + step, len(AWKWARD), 50_000), len(AWKWARD)]
        for start, end in itertools.pairwise(cuts):
            writer.write(b"%x\r\n%s\r\n" % (end - start, AWKWARD[start:end]))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await until_closed(reader)

    async with raw_server(serve, awkward_socket), calling(stack.port) as caller:
        caller.post(CHAT, chat("awkward", stream=True, stream_options={"include_usage": True}))
        assert (await caller.answer()).body == AWKWARD
    record_property(f"chunks of {step} bytes", f"{len(AWKWARD):,} of {len(AWKWARD):,} bytes")


# routes

WRITER, READER = {"model": "writer"}, {"model": "reader"}
ROUTES: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, chat("writer"), "choices"),
    ("/v1/completions", {**WRITER, "prompt": "hello"}, "choices"),
    ("/v1/responses", {**WRITER, "input": "hello"}, "output"),
    ("/v1/messages", {**chat("writer"), "max_tokens": 9}, "content"),
    ("/v1/messages/count_tokens", chat("writer"), "input_tokens"),
    ("/tokenize", {**WRITER, "prompt": "hello"}, "tokens"),
    ("/detokenize", {**WRITER, "tokens": [104, 101]}, "prompt"),
    ("/v1/embeddings", {**READER, "input": "hello"}, "data"),
    ("/v1/rerank", {**READER, "query": "q", "documents": ["a", "b"]}, "results"),
    ("/v1/score", {**READER, "text_1": "a", "text_2": "b"}, "data"),
    ("/v1/pooling", {**READER, "input": "hello"}, "data"),
    ("/v1/classify", {**READER, "input": "hello"}, "data"),
]


@pytest.mark.parametrize(("path", "body", "field"), ROUTES, ids=[route[0] for route in ROUTES])
def test_every_inference_route_is_forwarded(stack: Stack, path: str, body: dict[str, Any], field: str) -> None:
    answer = stack.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert field in answer.json()
    assert answer.headers["x-hostler-worker"].startswith(body["model"])


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
@pytest.mark.parametrize("first", ["model", "file"])
def test_audio_is_forwarded_as_the_form_it_came_in(stack: Stack, path: str, first: str) -> None:
    parts: list[tuple[str, Any]] = [("model", (None, "writer")), ("file", ("a.wav", b"\x00\xff\r\n--RIFF" * 999))]
    answer = stack.client.post(path, files=sorted(parts, key=lambda part: part[0] != first))
    assert answer.status_code == 200, answer.text
    assert answer.json()["text"]


def test_a_response_is_fetched_and_cancelled_at_the_worker_that_made_it(stack: Stack) -> None:
    made = stack.client.post("/v1/responses", json={"model": "writer", "input": "hello"})
    path = f"/v1/responses/{made.json()['id']}"
    fetched = stack.client.get(path)
    assert (fetched.status_code, fetched.json()["id"]) == (200, made.json()["id"])
    assert fetched.headers["x-hostler-worker"] == made.headers["x-hostler-worker"]
    cancelled = stack.client.post(f"{path}/cancel")
    assert (cancelled.status_code, cancelled.json()["error"]["type"]) == (400, "BadRequestError")
