"""What strange clients cost the gateway: endless headers, half-sent requests, readers that never read."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine_simulator.configuration import Simulation
from tests.support.battery import Tell
from tests.support.crowd import SECONDS, Caller, calling, crowd
from tests.support.memory import forget_peak, peak_mib
from tests.support.raw_http import dechunked, post_bytes
from tests.support.raw_server import raw_server, read_call, until_closed
from tests.support.stack import ADMIN_KEY, Stack, chat, running_stack
from tests.support.waiting import wait_until_async

CHAT = "/v1/chat/completions"
MIB = 1024 * 1024
HEADER_MIB = 100
HEADER_COST_MIB = 5
HALF_SENT = 300
HALF_SENT_SECONDS = 15
HALF_SENT_COST_MIB = 5
BODY_SECONDS = 5
BODIES = 2
BODY_MIB = 60
COPIES = 1.5
POURED_MIB = 100
SIPPED_MIB = 10
UNREAD_COST_MIB = 10
CLIENT_STALL_SECONDS = 1
SMALL_BUFFER = 4096
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"a" * 65_400 + b'"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    settings = {"HOSTLER_BODY_SECONDS": str(BODY_SECONDS), "HOSTLER_CLIENT_STALL_SECONDS": str(CLIENT_STALL_SECONDS)}
    with running_stack(settings) as started:
        started.endpoint("first", Simulation(answer_tokens=3), per_worker=64)
        started.ask("first").raise_for_status()
        yield started


def gateway_pid(stack: Stack) -> int:
    assert stack.gateway is not None
    return stack.gateway.pid


def descriptors(stack: Stack) -> int:
    metrics = stack.metrics()
    return int(metrics["process_open_fds"] - metrics["hostler_idle_connections"])


async def test_a_header_of_a_hundred_megabytes_costs_at_most_five(stack: Stack, record_property: Tell) -> None:
    before = forget_peak(gateway_pid(stack))
    async with calling(stack.port) as caller:
        caller.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nx-long: ")
        block = b"a" * MIB
        with contextlib.suppress(ConnectionError):
            for _ in range(HEADER_MIB):
                caller.send(block)
                await caller.drain()
        received = await caller.read_to_end()
    assert received.startswith(b"HTTP/1.1 431 ")
    cost = peak_mib(gateway_pid(stack)) - before
    assert cost <= HEADER_COST_MIB
    record_property("header of 100 MB costs", f"{cost:.1f} MiB")


async def dribble(callers: list[Caller]) -> None:
    """A line of a header a second, from each, for ever."""
    while True:
        await asyncio.sleep(1)
        for caller in callers:
            caller.send(b"x-more: y\r\n")


async def test_three_hundred_half_sent_requests_are_all_gone_in_fifteen_seconds(
    stack: Stack, record_property: Tell
) -> None:
    whole = post_bytes(CHAT, chat("first"), ADMIN_KEY)
    cuts = [0, 4, whole.index(b"\r\n") + 2, whole.index(b"Bearer"), whole.index(b"\r\n\r\n") + 2]
    before, resident = descriptors(stack), forget_peak(gateway_pid(stack))
    began = time.monotonic()
    async with crowd(stack.port, HALF_SENT) as callers, crowd(stack.port, HALF_SENT // 3) as with_body:
        for number, caller in enumerate(callers):
            caller.send(whole[: cuts[number % len(cuts)]])
        for caller in with_body:
            caller.send(whole[:-1])
        dribbling = asyncio.create_task(dribble([caller for n, caller in enumerate(callers) if n % len(cuts) == 2]))
        # everybody else is served meanwhile
        assert stack.ask("first").status_code == 200
        await asyncio.gather(*(caller.read_to_end() for caller in [*callers, *with_body]))
        assert time.monotonic() - began <= HALF_SENT_SECONDS
        dribbling.cancel()
        for caller in with_body:
            assert caller.received.startswith(b"HTTP/1.1 408 ")
        for number, caller in enumerate(callers):
            assert caller.received[:13] == (b"HTTP/1.1 408 " if cuts[number % len(cuts)] else b"")
        await wait_until_async(lambda: descriptors(stack) <= before, "the gateway has let go of them")
    seconds, cost = time.monotonic() - began, peak_mib(gateway_pid(stack)) - resident
    assert seconds <= HALF_SENT_SECONDS
    assert cost <= HALF_SENT_COST_MIB
    record_property("300 half-sent headers and 100 bodies gone after", f"{seconds:.1f} s")
    record_property("they cost", f"{cost:.1f} MiB")


async def test_large_bodies_are_held_once_each(stack: Stack) -> None:
    before = forget_peak(gateway_pid(stack))
    async with crowd(stack.port, BODIES) as callers:
        for caller in callers:
            caller.post(CHAT, chat("first", "a" * (BODY_MIB * MIB)))
        for caller in callers:
            assert (await caller.answer()).status == 400, "it is longer than the model's context"
    assert (peak_mib(gateway_pid(stack)) - before) / (BODIES * BODY_MIB) <= COPIES


class Pouring:
    """Stands in for an engine: answers with a hundred megabytes, as fast as they are taken."""

    def __init__(self, mib: int, *, stream: bool) -> None:
        self._stream = stream
        self.body = EVENT * (mib * MIB // len(EVENT)) + DONE * stream
        self.written = 0
        self.broken = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_call(reader, writer)
        writer.transport.set_write_buffer_limits(high=len(EVENT))
        kind = b"text/event-stream" if self._stream else b"application/json"
        framing = b"transfer-encoding: chunked" if self._stream else b"content-length: %d" % len(self.body)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n%s\r\n\r\n" % (kind, framing))
        try:
            for start in range(0, len(self.body), len(EVENT)):
                piece = self.body[start : start + len(EVENT)]
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if self._stream else piece)
                await writer.drain()
                self.written += len(piece)
            writer.write(b"0\r\n\r\n" * self._stream)
            await until_closed(reader)
        finally:
            self.broken.set()


@pytest.fixture(scope="module")
def engine_socket(stack: Stack) -> Iterator[Path]:
    """A ready worker's socket, at which its engine does not listen any more and no connection is open."""
    stack.endpoint("pouring")
    stack.client.post("/api/endpoints/pouring/start").raise_for_status()
    [worker] = stack.wait_for_state("pouring", "hot")["workers"]
    with stack.socket_hidden(worker["id"]) as path:
        yield path


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
async def test_a_client_that_never_reads_costs_at_most_ten_megabytes_and_is_cut_off_in_the_end(
    stack: Stack, engine_socket: Path, record_property: Tell, *, stream: bool
) -> None:
    engine = Pouring(POURED_MIB, stream=stream)
    before = forget_peak(gateway_pid(stack))
    async with raw_server(engine, engine_socket), calling(stack.port, SMALL_BUFFER) as caller:
        caller.post(CHAT, chat("pouring", stream=stream))
        await asyncio.wait_for(engine.broken.wait(), SECONDS)
        assert 0 < engine.written < POURED_MIB * MIB / 2
        cost = peak_mib(gateway_pid(stack)) - before
        assert cost <= UNREAD_COST_MIB
        record_property(f"{POURED_MIB} MiB of {'a stream' if stream else 'JSON'} unread cost", f"{cost:.1f} MiB")
        in_flight = 'hostler_in_flight{endpoint="pouring"}'
        await wait_until_async(lambda: stack.metrics()[in_flight] == 0, "the lease is back", seconds=SECONDS)
        assert len(await caller.read_to_end()) < POURED_MIB * MIB / 2


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
async def test_a_client_that_reads_in_sips_gets_everything(stack: Stack, engine_socket: Path, *, stream: bool) -> None:
    engine = Pouring(SIPPED_MIB, stream=stream)
    before = forget_peak(gateway_pid(stack))
    async with raw_server(engine, engine_socket), calling(stack.port, SMALL_BUFFER) as caller:
        caller.post(CHAT, chat("pouring", stream=stream), "connection: close")
        began = time.monotonic()
        while time.monotonic() - began < 3 * CLIENT_STALL_SECONDS:
            await caller.read_some()
            await asyncio.sleep(CLIENT_STALL_SECONDS / 10)
        assert not engine.broken.is_set()
        body = (await caller.read_to_end()).partition(b"\r\n\r\n")[2]
    assert (dechunked(body) if stream else body) == engine.body
    assert peak_mib(gateway_pid(stack)) - before <= UNREAD_COST_MIB
