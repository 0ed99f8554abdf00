"""A gateway that is told to stop with fifty streams open: within its bound they end whole, beyond it with an error."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.engine_simulator.configuration import Simulation
from tests.support.battery import Tell, hold, milliseconds
from tests.support.crowd import SECONDS, Caller, contents, crowd
from tests.support.processes import accepts_connections
from tests.support.raw_http import dechunked
from tests.support.stack import Stack, chat, running_stack
from tests.support.waiting import wait_until_async

CHAT = "/v1/chat/completions"
STREAMS = 50
TOKENS = 30
HELD = Simulation(answer_tokens=TOKENS, hold=["wait for me"])
BRIEF_DRAIN_SECONDS = 2
REFUSED_SECONDS = 0.5


@pytest.fixture
def stack() -> Iterator[Stack]:
    with running_stack({"HOSTLER_DRAIN_SECONDS": str(SECONDS)}) as started:
        yield started


@pytest.fixture
def hasty_stack() -> Iterator[Stack]:
    with running_stack({"HOSTLER_DRAIN_SECONDS": str(BRIEF_DRAIN_SECONDS)}) as started:
        yield started


@asynccontextmanager
async def open_streams(stack: Stack) -> AsyncIterator[list[Caller]]:
    """Fifty streams of which all but the last token has arrived, and which end when the engine may say it."""
    stack.endpoint("first", HELD, per_worker=2 * STREAMS)
    stack.ask("first", "hello").raise_for_status()
    async with crowd(stack.port, STREAMS) as callers:
        for caller in callers:
            caller.post(CHAT, chat("first", "wait for me", stream=True))
        await asyncio.gather(*(caller.read_until(b'"content":"') for caller in callers))
        yield callers


async def told_to_stop(stack: Stack) -> float:
    """SIGTERM; seconds until new connections are refused."""
    assert stack.gateway is not None
    began = time.monotonic()
    stack.gateway.signal(signal.SIGTERM)
    address = ("127.0.0.1", stack.port)
    await wait_until_async(lambda: not accepts_connections(address), "connections are refused", seconds=SECONDS)
    seconds = time.monotonic() - began
    hold(seconds, REFUSED_SECONDS, "new connections are refused")
    assert stack.gateway.exit_code is None
    return seconds


async def bodies(callers: list[Caller]) -> list[bytes]:
    """What each stream was, to the end of its connection. Raises AssertionError if it was cut."""
    received = await asyncio.gather(*(caller.read_to_end() for caller in callers))
    return [dechunked(answer.partition(b"\r\n\r\n")[2]) for answer in received]


def engine_pid(stack: Stack) -> int:
    """The process of the one engine."""
    [worker] = (stack.run / "engines").iterdir()
    return int(stack.engine_stats(worker.name)["pid"])


async def exit_code(stack: Stack) -> int:
    assert stack.gateway is not None
    return await asyncio.to_thread(stack.gateway.wait, SECONDS)


async def test_fifty_streams_that_are_open_when_the_gateway_is_told_to_stop_end_whole(
    stack: Stack, record_property: Tell
) -> None:
    async with open_streams(stack) as callers:
        record_property("new connections refused after", milliseconds(await told_to_stop(stack)))
        stack.order("first", Simulation(answer_tokens=TOKENS))
        for body in await bodies(callers):
            assert len(contents(body)) == TOKENS
    assert await exit_code(stack) == 0
    record_property("whole", f"{STREAMS} of {STREAMS}, exit code 0")
    # its engine lives on, and serves the next gateway
    before = engine_pid(stack)
    assert stack.gateway is not None
    stack.gateway.stop()
    stack.start_gateway()
    stack.ask("first").raise_for_status()
    assert engine_pid(stack) == before


async def test_streams_that_outlast_the_bound_of_a_stop_end_with_an_error_event(hasty_stack: Stack) -> None:
    async with open_streams(hasty_stack) as callers:
        await told_to_stop(hasty_stack)
        for body in await bodies(callers):
            error, done = body.decode().rstrip().split("\n\n")[-2:]
            assert done == "data: [DONE]"
            assert json.loads(error.removeprefix("data: "))["error"]["code"] == "stopping"
    assert await exit_code(hasty_stack) == 0
