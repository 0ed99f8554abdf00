"""The server's protocol on a real socket: whatever way the bytes come, the same requests are seen and answered."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.errors import GatewayError
from gateway.http11.connection import ClientConnection
from gateway.http11.exchange import UNREAD_LIMIT, Exchange
from tests.support.raw_http import dechunked
from tests.support.waiting import wait_until_async

SECONDS = 5.0
MIB = 2**20
LENGTH = b"content-length"

Handle = Callable[[Exchange], Awaitable[None]]


class Server:
    """What uvicorn keeps for its protocols."""

    def __init__(self) -> None:
        self.connections: set[ClientConnection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.total_requests = 0


async def echo(exchange: Exchange) -> None:
    """Answer with what came: method, path, query, header names and body."""
    body = await exchange.body(64 * MIB, SECONDS)
    names = b",".join(name for name, _ in exchange.headers)
    said = b"|".join([exchange.method.encode(), exchange.path.encode(), exchange.query, names, body])
    exchange.start(200, [(LENGTH, b"%d" % len(said))])
    exchange.end(said)


async def asgi_echo(scope: Any, receive: Any, send: Any) -> None:
    """The same as an ASGI application."""
    body, more = b"", True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        more = message["more_body"]
    names = b",".join(name for name, _ in scope["headers"])
    said = b"|".join([scope["method"].encode(), scope["path"].encode(), scope["query_string"], names, body])
    headers = [(LENGTH, b"%d" % len(said))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said[:3], "more_body": True})
    await send({"type": "http.response.body", "body": said[3:]})


@asynccontextmanager
async def serving(handle: Handle, app: Any = asgi_echo, **limits: Any) -> AsyncIterator[tuple[int, Server]]:
    """A server whose paths under /direct go to `handle`, all others to the ASGI app; its port."""
    server = Server()

    def direct(path: str) -> Handle | None:
        return handle if path.startswith("/direct") else None

    kind = type("Limited", (ClientConnection,), {"direct": staticmethod(direct), **limits})
    loop = asyncio.get_running_loop()
    config = SimpleNamespace(loaded=True, loaded_app=app)
    listening = await loop.create_server(lambda: kind(config, server, {}), "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1], server
        await wait_until_async(lambda: not server.connections and not server.tasks)
    finally:
        listening.close()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client's connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=65_536)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ask(port: int, *pieces: bytes) -> bytes:
    """Send the pieces one by one; everything that comes until the server has ended the connection."""
    async with connected(port) as (reader, writer), asyncio.timeout(SECONDS):
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        return await reader.read(-1)


def run(scenario: Callable[[], Awaitable[Any]]) -> Any:
    async def whole() -> Any:
        return await scenario()

    return asyncio.run(whole())


POST = b"POST /%s/a%%20b?c=d HTTP/1.1\r\nHost: x\r\nX-Y: z\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /%s/c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n1;name=value\r\n!\r\n0\r\nx-trailer: 1\r\n\r\n"
)
LAST = b"GET /%s/last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
WHOLE = {way: b"".join(request % way for request in (POST, CHUNKED, LAST)) for way in (b"direct", b"asgi")}


def bodies(answers: bytes) -> list[bytes]:
    """The bodies of answers with a length, one after the other."""
    found = []
    while answers:
        head, _, answers = answers.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(LENGTH)]
        length = int(lengths[0].partition(b":")[2])
        found.append(answers[:length])
        answers = answers[length:]
    return found


def expected(way: bytes) -> list[bytes]:
    return [
        b"POST|/%s/a b|c=d|host,x-y,content-length|hello" % way,
        b"POST|/%s/c||host,transfer-encoding|hello!" % way,
        b"GET|/%s/last||host,connection|" % way,
    ]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([b"direct", b"asgi"]), st.lists(st.integers(0, 400), max_size=12))
@example(b"direct", [])
@example(b"asgi", [])
@example(b"direct", list(range(400)))
@example(b"asgi", list(range(400)))
def test_requests_sent_ahead_are_the_same_however_they_are_cut(way: bytes, places: list[int]) -> None:
    raw = WHOLE[way]
    edges = [0, *sorted({place % (len(raw) + 1) for place in places}), len(raw)]
    pieces = [raw[start:end] for start, end in itertools.pairwise(edges) if end > start]

    async def scenario() -> None:
        async with serving(echo) as (port, server):
            assert bodies(await ask(port, *pieces)) == expected(way)
            assert server.total_requests == 3

    run(scenario)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([b"", WHOLE[b"direct"][:120], WHOLE[b"asgi"]]), st.binary(max_size=200))
def test_whatever_a_client_says_it_is_answered_and_let_go(before: bytes, noise: bytes) -> None:
    async def scenario() -> None:
        limits = {"header_seconds": 0.05, "idle_seconds": 0.05}
        async with serving(echo, **limits) as (port, _), connected(port) as (_, writer):
            writer.write(before + noise)
            writer.write_eof()
            await asyncio.sleep(0)

    run(scenario)


async def test_a_thousand_requests_sent_ahead_are_all_answered_in_order() -> None:
    async with serving(echo) as (port, _):
        many = b"".join(b"GET /direct/%d HTTP/1.1\r\nhost: x\r\n\r\n" % number for number in range(1_000))
        answers = bodies(await ask(port, many + LAST % b"direct"))
        assert [answer.split(b"|")[1] for answer in answers[:-1]] == [b"/direct/%d" % number for number in range(1_000)]
        assert len(answers) == 1_001


async def test_a_good_request_before_a_bad_one_is_answered_first() -> None:
    async with serving(echo) as (port, _):
        for way in (b"direct", b"asgi"):
            raw = await ask(port, POST % way + b"\x00 what is this\r\n\r\n")
            first, _, second = raw.partition(b"|hello")
            assert first.startswith(b"HTTP/1.1 200 OK\r\n")
            assert second.startswith(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n")


async def test_a_body_that_turns_out_malformed_ends_the_request_with_400() -> None:
    for way in (b"direct", b"asgi"):
        async with serving(echo) as (port, _):
            raw = await ask(port, CHUNKED.partition(b"5\r\n")[0] % way, b"5\r\nhel", b"lo\r\nno size\r\n")
            assert raw.startswith(b"HTTP/1.1 400 ")


# the ways of HTTP


async def test_head_gets_the_header_alone() -> None:
    async with serving(echo) as (port, _):
        for way in (b"direct", b"asgi"):
            raw = await ask(port, LAST.replace(b"GET", b"HEAD") % way)
            assert raw.startswith(b"HTTP/1.1 200 OK\r\ncontent-length: ")
            assert raw.endswith(b"\r\n\r\n")


async def in_pieces(exchange: Exchange) -> None:
    """An answer of unknown length, whose head comes before its body."""
    exchange.start(200, [(b"content-type", b"text/plain")])
    exchange.flush()
    exchange.write(b"one ")
    exchange.write(b"")
    exchange.write(b"two ")
    exchange.end(b"three")


async def test_an_answer_without_length_comes_in_chunks_and_to_an_old_client_until_the_end() -> None:
    async with serving(in_pieces) as (port, _):
        head, _, body = (await ask(port, LAST % b"direct")).partition(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        assert dechunked(body) == b"one two three"
        head, _, body = (await ask(port, b"GET /direct HTTP/1.0\r\n\r\n")).partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head
        assert b"connection: close" in head
        assert body == b"one two three"


async def test_a_client_that_expects_our_word_is_given_it_only_if_its_body_is_wanted() -> None:
    expecting = POST.replace(b"X-Y: z", b"Expect: 100-continue") % b"direct"
    head, _, body = expecting.partition(b"\r\n\r\n")

    async def unwanted(exchange: Exchange) -> None:
        exchange.start(401, [(LENGTH, b"0")])
        exchange.end()

    async with serving(echo) as (port, _), connected(port) as (reader, writer):
        writer.write(head + b"\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
    async with serving(unwanted) as (port, _):
        raw = await ask(port, head + b"\r\n\r\n")
        assert raw.startswith(b"HTTP/1.1 401 ")
        assert b"connection: close" in raw


async def test_a_request_for_another_protocol_is_answered_like_any_other() -> None:
    asking = POST.replace(b"X-Y: z", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c")
    async with serving(echo) as (port, _):
        answers = bodies(await ask(port, asking % b"direct" + LAST % b"direct"))
        assert answers[0].endswith(b"|hello")
        assert len(answers) == 2


async def test_a_connection_is_kept_for_a_while_and_then_closed() -> None:
    async with serving(echo, idle_seconds=0.1) as (port, _):
        raw = await ask(port, POST % b"direct", POST % b"asgi")
        assert raw.count(b"HTTP/1.1 200 OK") == 2
        assert b"connection: close" not in raw


async def test_an_absolute_address_and_a_star_are_understood() -> None:
    async with serving(echo) as (port, _):
        raw = await ask(
            port,
            b"GET http://x/direct/y?z HTTP/1.1\r\nhost: x\r\n\r\nOPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n"
            + LAST % b"direct",
        )
        assert [answer.split(b"|")[1] for answer in bodies(raw)] == [b"/direct/y", b"*", b"/direct/last"]


# bodies


async def test_a_body_over_the_limit_is_refused_and_the_answer_survives_what_is_still_being_sent() -> None:
    refusals: list[GatewayError] = []

    async def small(exchange: Exchange) -> None:
        try:
            await exchange.body(MIB, SECONDS)
        except GatewayError as error:
            refusals.append(error)
            exchange.start(error.status, [*error.headers(), (LENGTH, b"0")])
            exchange.end()

    for head in (b"content-length: %d\r\n\r\n" % (8 * MIB), b"transfer-encoding: chunked\r\n\r\n%x\r\n" % (8 * MIB)):
        async with serving(small) as (port, _):
            raw = await ask(port, b"POST /direct HTTP/1.1\r\nhost: x\r\n" + head + bytes(2 * MIB))
            assert raw.startswith(b"HTTP/1.1 413 ")
            assert b"connection: close" in raw
    assert len(refusals) == 2


async def test_a_body_that_stops_coming_is_told() -> None:
    async def impatient(exchange: Exchange) -> None:
        try:
            await exchange.body(MIB, 0.05)
        except GatewayError as error:
            exchange.start(error.status, [*error.headers(), (LENGTH, b"0")])
            exchange.end()

    async with serving(impatient) as (port, _):
        assert (await ask(port, (POST % b"direct")[:-2])).startswith(b"HTTP/1.1 408 ")


async def test_a_body_nobody_reads_stops_its_sender() -> None:
    wanted = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await wanted.wait()
        await asgi_echo(scope, receive, send)

    size = 32 * MIB
    async with serving(echo, slow) as (port, server), connected(port) as (reader, writer):
        writer.write(b"POST /asgi HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.3)
        (connection,) = server.connections
        assert connection._current is not None
        assert connection._current._size < UNREAD_LIMIT + MIB
        wanted.set()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")


# the client's side


async def test_a_client_that_does_not_read_is_told_of_and_room_is_told_too() -> None:
    blocked, freed = asyncio.Event(), asyncio.Event()

    async def large(exchange: Exchange) -> None:
        exchange.start(200, [])
        exchange.when_free = freed.set
        while not exchange.blocked:
            exchange.write(bytes(MIB))
        blocked.set()
        await freed.wait()
        exchange.end(b"end")

    async with serving(large) as (port, _), connected(port) as (reader, writer):
        writer.write(LAST % b"direct")
        async with asyncio.timeout(SECONDS):
            await blocked.wait()
            assert not freed.is_set()
            assert (await reader.read(-1)).endswith(b"3\r\nend\r\n0\r\n\r\n")


@pytest.mark.parametrize("ahead", [b"", LAST % b"direct"])
async def test_a_hang_up_cancels_a_direct_handler_and_tells_an_asgi_one(ahead: bytes) -> None:
    begun, cancelled, told = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def waiting(_exchange: Exchange) -> None:
        begun.set()
        try:
            await asyncio.sleep(SECONDS)
        except asyncio.CancelledError:
            cancelled.set()

    async def listening(_scope: Any, receive: Any, _send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        begun.set()
        assert (await receive())["type"] == "http.disconnect"
        told.set()

    async with serving(waiting, listening) as (port, _), asyncio.timeout(SECONDS):
        for way, noticed in ((b"direct", cancelled), (b"asgi", told)):
            begun.clear()
            async with connected(port) as (_, writer):
                writer.write(POST % way + ahead)
                await begun.wait()
                writer.close()
                await noticed.wait()


@pytest.mark.parametrize("way", [b"direct", b"asgi"])
async def test_a_handler_that_fails_is_a_500_and_one_that_stops_half_way_a_cut_connection(way: bytes) -> None:
    async def half(exchange: Exchange) -> None:
        if exchange.query != b"c=d":
            exchange.start(200, [(LENGTH, b"10")])
            exchange.write(b"half")

    async def asgi_half(scope: Any, _receive: Any, send: Any) -> None:
        if scope["query_string"] == b"c=d":
            raise ValueError("on purpose")
        await send({"type": "http.response.start", "status": 200, "headers": [(LENGTH, b"10")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    async with serving(half, asgi_half) as (port, _):
        raw = await ask(port, POST % way)
        assert raw.startswith(b"HTTP/1.1 500 ")
        assert b'"code":"internal_error"' in raw
        assert (await ask(port, CHUNKED % way)).endswith(b"\r\n\r\nhalf")


async def test_a_server_that_stops_closes_idle_connections_and_lets_answers_finish() -> None:
    go = asyncio.Event()

    async def held(exchange: Exchange) -> None:
        await go.wait()
        await echo(exchange)

    async with serving(held) as (port, server), connected(port) as (idle, _), connected(port) as (busy, writer):
        writer.write(POST % b"direct" + LAST % b"direct")
        await wait_until_async(lambda: len(server.connections) == 2 and bool(server.tasks))
        for connection in list(server.connections):
            connection.shutdown()
        assert await idle.read(-1) == b""
        go.set()
        raw = await busy.read(-1)
        assert raw.count(b"HTTP/1.1 200 OK") == 1
        assert b"connection: close" in raw
        assert raw.endswith(b"|hello")
