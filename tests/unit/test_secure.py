"""The server's protocol behind TLS, on real sockets and uvloop: how connections end, and what slow clients cost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from gateway.certificate import Certificate
from gateway.http11.door import Hall, MistakenConnection
from gateway.http11.exchange import Exchange
from gateway.http11.secure import AHEAD_BYTES, SecureConnection
from tests.support.certificates import Authority
from tests.support.crowd import Caller, calling
from tests.support.waiting import wait_until_async

SECONDS = 60.0
SMALL = 4096
"""A receive buffer, so that the server's end is full soon."""
LARGE = 8 << 20
GET = b"GET /direct HTTP/1.1\r\nhost: h\r\n\r\n"
LAST = b"GET /direct HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"

Handle = Callable[[Exchange], Awaitable[None]]


class Served:
    """A server, its connections, and how to reach it."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.connections: set[SecureConnection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.total_requests = 0
        self.port = 0

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[tuple[Caller, SecureConnection]]:
        """A client with little room, and the server's end of its connection."""
        async with calling(self.port, SMALL, self.authority.trust) as caller:
            await wait_until_async(lambda: self.connections, "the handshake", seconds=SECONDS)
            yield caller, next(iter(self.connections))


@asynccontextmanager
async def serving(folder: Path, handle: Handle, **limits: Any) -> AsyncIterator[Served]:
    authority = Authority()
    served = Served(authority)
    certificate = Certificate(*authority.sign(folder))
    kind = type("Limited", (SecureConnection,), {"direct": staticmethod(lambda _path: handle), **limits})
    needs: Any = (SimpleNamespace(loaded=True, loaded_app=None), served, {})
    hall = Hall(
        certificate.context,
        lambda: kind(*needs),
        lambda: MistakenConnection(*needs),
        handshake_seconds=SECONDS,
        shutdown_seconds=SECONDS,
    )
    server = await asyncio.get_running_loop().create_server(hall.door, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
        await wait_until_async(lambda: not served.connections, "no connection is left", seconds=SECONDS)
    finally:
        server.close()


def run(scenario: Callable[[], Any]) -> None:
    """On the loop that the product runs on."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


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


async def nothing_more(exchange: Exchange) -> None:
    exchange.start(200, [(b"content-length", b"2")])
    exchange.end(b"ok")


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def test_the_last_answer_of_a_connection_reaches_a_slow_client_whole(tmp_path: Path) -> None:
    looks: list[int | None] = []

    def look(connection: SecureConnection, before: int | None = None) -> None:
        looks.append(before)
        SecureConnection._look_whether_sent(connection, before)

    async def scenario() -> None:
        async with serving(tmp_path, much, _look_whether_sent=look) as served, served.calling() as (caller, _):
            caller.send(LAST)
            await wait_until_async(lambda: len(looks) > 5, "the server waits for the client", seconds=SECONDS)
            assert served.connections
            assert len(body_of(await caller.read_to_end())) == LARGE

    run(scenario)


def test_a_client_that_is_slow_holds_up_its_own_answer_and_gets_it_whole(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, bit_by_bit) as served, served.calling() as (caller, connection):
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
        async with serving(tmp_path, bit_by_bit, client_stall_seconds=0.2) as served, served.calling() as (caller, _):
            caller.send(request_)
            await wait_until_async(lambda: not served.connections, "it is cut off", seconds=SECONDS)

    run(scenario)


def test_an_idle_connection_ends_at_a_stop_though_its_client_says_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, nothing_more) as served, served.calling() as (caller, connection):
            caller.send(GET)
            await caller.answer()
            caller.stop_reading()
            connection.shutdown()
            await wait_until_async(lambda: not served.connections, "it has ended", seconds=SECONDS)

    run(scenario)


def test_an_idle_connection_ends_after_its_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, nothing_more, idle_seconds=0.1) as served, served.calling() as (caller, _):
            caller.send(GET)
            assert await caller.read_to_end() == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

    run(scenario)
