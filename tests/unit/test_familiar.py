"""A head that was parsed before is not parsed again; what is recognised is what the parser would have said."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BodyTooLarge
from gateway.http11.connection import ClientConnection
from gateway.http11.exchange import Exchange
from gateway.http11.familiar import Memory

HEADS = (
    b"POST /direct/a%20b?c=d HTTP/1.1\r\nHost: x\r\nX-Y: z\r\nContent-Length: ",
    b"PUT /direct HTTP/1.1\r\ncontent-length:",
    b"POST /direct/other HTTP/1.1\r\nHost: x\r\nX-Y: z\r\nContent-Length: ",
)
ENDS = (b"\r\n\r\n", b"\r\nAccept: */*\r\n\r\n")


class Transport:
    """Takes what is written."""

    def __init__(self) -> None:
        self.closed = False

    def write(self, data: bytes) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = pause_reading = resume_reading = write_eof = close

    def can_write_eof(self) -> bool:
        return True

    def get_extra_info(self, _name: str) -> None:
        return None


class Client:
    """A connection whose requests are noted and answered at once."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []
        server = SimpleNamespace(connections=set(), tasks=set(), total_requests=0)
        kind: Any = type("Direct", (ClientConnection,), {"direct": staticmethod(lambda _path: self.note)})
        config = SimpleNamespace(loaded=True, loaded_app=None)
        self.connection = kind(config, server, {}, asyncio.get_running_loop())
        self.transport: Any = Transport()
        self.connection.connection_made(self.transport)

    async def note(self, exchange: Exchange) -> None:
        body = await exchange.body(1_000_000, 5)
        said = exchange.method, exchange.path, exchange.raw_path, exchange.query, exchange.headers
        self.seen.append((*said, exchange.old, exchange.keep_alive, body))
        exchange.start(200, [(b"content-length", b"0")])
        exchange.end()

    async def send(self, *pieces: bytes) -> None:
        count = len(self.seen)
        for piece in pieces:
            self.connection.data_received(piece)
        for _ in range(100):
            if len(self.seen) > count:
                break
            await asyncio.sleep(0)

    def leave(self) -> None:
        self.connection.connection_lost(None)


def request(head: int, end: int, body: bytes) -> bytes:
    return HEADS[head] + b"%d" % len(body) + ENDS[end] + body


REQUESTS = st.tuples(st.sampled_from([0, 0, 0, 1, 2]), st.sampled_from([0, 0, 1]), st.binary(max_size=120))


AT_THE_BODY = -1
CUTS = st.lists(st.one_of(st.just(AT_THE_BODY), st.integers(1, 250)), max_size=3)


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    """The same bytes in pieces."""
    body = raw.index(b"\r\n\r\n") + 4
    ends = sorted({min(len(raw), body if place == AT_THE_BODY else place) for place in [*places, len(raw)]})
    return [raw[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(REQUESTS, CUTS), max_size=12))
def test_on_one_connection_every_request_is_what_it_is_on_a_connection_of_its_own(
    asked: list[tuple[tuple[int, int, bytes], list[int]]],
) -> None:
    async def scenario() -> None:
        together = Client()
        for what, places in asked:
            raw = request(*what)
            alone = Client()
            await alone.send(raw)
            alone.leave()
            await together.send(*cut(raw, places))
            assert together.seen[-1:] == alone.seen
        assert len(together.seen) == len(asked)
        together.leave()

    asyncio.run(scenario())


async def test_the_third_of_its_like_is_recognised_whatever_its_length() -> None:
    client = Client()
    await client.send(request(0, 1, b"first"))
    await client.send(request(0, 1, b"second one"))
    client.connection._parser = None
    for size in (1, 9, 10, 5_000):
        await client.send(request(0, 1, b"x" * size))
        assert client.seen[-1][-1] == b"x" * size
        assert (b"content-length", b"%d" % size) in client.seen[-1][4]
    assert client.seen[1][4] == [(b"host", b"x"), (b"x-y", b"z"), (b"content-length", b"10"), (b"accept", b"*/*")]
    client.leave()


@pytest.mark.parametrize(
    "data",
    [
        request(0, 0, b"hello")[:-6],
        request(0, 0, b"hello") + b"G",
        request(0, 0, b"hello")[:-1].replace(b": 5", b": 05"),
        request(0, 0, b"hello")[:-1].replace(b": 5", b": +5"),
        request(0, 0, b"hello")[:-5].replace(b": 5", b": 5_0"),
        request(0, 0, b"hello")[:-1].replace(b": 5", b": 1%b" % (b"0" * 15)),
        request(0, 0, b"hello") * 2,
        request(0, 0, b"hello").replace(b": 5", b": 05"),
        request(0, 0, b"hello").replace(b": 5", b": +5"),
        request(0, 0, b"hello").replace(b": 5", b": 5 "),
        request(0, 0, b"hello").replace(b": 5\r\n", b": 5\r\nTransfer-Encoding: chunked\r\n"),
        request(0, 0, b""),
        request(1, 0, b"hello"),
        request(0, 1, b"hello"),
        b"",
    ],
)
async def test_what_differs_in_more_than_its_length_is_left_to_the_parser(data: bytes) -> None:
    client = Client()
    for _ in range(2):
        await client.send(request(0, 0, b"hello"))
    memory: Memory = client.connection._memory
    assert memory.recall(request(0, 0, b"other"), client.connection) is not None
    assert memory.recall(data, client.connection) is None
    client.leave()


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /direct HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"POST /direct HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\nhello",
        b"POST /direct HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 5\r\n\r\nhello",
        b"GET /direct HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /direct HTTP/1.1\r\nhost: x\r\nx-long: %b\r\ncontent-length: 5\r\n\r\nhello" % (b"y" * 9_000),
    ],
)
async def test_requests_with_more_to_them_are_not_kept(raw: bytes) -> None:
    client = Client()
    for _ in range(3):
        await client.send(raw)
    memory: Memory = client.connection._memory
    assert memory.recall(raw, client.connection) is None
    assert len(client.seen) == 3
    client.leave()


async def test_a_client_with_another_head_each_time_is_soon_not_compared_any_more() -> None:
    client = Client()
    for number in range(20):
        raw = b"POST /direct HTTP/1.1\r\nx-request-id: %d\r\ncontent-length: 5\r\n\r\nhello" % number
        await client.send(raw)
    assert len(client.seen) == 20
    memory: Memory = client.connection._memory
    assert memory.recall(raw, client.connection) is None
    client.leave()


async def test_what_a_handler_concludes_from_a_head_is_there_for_requests_with_this_head_and_no_other() -> None:
    client = Client()
    seen: list[object] = []

    async def handler(exchange: Exchange) -> None:
        familiar = exchange.familiar
        seen.append(None if familiar is None else familiar.meaning)
        if familiar is not None:
            familiar.meaning = familiar.meaning or (exchange.path, len(seen))
        await client.note(exchange)

    type(client.connection).direct = staticmethod(lambda _path: handler)
    for head in (0, 0, 0, 0, 2, 2, 2, 0, 0, 0):
        await client.send(request(head, 1, b"x" * (head + 1)))
    first, other, again = ("/direct/a b", 3), ("/direct/other", 6), ("/direct/a b", 9)
    assert seen == [None, None, None, first, None, None, other, None, None, again]
    client.leave()


async def test_a_head_that_comes_before_its_body_is_recognised_too() -> None:
    client = Client()
    for size in (3, 4):
        await client.send(*cut(request(0, 1, b"x" * size), [AT_THE_BODY]))
    client.connection._parser = None
    for size in (1, 9, 5_000):
        await client.send(*cut(request(0, 1, b"x" * size), [AT_THE_BODY, 200]))
        assert client.seen[-1][-1] == b"x" * size
        assert (b"content-length", b"%d" % size) in client.seen[-1][4]
    await client.send(request(0, 1, b"whole"))
    assert client.seen[-1][-1] == b"whole"
    client.leave()


async def test_what_follows_on_the_body_of_a_head_that_was_recognised_is_the_next_request() -> None:
    client = Client()
    for _ in range(3):
        await client.send(*cut(request(0, 0, b"hello"), [AT_THE_BODY]))
    head, body = cut(request(0, 0, b"fourth"), [AT_THE_BODY])
    await client.send(head, body + request(2, 0, b"fifth") + request(0, 0, b"sixth")[:-2])
    await client.send(b"th")
    for _ in range(100):
        await asyncio.sleep(0)
    assert [seen[-1] for seen in client.seen[3:]] == [b"fourth", b"fifth", b"sixth"]
    assert client.seen[4][1] == "/direct/other"
    client.leave()


async def test_a_recognised_request_that_is_answered_before_its_body_has_come_leaves_the_next_one_whole() -> None:
    client = Client()
    bodies: list[bool] = []

    async def hasty(exchange: Exchange) -> None:
        bodies.append(exchange.whole)
        exchange.start(401, [(b"content-length", b"0")])
        exchange.end()

    for _ in range(2):
        await client.send(request(0, 0, b"hello"))
    type(client.connection).direct = staticmethod(lambda _path: hasty)
    head, body = cut(request(0, 0, b"refused"), [AT_THE_BODY])
    client.connection.data_received(head)
    for _ in range(3):
        await asyncio.sleep(0)
    assert bodies == [False]
    type(client.connection).direct = staticmethod(lambda _path: client.note)
    await client.send(body[:3], body[3:], request(0, 0, b"taken"))
    assert [seen[-1] for seen in client.seen] == [b"hello", b"hello", b"taken"]
    client.leave()


async def test_a_body_that_a_recognised_head_says_is_too_large_is_not_waited_for() -> None:
    client = Client()
    refusals: list[str] = []

    async def careful(exchange: Exchange) -> None:
        try:
            await exchange.body(10, 5)
        except BodyTooLarge as error:
            refusals.append(error.code)
        exchange.start(413, [(b"content-length", b"0")])
        exchange.end()

    for _ in range(2):
        await client.send(request(0, 0, b"hello"))
    type(client.connection).direct = staticmethod(lambda _path: careful)
    client.connection.data_received(cut(request(0, 0, b"x" * 11), [AT_THE_BODY])[0])
    for _ in range(3):
        await asyncio.sleep(0)
    assert refusals == [BodyTooLarge.code]
    client.leave()
