"""An engine that closes idle connections early: no request fails for it, and none that was answered is sent twice."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.battery import Tell
from tests.support.crowd import calling
from tests.support.fickle_engine import ANSWER_BODY, FickleEngine, Moment
from tests.support.raw_server import raw_server, read_call
from tests.support.stack import Stack, chat, running_stack

CHAT = "/v1/chat/completions"
REQUESTS = 5_000
CLIENTS = 40
PIECES = (1, 9, 30, 100)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as started:
        yield started


@pytest.fixture(scope="module")
def engine_socket(stack: Stack) -> Iterator[Path]:
    """A ready worker's socket, at which its engine does not listen any more and no connection is open."""
    stack.endpoint("fickle", per_worker=CLIENTS)
    stack.client.post("/api/endpoints/fickle/start").raise_for_status()
    [worker] = stack.wait_for_state("fickle", "hot")["workers"]
    with stack.socket_hidden(worker["id"]) as path:
        yield path


async def client(stack: Stack, number: int) -> int:
    """One client's share of the requests on one connection; how many were answered whole."""
    served = 0
    async with calling(stack.port) as caller:
        for turn in range(REQUESTS // CLIENTS):
            caller.post(CHAT, chat("fickle", "x" * 100), f"x-request-id: {number}-{turn}")
            answer = await caller.answer()
            served += (answer.status, answer.body) == (200, ANSWER_BODY)
    return served


async def test_five_thousand_requests_to_an_engine_that_closes_idle_connections_early_are_served_once_each(
    stack: Stack, engine_socket: Path, record_property: Tell
) -> None:
    engine = FickleEngine(seed=1)
    async with raw_server(engine, engine_socket):
        served = await asyncio.gather(*(client(stack, number) for number in range(CLIENTS)))
    assert sum(served) == REQUESTS
    assert len(engine.answered) == REQUESTS
    assert set(engine.answered.values()) == {1}
    assert set(engine.closed) == set(Moment) - {Moment.NEVER}
    record_property("served once each", f"{sum(served):,} of {REQUESTS:,}, {CLIENTS} clients")
    record_property("connections closed under them", f"{sum(engine.closed.values()):,}")


@pytest.mark.parametrize("length", PIECES)
async def test_a_request_that_was_answered_with_even_one_byte_is_not_sent_again(
    stack: Stack, engine_socket: Path, length: int
) -> None:
    calls = 0
    whole = (
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nx-more: %s\r\n\r\n" % (len(ANSWER_BODY), b"y" * 100) + ANSWER_BODY
    )

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        await read_call(reader, writer)
        writer.write(whole)  # so that the connection is one that was used before
        await read_call(reader, writer)
        calls += 1
        writer.write(whole[:length])

    async with raw_server(serve, engine_socket), calling(stack.port) as caller:
        for status in (200, 502):
            caller.post(CHAT, chat("fickle"))
            assert (await caller.answer()).status == status
    assert calls == 1
