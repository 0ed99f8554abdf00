"""The connection to an engine, against real Unix sockets that say exactly what a test wants."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.proxy.upstream import (
    HEADER_LIMIT,
    READ_LIMIT,
    Connection,
    UpstreamClosed,
    UpstreamError,
    UpstreamMalformed,
    UpstreamSilent,
    connect,
)
from tests.support.cuts import cut
from tests.support.raw_server import Script, answering, raw_server, read_request, until_closed
from tests.support.waiting import wait_until_async

REQUEST = b"POST /v1/completions HTTP/1.1\r\nhost: engine\r\ncontent-length: 2\r\n\r\n"
SECONDS = 5.0
MIB = 2**20

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 11\r\n\r\nhello world"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n1\r\n \r\n5;name=value\r\nworld\r\n0\r\nx-trailer: 1\r\n\r\n"
)
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nhello world"


class Client:
    """The client's side: what it was sent, and whether it takes more at the moment."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.when_free: Callable[[], None] | None = None
        self.takes = True
        self.was_blocked = asyncio.Event()

    def has_some(self) -> bool:
        return bool(self.body)

    @property
    def blocked(self) -> bool:
        if not self.takes and self.body:
            self.was_blocked.set()
        return not self.takes and bool(self.body)

    def write(self, data: bytes) -> None:
        self.body += data

    def flush(self) -> None:
        """Nothing is held back."""

    def take_all(self) -> None:
        self.takes = True
        if self.when_free is not None:
            self.when_free()

    async def pump(self, connection: Connection, seconds: float, watcher: "Watcher | None" = None) -> bytes:
        """The whole body."""
        self.body += await connection.pump(self, seconds, watcher)
        return bytes(self.body)


class Watcher:
    """Sees every piece of a body on its way."""

    def __init__(self) -> None:
        self.seen = b""

    def feed(self, chunk: bytes) -> bytes:
        self.seen += chunk
        return chunk


@contextlib.asynccontextmanager
async def asked(script: Script) -> AsyncIterator[Connection]:
    """A connection on which the request has been sent."""
    async with raw_server(script) as socket:
        connection = await connect(str(socket), SECONDS)
        try:
            connection.request(REQUEST, b"{}")
            yield connection
        finally:
            connection.abort()


async def exchange(script: Script, seconds: float = SECONDS) -> tuple[Connection, bytes]:
    """One whole exchange; the body as it was pumped."""
    async with asked(script) as connection:
        client, watcher = Client(), Watcher()
        await connection.head(seconds)
        await client.pump(connection, seconds, watcher)
        assert watcher.seen == client.body
        return connection, bytes(client.body)


# what an answer may look like


@pytest.mark.parametrize("raw", [PLAIN, CHUNKED])
async def test_an_answer_with_a_length_or_in_chunks_is_whole_and_the_connection_stays(raw: bytes) -> None:
    connection, body = await exchange(answering(raw))
    assert (connection.status, body) == (200, b"hello world")
    assert connection.reusable


async def test_an_answer_that_ends_with_its_connection_is_whole_and_the_connection_is_not_used_again() -> None:
    connection, body = await exchange(answering(UNTIL_CLOSE, close=True))
    assert (connection.status, body, connection.reusable) == (200, b"hello world", False)


async def test_connection_close_is_heeded() -> None:
    connection, body = await exchange(answering(PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")))
    assert (body, connection.reusable) == (b"hello world", False)


async def test_an_answer_without_a_body_is_whole() -> None:
    connection, body = await exchange(answering(b"HTTP/1.1 204 No Content\r\n\r\n"))
    assert (connection.status, body, connection.reusable) == (204, b"", True)


async def test_informational_answers_before_the_real_one_are_passed_over() -> None:
    first = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    connection, body = await exchange(answering(first, PLAIN))
    assert (connection.status, body) == (200, b"hello world")
    assert [name for name, _ in connection.headers] == [b"content-type", b"content-length"]


async def test_header_names_come_in_lower_case_and_trailers_do_not_come_at_all() -> None:
    connection, _ = await exchange(answering(CHUNKED))
    assert connection.headers == [(b"transfer-encoding", b"chunked")]


async def test_a_body_that_came_in_one_piece_with_its_head_is_seen_by_the_watcher() -> None:
    async with asked(answering(CHUNKED)) as connection:
        await connection.head(SECONDS)
        await wait_until_async(lambda: connection.done)
        client, watcher = Client(), Watcher()
        await client.pump(connection, SECONDS, watcher)
        assert watcher.seen == client.body == b"hello world"


async def test_a_body_is_read_whole_up_to_a_limit() -> None:
    for limit, body in ((100, b"hello world"), (4, b"hell")):
        async with asked(answering(CHUNKED)) as connection:
            await connection.head(SECONDS)
            assert await connection.read(SECONDS, limit) == body


async def test_one_connection_serves_one_request_after_the_other() -> None:
    async with asked(answering(CHUNKED)) as connection:
        for _ in range(3):
            await connection.head(SECONDS)
            client = Client()
            await client.pump(connection, SECONDS)
            assert client.body == b"hello world"
            connection.request(REQUEST, b"{}")


# what goes wrong


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: five\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnot a size\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nxx",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
    ],
)
async def test_what_is_not_http_is_called_so_and_the_connection_is_closed(raw: bytes) -> None:
    async with asked(answering(raw)) as connection:
        with pytest.raises(UpstreamMalformed):  # noqa: PT012 - in the head or in the body
            await connection.head(SECONDS)
            await Client().pump(connection, SECONDS)
        await wait_until_async(lambda: connection.lost)


async def test_a_header_without_end_is_cut_at_the_limit() -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x-more: %s\r\n" % (b"y" * 1_000))
            sent += 1_000
            await writer.drain()

    async with asked(endless) as connection:
        with pytest.raises(UpstreamMalformed, match=f"over {HEADER_LIMIT} bytes"):
            await connection.head(SECONDS)
    assert sent < 4 * MIB


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n"])
async def test_a_connection_closed_before_or_inside_the_head_is_told(raw: bytes) -> None:
    async with asked(answering(raw, close=True)) as connection:
        with pytest.raises(UpstreamClosed):
            await connection.head(SECONDS)
        assert connection.answered == bool(raw)


@pytest.mark.parametrize("raw", [PLAIN[:-4], CHUNKED[:-30], CHUNKED[:-2]])
async def test_a_connection_closed_inside_the_body_is_told_and_what_came_was_forwarded(raw: bytes) -> None:
    async with asked(answering(raw, close=True)) as connection:
        client = Client()
        await connection.head(SECONDS)
        with pytest.raises(UpstreamClosed):
            await client.pump(connection, SECONDS)
        assert b"hello world".startswith(client.body)
        assert len(client.body) >= 5


async def test_a_reset_connection_does_not_pass_for_the_end_of_an_answer_without_length() -> None:
    async with asked(answering(UNTIL_CLOSE)) as connection:
        await connection.head(SECONDS)
        connection.connection_lost(ConnectionResetError("reset by peer"))
        with pytest.raises(UpstreamClosed, match="reset by peer"):
            await Client().pump(connection, SECONDS)


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200 OK\r\n"])
async def test_silence_before_the_head_is_told_after_its_time(raw: bytes) -> None:
    async with asked(answering(raw)) as connection:
        with pytest.raises(UpstreamSilent, match=r"nothing came for 0\.05 s"):
            await connection.head(0.05)


async def test_silence_inside_the_body_is_told_and_every_sign_of_life_begins_the_time_anew() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
        for _ in range(5):
            await asyncio.sleep(0.1)
            writer.write(b"x")
        await until_closed(reader)

    async with asked(slow) as connection:
        client = Client()
        await connection.head(SECONDS)
        with pytest.raises(UpstreamSilent):
            await client.pump(connection, 0.3)
        assert client.body == b"xxxxx"


@pytest.mark.parametrize("pieces", [(PLAIN + PLAIN,), (PLAIN, PLAIN), (PLAIN + b"garbage",), (PLAIN, b"x")])
async def test_a_second_answer_nobody_asked_for_spoils_the_connection(pieces: tuple[bytes, ...]) -> None:
    async with asked(answering(*pieces)) as connection:
        client = Client()
        await connection.head(SECONDS)
        await client.pump(connection, SECONDS)
        assert client.body == b"hello world"
        await wait_until_async(lambda: connection.lost or not connection.reusable)


async def test_a_request_on_a_connection_that_was_closed_while_idle_fails_without_an_answer() -> None:
    async with asked(answering(PLAIN, close=True)) as connection:
        await connection.head(SECONDS)
        await Client().pump(connection, SECONDS)
        await wait_until_async(lambda: connection.lost)
        connection.request(REQUEST, b"{}")
        with pytest.raises(UpstreamClosed):
            await connection.head(SECONDS)
        assert not connection.answered


# backpressure and giving up, on both kinds of loop


class Pusher:
    """An engine that sends a large body as fast as it is taken."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.sent = 0
        self.broken = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % self.size)
        writer.transport.set_write_buffer_limits(high=65_536)
        watch = asyncio.ensure_future(until_closed(reader))
        block = bytes(65_536)
        try:
            while self.sent < self.size:
                piece = block[: self.size - self.sent]
                writer.write(piece)
                self.sent += len(piece)
                await writer.drain()
            await watch
        finally:
            watch.cancel()
            self.broken.set()


BOUND = 3 * READ_LIMIT + MIB
"""Bytes that may lie between engine and client: ours, and what the two ends of a Unix socket hold."""


async def stands_still(pusher: Pusher) -> int:
    """Wait until the engine can send no more; how much it has sent."""
    before = -1
    while before != pusher.sent:
        before = pusher.sent
        await asyncio.sleep(0.1)
    return before


async def a_client_that_does_not_read_stops_the_engine_and_then_gets_everything() -> None:
    pusher = Pusher(50 * MIB)
    async with asked(pusher) as connection:
        client = Client()
        client.takes = False
        await connection.head(SECONDS)
        pump = asyncio.ensure_future(client.pump(connection, 1.0))
        await client.was_blocked.wait()
        assert await stands_still(pusher) < BOUND
        client.take_all()
        assert len(await pump) == pusher.size


async def an_engine_is_stopped_even_before_anybody_takes_its_body() -> None:
    pusher = Pusher(50 * MIB)
    async with asked(pusher) as connection:
        await connection.head(SECONDS)
        assert await stands_still(pusher) < BOUND
        assert len(await Client().pump(connection, SECONDS)) == pusher.size


async def a_stalled_client_is_not_held_against_the_engine() -> None:
    pusher = Pusher(2 * MIB)
    async with asked(pusher) as connection:
        client = Client()
        client.takes = False
        await connection.head(SECONDS)
        pump = asyncio.ensure_future(client.pump(connection, 0.05))
        await client.was_blocked.wait()
        await asyncio.sleep(0.2)
        assert not pump.done()
        client.take_all()
        assert len(await pump) == pusher.size


async def a_cancelled_pump_closes_the_engine_s_connection_even_while_the_client_is_stuck() -> None:
    for stuck in (False, True):
        pusher = Pusher(50 * MIB)
        async with asked(pusher) as connection:
            client = Client()
            client.takes = not stuck
            await connection.head(SECONDS)
            pump = asyncio.ensure_future(client.pump(connection, SECONDS))
            await (client.was_blocked.wait() if stuck else wait_until_async(client.has_some))
            pump.cancel()
            async with asyncio.timeout(SECONDS):
                await asyncio.wait({pump})
                assert pump.cancelled()
                await pusher.broken.wait()
            assert connection.transport is not None
            assert connection.lost or connection.transport.is_closing()


SCENARIOS = [
    a_client_that_does_not_read_stops_the_engine_and_then_gets_everything,
    an_engine_is_stopped_even_before_anybody_takes_its_body,
    a_stalled_client_is_not_held_against_the_engine,
    a_cancelled_pump_closes_the_engine_s_connection_even_while_the_client_is_stuck,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_backpressure(
    loop: Callable[[], asyncio.AbstractEventLoop], scenario: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scenario())


# any cut


HEADERS = st.lists(
    st.tuples(st.sampled_from([b"X-A", b"content-language", b"x-b"]), st.binary(max_size=30).map(bytes.hex)), max_size=4
)
INFORMATIONAL = [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"]


@st.composite
def answer(draw: Callable[[Any], Any]) -> tuple[bytes, bytes, bool]:
    """A good answer of any kind: its bytes, its body, and whether its connection may be used again."""
    body: bytes = draw(st.sampled_from([b"", b"hello world", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", bytes(9_000)]))
    framing = draw(st.sampled_from(["length", "chunks", "close"]))
    lines = [
        b"HTTP/1.%d %d Whatever"
        % (draw(st.sampled_from([0, 1])) if framing != "chunks" else 1, draw(st.sampled_from([200, 404, 500])))
    ]
    lines += [name + b": " + value.encode() for name, value in draw(HEADERS)]
    closes = framing == "close" or draw(st.booleans())
    stays = not closes and lines[0].startswith(b"HTTP/1.1")
    lines += [b"Connection: close"] * closes
    if framing == "length":
        lines.append(b"Content-Length: %d" % len(body))
    elif framing == "chunks":
        lines.append(b"Transfer-Encoding: chunked")
        size = draw(st.sampled_from([1_000, 4_000]))
        parts = [body[start : start + size] for start in range(0, len(body), size)]
        chunked = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(part), part) for part in parts)
        tail = chunked + draw(st.sampled_from([b"0\r\n\r\n", b"0;last\r\nX-Trailer: 1\r\n\r\n"]))
        return draw(st.sampled_from(INFORMATIONAL)) + b"\r\n".join([*lines, b"", tail]), body, stays
    return draw(st.sampled_from(INFORMATIONAL)) + b"\r\n".join([*lines, b"", body]), body, stays


@settings(max_examples=60, deadline=None)
@given(answer(), st.lists(st.integers(0, 10_000), max_size=12))
def test_an_answer_of_any_kind_is_the_same_however_it_is_cut(
    answered: tuple[bytes, bytes, bool], places: list[int]
) -> None:
    raw, body, stays = answered

    async def both() -> None:
        whole, got = await exchange(answering(raw, close=not stays))
        pieces, same = await exchange(answering(*cut(raw, places), close=not stays))
        assert (whole.status, got, whole.reusable) == (pieces.status, same, pieces.reusable)
        assert (got, whole.reusable, whole.headers) == (body, stays, pieces.headers)

    asyncio.run(both())


@settings(max_examples=60, deadline=None)
@given(answer(), st.integers(0, 10_000), st.lists(st.integers(0, 10_000), max_size=5))
def test_an_answer_that_breaks_off_is_never_taken_for_a_whole_one(
    answered: tuple[bytes, bytes, bool], length: int, places: list[int]
) -> None:
    raw, body, _ = answered
    raw = raw[: length % len(raw)]

    async def once() -> None:
        try:
            connection, got = await exchange(answering(*cut(raw, places), close=True), seconds=SECONDS)
        except UpstreamError:
            return
        # nothing but the end of its connection tells where such an answer ends
        assert b"content-length" not in dict(connection.headers)
        assert b"transfer-encoding" not in dict(connection.headers)
        assert body.startswith(got)

    asyncio.run(once())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([PLAIN, CHUNKED, UNTIL_CLOSE]), st.lists(st.integers(0, 500), max_size=12))
@example(CHUNKED, list(range(len(CHUNKED))))
def test_an_answer_is_the_same_however_it_is_cut(raw: bytes, places: list[int]) -> None:
    async def both() -> None:
        whole, body = await exchange(answering(raw, close=raw is UNTIL_CLOSE))
        pieces, same = await exchange(answering(*cut(raw, places), close=raw is UNTIL_CLOSE))
        assert (pieces.status, pieces.headers, same) == (whole.status, whole.headers, body)

    asyncio.run(both())


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", PLAIN[:40], CHUNKED[:50], PLAIN]))
def test_whatever_an_engine_says_is_an_answer_or_a_known_error(noise: bytes, before: bytes) -> None:
    async def once() -> None:
        with contextlib.suppress(UpstreamError):
            await exchange(answering(before + noise, close=True), seconds=1.0)

    asyncio.run(once())
