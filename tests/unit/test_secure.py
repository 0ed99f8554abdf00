"""The server's protocol behind TLS, on real sockets and uvloop: how connections end, and what slow clients cost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.http11.door import Hall
from gateway.http11.exchange import Exchange
from gateway.http11.secure import AHEAD_BYTES, SecureConnection
from tests.support.crowd import Caller, calling
from tests.support.secure_server import SECONDS, Handle, Served, ok, run, serving
from tests.support.waiting import wait_until_async

SMALL = 4096
"""A receive buffer, so that the server's end is full soon."""
LARGE = 8 << 20
GET = b"GET /direct HTTP/1.1\r\nhost: h\r\n\r\n"
LAST = b"GET /direct HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"


@asynccontextmanager
async def one_client(
    folder: Path, handle: Handle, **limits: Any
) -> AsyncIterator[tuple[Served[Hall], Caller, SecureConnection]]:
    """A server, a client with little room, and the server's end of its connection."""
    async with (
        serving(folder, handle, Hall, **limits) as served,
        calling(served.port, SMALL, served.authority.trust) as caller,
    ):
        await wait_until_async(lambda: served.connections, "the handshake", seconds=SECONDS)
        yield served, caller, next(iter(served.connections))


async def much(exchange: Exchange) -> None:
    """One large answer, written at once."""
    body = bytes(LARGE)
    exchange.start(200, [(b"content-length", b"%d" % len(body))])
    exchange.end(body)


async def bit_by_bit(exchange: Exchange) -> None:
    """A large answer, of which nothing is written while the client's socket is full."""
    free = asyncio.Event()
    exchange.when_free = free.set
    exchange.start(200, [(b"content-length", b"%d" % LARGE)])
    for _ in range(LARGE // AHEAD_BYTES):
        while exchange.blocked and not exchange.gone:
            free.clear()
            await free.wait()
        exchange.write(bytes(AHEAD_BYTES))
    exchange.end()


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def test_the_last_answer_of_a_connection_reaches_a_slow_client_whole(tmp_path: Path) -> None:
    looks: list[int | None] = []

    def look(connection: SecureConnection, before: int | None = None) -> None:
        looks.append(before)
        SecureConnection._look_whether_sent(connection, before)

    async def scenario() -> None:
        async with one_client(tmp_path, much, _look_whether_sent=look) as (served, caller, _):
            caller.send(LAST)
            await wait_until_async(lambda: len(looks) > 5, "the server waits for the client", seconds=SECONDS)
            assert served.connections
            assert len(body_of(await caller.read_to_end())) == LARGE

    run(scenario)


def test_a_client_that_is_slow_holds_up_its_own_answer_and_gets_it_whole(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with one_client(tmp_path, bit_by_bit) as (_, caller, connection):
            caller.send(LAST)
            await wait_until_async(lambda: connection.blocked, "the client's socket is full", seconds=SECONDS)
            assert connection.transport.get_write_buffer_size() < 4 * AHEAD_BYTES
            before = connection._reader.untaken()
            await caller.read_until(bytes(AHEAD_BYTES))
            await wait_until_async(lambda: connection._reader.untaken() < before, "it was noticed", seconds=SECONDS)
            assert len(body_of(await caller.read_to_end())) == LARGE

    run(scenario)


@pytest.mark.parametrize("request_", [GET, LAST], ids=["kept", "last"])
def test_a_client_that_takes_nothing_is_cut_off(tmp_path: Path, request_: bytes) -> None:
    async def scenario() -> None:
        async with one_client(tmp_path, bit_by_bit, client_stall_seconds=0.2) as (served, caller, _):
            caller.send(request_)
            await wait_until_async(lambda: not served.connections, "it is cut off", seconds=SECONDS)

    run(scenario)


def test_an_idle_connection_ends_at_a_stop_though_its_client_says_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with one_client(tmp_path, ok) as (served, caller, connection):
            caller.send(GET)
            await caller.answer()
            caller.stop_reading()
            connection.shutdown()
            await wait_until_async(lambda: not served.connections, "it has ended", seconds=SECONDS)

    run(scenario)


def test_an_idle_connection_ends_after_its_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with one_client(tmp_path, ok, idle_seconds=0.1) as (_, caller, _):
            caller.send(GET)
            assert await caller.read_to_end() == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

    run(scenario)
