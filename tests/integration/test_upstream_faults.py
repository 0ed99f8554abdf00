"""Every fault at every point of an engine's answer: what the client gets, and how often an engine was called.

Two engines are stood in for by servers that say exactly the bytes of a line of the table. The first call gets the
fault, whichever engine it reaches; a second one, if there is any, a whole answer.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anthropic
import openai
import pytest

from tests.support.crowd import calling, contents
from tests.support.raw_http import RawAnswer, dechunked
from tests.support.raw_server import raw_server, read_call, until_closed
from tests.support.stack import ADMIN_KEY, Stack, chat, running_stack
from tests.support.waiting import wait_until, wait_until_async

CHAT = "/v1/chat/completions"
QUICK_SECONDS = 0.5
PATIENT_SECONDS = 60
"""So that no busy machine is taken for a silent engine."""
CLIENT_SECONDS = 30
MESSAGES: Any = [{"role": "user", "content": "hello"}]


def in_chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


JSON_BODY = b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "a b c"}}]}'
JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(JSON_BODY)
JSON = JSON_HEAD + JSON_BODY
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
FIRST, SECOND, DONE = in_chunks(event("a")), in_chunks(event("b")), in_chunks(b"data: [DONE]\n\n")
LAST_CHUNK = b"0\r\n\r\n"
STREAM = STREAM_HEAD + FIRST + SECOND + DONE + LAST_CHUNK

JSON_POINTS = {
    "before the header": 0,
    "inside the header": 30,
    "after the header": len(JSON_HEAD),
    "inside the body": len(JSON_HEAD) + 20,
}
STREAM_POINTS = {
    "before the header": 0,
    "inside the header": 30,
    "after the header": len(STREAM_HEAD),
    "inside an event": len(STREAM_HEAD) + len(FIRST) + 30,
    "between events": len(STREAM_HEAD) + len(FIRST),
    "before [DONE]": len(STREAM_HEAD + FIRST + SECOND),
    "before the last chunk": len(STREAM) - len(LAST_CHUNK),
}


JSON_BEFORE = {"after the header": b"", "inside the body": JSON_BODY[:20]}
STREAM_BEFORE = {
    "after the header": b"",
    "inside an event": event("a"),
    "between events": event("a"),
    "before [DONE]": event("b"),
    "before the last chunk": b"[DONE]",
}
"""What of an answer's body the client has when the fault comes; nothing at all before the answer's header is whole."""


class Fault(Enum):
    """What happens at the point."""

    CUT = auto()
    HANG = auto()
    GARBAGE = auto()
    END = auto()
    """The body ends as a whole one does."""
    SLOW = auto()
    """Byte by byte from there on, but all of it."""


class Outcome(Enum):
    """What the client gets."""

    WHOLE = auto()
    OTHER = auto()
    """Whole, from the other engine."""
    BROKE = auto()
    """502."""
    SILENT = auto()
    """504."""
    CUT = auto()
    """Status 200 and a connection that is cut before the body is whole."""
    ERROR_EVENT = auto()


class Row(NamedTuple):
    """One line of the table."""

    point: str
    fault: Fault
    outcome: Outcome
    stream: bool

    def __str__(self) -> str:
        return f"{'stream' if self.stream else 'json'}-{self.fault.name.lower()} {self.point}"


def rows(point: str, *, stream: bool, **outcomes: Outcome) -> list[Row]:
    return [Row(point, Fault[name.upper()], outcome, stream) for name, outcome in outcomes.items()]


WHOLE, OTHER, BROKE, SILENT, CUT, ERROR = Outcome
BROKEN_STREAM = {"cut": ERROR, "hang": ERROR, "garbage": ERROR, "end": ERROR, "slow": WHOLE}
TABLE = [
    *rows("before the header", stream=False, cut=OTHER, hang=SILENT, garbage=BROKE, slow=WHOLE),
    *rows("inside the header", stream=False, cut=BROKE, hang=SILENT, garbage=BROKE, slow=WHOLE),
    *rows("after the header", stream=False, cut=CUT, hang=CUT, slow=WHOLE),
    *rows("inside the body", stream=False, cut=CUT, hang=CUT, slow=WHOLE),
    *rows("before the header", stream=True, cut=OTHER, hang=SILENT, garbage=BROKE, slow=WHOLE),
    *rows("inside the header", stream=True, cut=BROKE, hang=SILENT, garbage=BROKE, slow=WHOLE),
    *rows("after the header", stream=True, **BROKEN_STREAM),
    *rows("inside an event", stream=True, cut=ERROR, hang=ERROR, slow=WHOLE),
    *rows("between events", stream=True, **BROKEN_STREAM),
    *rows("before [DONE]", stream=True, **BROKEN_STREAM),
    *rows("before the last chunk", stream=True, cut=WHOLE, hang=WHOLE, garbage=WHOLE, slow=WHOLE),
]


class Engines:
    """Both stand-ins: the first call gets the fault, any further one a whole answer."""

    def __init__(self, answer: bytes, point: int, fault: Fault) -> None:
        self._answer = answer
        self._point = point
        self._fault = fault
        self.arrived = asyncio.Event()
        """What precedes the fault has arrived at the client."""
        self.calls: list[int] = []
        """The engine of each call."""

    async def serve(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_call(reader, writer)
            self.calls.append(number)
            if len(self.calls) > 1:
                writer.write(self._answer)
                continue
            writer.write(self._answer[: self._point])
            await self.arrived.wait()
            if self._fault is Fault.CUT:
                return
            await self._go_wrong(writer)
            await until_closed(reader)

    async def _go_wrong(self, writer: asyncio.StreamWriter) -> None:
        if self._fault is Fault.GARBAGE:
            writer.write(b"\x00\x01\x02 no HTTP\r\n\r\n")
        elif self._fault is Fault.END:
            writer.write(LAST_CHUNK)
        elif self._fault is Fault.SLOW:
            for place in range(self._point, len(self._answer)):
                writer.write(self._answer[place : place + 1])
                await writer.drain()


class Pair(NamedTuple):
    """A gateway, and its endpoint's two sockets, on which no engine listens and no connection is open."""

    stack: Stack
    sockets: list[Path]


@contextlib.contextmanager
def running_pair(silence_seconds: float) -> Iterator[Pair]:
    """`silence_seconds`: how long the gateway lets an engine say nothing."""
    limits = {f"HOSTLER_{name}_SECONDS": str(silence_seconds) for name in ("STALL", "FIRST_BYTE")}
    with running_stack(limits) as stack, contextlib.ExitStack() as hidden:
        stack.endpoint("pair", min_workers=2, max_workers=2, per_worker=1)

        def ready() -> list[str]:
            return [worker["id"] for worker in stack.status("pair")["workers"] if worker["state"] == "ready"]

        wait_until(lambda: len(ready()) == 2, "both are ready", seconds=30)
        yield Pair(stack, [hidden.enter_context(stack.socket_hidden(worker)) for worker in ready()])


@pytest.fixture(scope="module")
def quick() -> Iterator[Pair]:
    with running_pair(QUICK_SECONDS) as pair:
        yield pair


@pytest.fixture(scope="module")
def patient() -> Iterator[Pair]:
    with running_pair(PATIENT_SECONDS) as pair:
        yield pair


@pytest.fixture
def pair(request: pytest.FixtureRequest, quick: Pair, patient: Pair) -> Pair:
    """The quick one where an engine's silence is to be noticed, by the test's `row` or `fault`."""
    told = request.node.callspec.params
    return quick if told.get("fault", told["row"].fault if "row" in told else None) is Fault.HANG else patient


@contextlib.asynccontextmanager
async def standing_in(sockets: list[Path], engines: Engines) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as servers:
        for number, path in enumerate(sockets):
            await servers.enter_async_context(raw_server(partial(engines.serve, number), path))
        yield


def engines_of(row: Row) -> Engines:
    answer, points = (STREAM, STREAM_POINTS) if row.stream else (JSON, JSON_POINTS)
    return Engines(answer, points[row.point], row.fault)


async def ask(stack: Stack, *, stream: bool) -> bytes:
    """One request's whole answer, to the end of the connection."""
    async with calling(stack.port) as caller:
        caller.post(CHAT, chat("pair", stream=stream), "connection: close")
        return await caller.read_to_end()


async def ask_at(stack: Stack, row: Row, engines: Engines) -> bytes:
    """As `ask`; the fault comes once all that precedes it has arrived here."""
    before = STREAM_BEFORE if row.stream else JSON_BEFORE
    async with calling(stack.port) as caller:
        caller.post(CHAT, chat("pair", stream=row.stream), "connection: close")
        if row.point in before:
            await caller.read_until(b"\r\n\r\n")
            await caller.read_until(before[row.point])
        engines.arrived.set()
        return await caller.read_to_end()


def parsed(received: bytes) -> RawAnswer:
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return RawAnswer(int(first.split()[1]), headers, body)


def check_error(answer: RawAnswer, status: int, code: str) -> None:
    assert (answer.status, answer.json()["error"]["code"]) == (status, code)


def check_stream(answer: RawAnswer, row: Row) -> None:
    body = dechunked(answer.body)
    if row.outcome is not ERROR:
        assert contents(body) == ["a", "b"]
        return
    error, done = body.decode().rstrip().split("\n\n")[-2:]
    assert done == "data: [DONE]"
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "engine_broke"
    # what came before the fault came through
    assert (b'"a"' in body, b'"b"' in body) == (row.point != "after the header", row.point == "before [DONE]")


def check(answer: RawAnswer, row: Row) -> None:
    if row.outcome is BROKE:
        check_error(answer, 502, "engine_broke")
    elif row.outcome is SILENT:
        check_error(answer, 504, "engine_too_slow")
    elif row.outcome is CUT:
        came = JSON_POINTS[row.point] - len(JSON_HEAD)
        assert (answer.status, answer.headers["content-length"]) == (200, str(len(JSON_BODY)))
        assert answer.body == JSON_BODY[:came]
    elif row.stream:
        assert answer.status == 200
        check_stream(answer, row)
    else:
        assert (answer.status, answer.body) == (200, JSON_BODY)


@pytest.mark.parametrize("row", TABLE, ids=str)
async def test_a_fault_at_this_point_has_this_outcome_and_so_many_calls(pair: Pair, row: Row) -> None:
    stack = pair.stack
    engines = engines_of(row)
    async with standing_in(pair.sockets, engines):
        check(parsed(await ask_at(stack, row, engines)), row)
        if row.outcome is OTHER:
            assert sorted(engines.calls) == [0, 1]
        else:
            assert len(engines.calls) == 1
        await wait_until_async(lambda: stack.metrics()['hostler_in_flight{endpoint="pair"}'] == 0, "the lease is back")


async def test_two_engines_that_both_cut_before_their_header_are_called_once_each(patient: Pair) -> None:
    stack, sockets = patient
    calls: list[int] = []

    async def cut(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_call(reader, writer)
        calls.append(number)

    async with raw_server(partial(cut, 0), sockets[0]), raw_server(partial(cut, 1), sockets[1]):
        check_error(parsed(await ask(stack, stream=False)), 502, "engine_broke")
    assert sorted(calls) == [0, 1]


# before there is a connection


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Bound and not listening."""
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        yield
    path.unlink()


@contextlib.contextmanager
def overrun(path: Path) -> Iterator[None]:
    """Listening and not accepting, with a queue that is full."""
    with contextlib.ExitStack() as sockets:
        server = sockets.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(str(path))
        server.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = sockets.enter_context(socket.socket(socket.AF_UNIX))
                client.settimeout(0)
                client.connect(str(path))
        yield
    path.unlink()


def lines(stack: Stack, way: str) -> int:
    """How often a worker has left the rotation, or come back."""
    return sum(line["event"] == f"worker {way} rotation" for line in stack.log_lines())


@pytest.mark.parametrize("unwilling", [refusing, overrun])
async def test_an_engine_that_takes_no_connection_is_passed_over(
    patient: Pair, unwilling: Callable[[Path], contextlib.AbstractContextManager[None]]
) -> None:
    stack, (deaf, hearing) = patient
    calls = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        while True:
            await read_call(reader, writer)
            calls += 1
            writer.write(JSON)

    async with raw_server(serve, hearing):
        with unwilling(deaf):
            # each worker takes one request at a time, so that one of two at once meets the deaf one
            received = await asyncio.gather(*(ask(stack, stream=False) for _ in range(2)))
        assert [parsed(answer).status for answer in received] == [200, 200]
        assert calls == 2
        # for whatever test comes next both take requests again
        async with raw_server(serve, deaf):
            await wait_until_async(lambda: lines(stack, "out of") == lines(stack, "back in"), "both are in rotation")


async def test_an_engine_that_accepts_and_says_nothing_is_too_slow_and_its_request_is_not_sent_elsewhere(
    quick: Pair,
) -> None:
    stack, sockets = quick
    with contextlib.ExitStack() as listening:
        for path in sockets:
            server = listening.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(str(path))
            listening.callback(path.unlink)
            server.listen()
            server.settimeout(0)
            listening.enter_context(server)
        check_error(parsed(await ask(stack, stream=False)), 504, "engine_too_slow")


# the clients that people use


STREAM_FAULTS = [row for row in TABLE if row.outcome is ERROR]


@pytest.mark.parametrize("row", STREAM_FAULTS, ids=str)
async def test_the_openai_client_raises_where_a_stream_breaks(pair: Pair, row: Row) -> None:
    stack, sockets = pair
    engines = engines_of(row)
    async with (
        standing_in(sockets, engines),
        openai.AsyncOpenAI(
            base_url=f"{stack.address}/v1", api_key=ADMIN_KEY, max_retries=0, timeout=CLIENT_SECONDS
        ) as client,
    ):
        stream = await client.chat.completions.create(model="pair", messages=MESSAGES, stream=True)
        engines.arrived.set()
        with pytest.raises(openai.APIError, match="in the middle of the stream"):
            async for _ in stream:
                pass
    assert len(engines.calls) == 1


def named(name: str, **fields: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


MESSAGE: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "pair",
           "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 0}}  # fmt: skip
MESSAGE_EVENTS = [
    named("message_start", message=MESSAGE),
    named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    named("content_block_delta", index=0, delta={"type": "text_delta", "text": "a"}),
]


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.HANG, Fault.GARBAGE, Fault.END])
@pytest.mark.parametrize("inside", [False, True], ids=["between events", "inside an event"])
async def test_the_anthropic_client_raises_where_a_stream_breaks(pair: Pair, fault: Fault, *, inside: bool) -> None:
    stack, sockets = pair
    half = [b"event: content_block_delta\ndata: {"] * inside
    sent = STREAM_HEAD + in_chunks(*MESSAGE_EVENTS, *half)
    engines = Engines(sent, len(sent), fault)
    async with (
        standing_in(sockets, engines),
        anthropic.AsyncAnthropic(
            base_url=stack.address, api_key=ADMIN_KEY, max_retries=0, timeout=CLIENT_SECONDS
        ) as client,
    ):
        stream = await client.messages.create(model="pair", max_tokens=9, messages=MESSAGES, stream=True)
        engines.arrived.set()
        with pytest.raises(anthropic.APIError, match="in the middle of the stream"):
            async for _ in stream:
                pass
    assert len(engines.calls) == 1
