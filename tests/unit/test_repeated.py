"""An engine's head that was parsed before is not parsed again, and is taken for what the parser would have said."""

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.proxy.repeated import HEAD_LIMIT, LONGEST_PAUSE, Memory, forwarded
from gateway.proxy.upstream import READ_LIMIT, Connection
from tests.support.cuts import cut

DATE = b"Mon, 01 Jan 2026 00:00:00 GMT"
UVICORN = (
    b"HTTP/1.1 200 OK\r\ndate: %b\r\nserver: uvicorn\r\ncontent-length: %d\r\ncontent-type: application/json\r\n\r\n"
)
OTHER = (
    b"HTTP/1.1 200 Fine\r\nContent-Type: text/plain\r\nX-A: b\r\nContent-Length:\t%d\r\nConnection: keep-alive\r\n\r\n"
)
HEADS = (
    UVICORN.replace(b"%b", DATE),
    OTHER,
    b"HTTP/1.1 404 Not Found\r\ncontent-length: %d\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n",
    b"HTTP/1.0 200 OK\r\ncontent-length: %d\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\ncontent-length: %d\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\ncontent-length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 0%d\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: %d \r\n\r\n",
    b"HTTP/1.1 200 OK\r\nx-more: 1\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n",
    b"HTTP/1.1 200 OK\r\ntrailer: x\r\nupgrade: h2c\r\ncontent-length: %d\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n",
    b"HTTP/1.1 103 Hints\r\ncontent-length: 1\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n",
)
RECOGNISED = HEADS[0], HEADS[1], HEADS[12]


class Transport:
    """Takes what is written; whether it reads and whether it was cut."""

    def __init__(self) -> None:
        self.reads = True
        self.cut = False

    def write(self, _data: bytes) -> None:
        pass

    def is_closing(self) -> bool:
        return self.cut

    def abort(self) -> None:
        self.cut = True

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


class Engine:
    """A connection to an engine that says what a test wants."""

    def __init__(self, memory: Memory | None = None) -> None:
        self.connection = Connection(memory)
        self.transport = Transport()
        self.connection.connection_made(cast("asyncio.BaseTransport", self.transport))

    async def asked(self, *pieces: bytes) -> tuple[Any, ...]:
        """All that can be told of an answer in these pieces."""
        connection = self.connection
        connection.request(b"POST / HTTP/1.1\r\n\r\n", b"")
        waiting = asyncio.ensure_future(connection.head(60))
        await asyncio.sleep(0)
        for piece in pieces:
            connection.data_received(piece)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        error = repr(waiting.exception()) if waiting.done() else "waits"
        waiting.cancel()
        lines = connection.lines or rendered(connection.headers)
        told = connection.status, lines, b"".join(connection._chunks), connection.done, connection.reusable
        return (*told, self.transport.cut, error)

    def leave(self) -> None:
        self.connection.connection_lost(None)


def rendered(headers: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in forwarded(headers)[1])


def answer(head: bytes, body: bytes, more: bytes = b"") -> bytes:
    return head % len(body) + body + more


ANSWERS = st.tuples(
    st.sampled_from([*RECOGNISED * 4, *HEADS]),
    st.sampled_from([b"", b"hello", b"hello world", b"x" * 300]) | st.binary(max_size=40),
    st.sampled_from([b""] * 6 + [b"\r\n", b"x", b"HTTP/1.1 200 OK\r\n", b"0\r\n\r\n", b"\r\n0\r\n\r\n"]),
    st.integers(0, 3),
    st.lists(st.integers(0, 500), max_size=1),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ANSWERS, max_size=14))
def test_with_a_memory_every_answer_is_what_it_is_to_a_connection_that_has_seen_none(
    answers: list[tuple[bytes, bytes, bytes, int, list[int]]],
) -> None:
    async def scenario() -> None:
        memory = Memory()
        engine = Engine(memory)
        for head, body, more, short, places in answers:
            raw = answer(head, body, more)
            pieces = cut(raw[: len(raw) - short], places)
            alone = Engine()
            said = await engine.asked(*pieces)
            assert said == await alone.asked(*pieces)
            alone.leave()
            if engine.transport.cut or not engine.connection.reusable:
                engine.leave()
                engine = Engine(memory)
        engine.leave()

    asyncio.run(scenario())


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(RECOGNISED), st.binary(max_size=60), st.integers(0, 400), st.binary(max_size=3))
def test_whatever_becomes_of_a_head_that_is_known_it_is_taken_as_the_parser_takes_it(
    head: bytes, body: bytes, place: int, put: bytes
) -> None:
    async def scenario() -> None:
        raw = answer(head, body)
        place_in = place % (len(raw) + 1)
        raw = raw[:place_in] + put + raw[place_in + len(put) :]
        knows, alone = Engine(), Engine()
        await knows.asked(answer(head, b"hello"))
        assert await knows.asked(raw) == await alone.asked(raw)
        knows.leave()
        alone.leave()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "before", [b"HTTP/1.1 200 OK\r\nx-a: ", b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n", b"\r\n"]
)
async def test_only_what_begins_an_answer_is_learned_and_recognised(before: bytes) -> None:
    memory = Memory()
    engine, alone = Engine(memory), Engine()
    raw = answer(HEADS[1], b"hello")
    await engine.asked(raw)
    assert await engine.asked(before, raw) == await alone.asked(before, raw)
    engine.leave()
    alone.leave()
    for place in range(1, len(raw)):
        memory = Memory()
        engine = Engine(memory)
        await engine.asked(raw[:place], raw[place:])
        assert engine.connection.done
        assert memory.recall(raw[place:]) is None
        engine.leave()


@pytest.mark.parametrize("head", RECOGNISED)
async def test_the_second_of_its_like_is_recognised_whatever_its_length_on_any_connection(head: bytes) -> None:
    memory = Memory()
    first, second = Engine(memory), Engine(memory)
    status, lines, *_ = await first.asked(answer(head, b"hello"))
    assert (status, first.connection.lines) == (200, b"")
    second.connection._parser = False
    for size in (1, 9, 10, 5_000):
        said = await second.asked(answer(head, b"x" * size))
        assert said == (200, lines.replace(b": 5\r\n", b": %d\r\n" % size), b"x" * size, True, True, False, "None")
        assert second.connection.lines
    first.leave()
    second.leave()


@pytest.mark.parametrize(
    "data",
    [
        answer(HEADS[0], b"hello")[:-1],
        answer(HEADS[0], b"hello", b"H"),
        answer(HEADS[0], b"hello") * 2,
        answer(HEADS[0], b"hello").replace(b": 5", b": 05"),
        answer(HEADS[0], b"hello").replace(b": 5", b": +5"),
        answer(HEADS[0], b"hello").replace(b": 5", b": 5 "),
        answer(HEADS[0], b"hello").replace(b": 5\r\n", b": 5\r\nx-y: z\r\n"),
        answer(HEADS[0], b"hello").replace(b": 5\r\n", b": 5\n"),
        answer(HEADS[0], b"hello").replace(b"00:00:00", b"00:00:01"),
        answer(HEADS[0], b"hello").replace(b"200", b"201"),
        answer(HEADS[1], b"hello"),
        b"",
    ],
)
async def test_what_differs_in_more_than_its_length_is_left_to_the_parser(data: bytes) -> None:
    memory = Memory()
    engine = Engine(memory)
    await engine.asked(answer(HEADS[0], b"hello"))
    assert memory.recall(answer(HEADS[0], b"other one")) is not None
    assert memory.recall(data) is None
    engine.leave()


@pytest.mark.parametrize(
    "head",
    [*(head for head in HEADS if head not in RECOGNISED), HEADS[1].replace(b"X-A: b", b"X-A: " + b"b" * HEAD_LIMIT)],
)
async def test_answers_with_more_to_them_are_not_kept(head: bytes) -> None:
    memory = Memory()
    raw = answer(head, b"hello", b"\r\n0\r\n\r\n" if b"chunked" in head else b"")
    for _ in range(3):
        engine = Engine(memory)
        await engine.asked(raw)
        engine.leave()
    assert memory.recall(raw) is None


async def test_an_error_between_them_does_not_make_an_engine_s_head_forgotten() -> None:
    engine = Engine()
    for number in range(20):
        await engine.asked(answer(HEADS[0], b"hello"))
        assert bool(engine.connection.lines) == (number > 0)
        assert (await engine.asked(answer(HEADS[2], b"no such model")))[0] == 404
    engine.leave()


def test_an_engine_with_another_head_each_time_is_seldom_learned_and_a_steady_one_soon_again() -> None:
    memory = Memory()
    kept = set()
    for number in range(4 * LONGEST_PAUSE):
        headers = [(b"x-id", b"%d" % number), (b"content-length", b"5")]
        memory.learn(b"HTTP/1.1 200 OK\r\nx-id: %d\r\ncontent-length: 5\r\n\r\nhello" % number, 200, headers)
        kept.add(memory._head)
    assert len(kept) < 15
    for _ in range(LONGEST_PAUSE):
        memory.learn(answer(HEADS[1], b"hello"), 200, [(b"content-length", b"5")])
    assert memory.recall(answer(HEADS[1], b"hello"))
    memory.learn(answer(HEADS[0], b"hello"), 200, [(b"content-length", b"5")])
    assert memory.recall(answer(HEADS[0], b"hello")), "one that was recognised makes the next change noticed at once"


async def test_a_large_answer_that_was_whole_before_anybody_took_it_leaves_its_connection_reading() -> None:
    engine = Engine()
    size = READ_LIMIT + 1
    await engine.asked(HEADS[0] % size + b"x" * (size - 1), b"x")
    assert engine.connection.done
    assert engine.transport.reads, "else the next answer on it would never come"
    engine.leave()
