"""One call on its way, with a real queue of workers, real connections, and engines that misbehave."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.errors import BadRequest, EngineBroke, EngineTooSlow, GatewayError, NotFound, NoWorker, Unauthorized
from gateway.http11.exchange import Exchange
from gateway.proxy.call import Call
from gateway.proxy.dialects import OPENAI, RESPONSES, Dialect
from gateway.proxy.head import Head
from gateway.proxy.pool import IDLE_LIMIT, Pool
from gateway.proxy.relay import Relay
from gateway.proxy.upstream import Connection
from gateway.scheduling.demand import Demand
from gateway.scheduling.slots import Lease
from gateway.settings import Settings
from tests.support.planning import template
from tests.support.processes import short_folder
from tests.support.raw_server import Script, answering, raw_server, read_request, until_closed
from tests.support.waiting import wait_until_async
from worker_manager.contract import ObservedWorker, Residency, WorkerSpec, WorkerState

JSON = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nServer: engine\r\ncontent-length: 11\r\n\r\n{"id":"x"}\n'
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ONE_EVENT = b'f\r\ndata: {"n":1}\n\n\r\n'
DONE = b"e\r\ndata: [DONE]\n\n\r\n"
LIMITS = Settings(
    admin_key="0123456789abcdef",
    queue_seconds=5,
    stream_grace_seconds=0.02,
    heartbeat_seconds=0.02,
    connect_seconds=1,
    first_byte_seconds=0.3,
    stall_seconds=0.3,
)


class Client:
    """What the gateway's client was sent."""

    method, path, query = "POST", "/v1/completions", b""
    blocked = False
    gone = False
    peer = "192.0.2.1"

    def __init__(
        self, dialect: Dialect = OPENAI, *, stream: bool = False, headers: dict[bytes, bytes] | None = None
    ) -> None:
        self.headers = list((headers or {}).items())
        self.familiar = None
        self.when_free: Callable[[], None] | None = None
        self.status = 0
        self.sent_headers: dict[bytes, bytes] = {}
        self.sent = b""
        self.started = self.ended = False
        self.call = Call(self, Head(self.method, self.path, self.query, headers or {}))
        self.call.dialect = dialect
        self.call.endpoint, self.call.stream, self.call.body = "a", stream, b"{}"

    async def body(self, _limit: int, _seconds: float) -> bytes:
        return b"{}"

    def start(
        self, status: int, headers: list[tuple[bytes, bytes]], lines: bytes = b"", *, sized: bool = False
    ) -> None:
        assert not self.started, "a second status"
        assert sized == (b"content-length: " in lines)
        self.started = True
        self.status, self.sent_headers = status, dict(headers)
        self.sent_headers |= {
            name: value for name, _, value in (line.partition(b": ") for line in lines.split(b"\r\n"))
        }

    def write(self, data: bytes) -> None:
        assert self.started
        assert not self.ended, "something after the end"
        self.sent += data

    def flush(self) -> None:
        assert self.started

    def end(self, data: bytes = b"") -> None:
        self.write(data)
        self.ended = True


class House:
    """Demand, pool and relay; engines are added by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.demand = Demand(folder, 100)
        self.demand.set_endpoints({"a": 4})
        self.pool = Pool(1.0)
        self.relay: Relay[Lease] = Relay(self.demand, self.pool, LIMITS)
        self.stack = contextlib.AsyncExitStack()
        self.seen: dict[str, ObservedWorker] = {}

    async def engine(self, name: str, script: Script) -> Path:
        (self.folder / name).mkdir()
        socket = await self.stack.enter_async_context(raw_server(script, self.folder / name / "engine.sock"))
        self.observe(name)
        return socket

    def observe(self, name: str, state: WorkerState = WorkerState.READY, since: float = 0.0) -> None:
        self.seen[name] = ObservedWorker(
            spec=_named(name),
            spec_hash="x",
            state=state,
            residency=Residency.HOT,
            since=since,
            socket=f"{name}/engine.sock",
        )
        self.demand.set_workers(self.seen.values())

    async def run(self, client: Client) -> GatewayError | None:
        """Carry a call; the error it raised. Whatever happens, every lease is back afterwards."""
        error = None
        try:
            await self.relay.run(client.call)
        except GatewayError as caught:
            error = caught
        assert all(slot.in_flight == 0 for slot in self.demand.slots.values())
        return error


def _named(name: str) -> WorkerSpec:
    return msgspec.structs.replace(template("a"), id=name)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    with short_folder() as folder:
        made = House(folder)
        yield made
        made.pool.close()
        await made.stack.aclose()


def counted(script: Script) -> tuple[Script, list[int]]:
    """The same script, and one entry for each connection it got."""
    connections: list[int] = []

    async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        await script(reader, writer)

    return counting, connections


# the ordinary way


async def test_an_answer_is_forwarded_with_our_headers_and_without_the_engines_own(house: House) -> None:
    await house.engine("w1", answering(JSON))
    client = Client(headers={b"x-request-id": b"mine"})
    assert await house.run(client) is None
    assert (client.status, client.sent, client.ended) == (200, b'{"id":"x"}\n', True)
    assert client.sent_headers[b"x-hostler-worker"] == b"w1"
    assert client.sent_headers[b"x-request-id"] == b"mine"
    assert b"server" not in client.sent_headers


async def test_credentials_stay_here_and_the_engine_gets_what_it_needs(house: House) -> None:
    got: list[bytes] = []

    async def noting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await read_request(reader))
        writer.write(JSON)
        await until_closed(reader)

    await house.engine("w1", noting)
    secret = {b"authorization": b"Bearer hst_secret", b"x-api-key": b"k", b"cookie": b"c", b"traceparent": b"00-1"}
    await house.run(Client(headers=secret))
    head, _, body = got[0].partition(b"\r\n\r\n")
    assert body == b"{}"
    assert b"secret" not in head
    assert b"cookie" not in head
    assert b"traceparent: 00-1" in head


async def test_a_connection_is_used_again(house: House) -> None:
    script, connections = counted(answering(JSON))
    await house.engine("w1", script)
    for _ in range(5):
        assert await house.run(Client()) is None
    assert len(connections) == 1


class Wire:
    """A client's connection that notes what is written to it."""

    blocked = False

    def __init__(self, *, stopping: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport: Any = self
        self.stopping = stopping
        self.sent = b""

    def write(self, data: bytes) -> None:
        self.sent += data

    def read_on(self) -> None:
        """Nothing is held up."""

    def answered(self, exchange: Exchange) -> None:
        assert exchange.ended


@pytest.mark.parametrize("kind", ["usual", "a response", "stopping", "HTTP/1.0", "HEAD"])
async def test_an_answer_that_is_recognised_reaches_the_client_byte_for_byte_as_one_that_was_parsed(
    house: House, kind: str
) -> None:
    dialect = RESPONSES if kind == "a response" else OPENAI
    told = JSON.replace(b'"id"', b'"id":"resp_1","usage":{"prompt_tokens":3},"x"').replace(b": 11", b": 52")
    socket = await house.engine("w1", answering(told))
    seen = []
    for _ in range(3):
        wire = Wire(stopping=kind == "stopping")
        exchange = Exchange(wire)
        exchange.method = "HEAD" if kind == "HEAD" else "POST"
        exchange.old = kind == "HTTP/1.0"
        exchange.whole, exchange.keep_alive = True, not exchange.old
        call = Call(exchange, Head(exchange.method, "/v1/responses", b"", {b"x-request-id": b"mine"}))
        call.dialect = dialect
        call.endpoint, call.key, call.body = "a", "k", b"{}"
        await house.relay.run(call)
        assert call.meter is not None
        seen.append((re.sub(rb"(-engine-ms: )[0-9]+", rb"\1", wire.sent), call.meter.usage, call.status))
        found = house.relay.response_ids._made.popitem() if house.relay.response_ids._made else None
        assert (found is not None) == (dialect is RESPONSES)
    ((_, idle),) = house.pool._idle[str(socket)]
    assert idle.lines == b"content-type: application/json\r\ncontent-length: 52\r\n", "recognised in the end"
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][1] is not None


async def test_an_answer_that_is_recognised_does_not_pass_for_a_stream_that_has_begun(house: House) -> None:
    await house.engine("w1", answering(JSON))
    for _ in range(2):
        assert await house.run(Client()) is None
    client = Client(stream=True)
    client.start(200, [])
    error = await house.run(client)
    assert isinstance(error, EngineBroke)
    assert b"refused with status 200" in client.sent


async def test_what_was_learned_of_an_engine_goes_with_it(house: House) -> None:
    socket = await house.engine("w1", answering(JSON))
    assert await house.run(Client()) is None
    house.pool.sweep()
    assert str(socket) in house.pool._memories
    await house.run(Client(stream=True))
    connection = house.pool.take(socket)
    assert connection is not None
    house.pool.sweep()
    assert not house.pool._memories
    connection.abort()


async def test_a_whole_stream_is_forwarded_byte_for_byte_even_in_one_piece_with_its_head(house: House) -> None:
    await house.engine("w1", answering(EVENTS + ONE_EVENT + DONE + b"0\r\n\r\n"))
    client = Client(stream=True)
    assert await house.run(client) is None
    assert client.sent == b'data: {"n":1}\n\ndata: [DONE]\n\n'
    assert client.sent_headers[b"cache-control"] == b"no-cache"


async def test_a_stream_is_as_long_as_it_is_whatever_length_its_engine_had_said(house: House) -> None:
    cut = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 15\r\n\r\n" + ONE_EVENT[3:18]
    await house.engine("w1", answering(cut))
    client = Client(stream=True)
    assert isinstance(await house.run(client), EngineBroke)
    assert b"content-length" not in client.sent_headers
    assert client.sent.endswith(b"data: [DONE]\n\n")
    assert len(client.sent) > 15


# what breaks


async def test_a_connection_the_engine_closed_while_idle_is_replaced_without_the_client_noticing(house: House) -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(JSON)
        await reader.read(1)  # its keep-alive time is over in the moment the next request comes

    script, connections = counted(once)
    await house.engine("w1", script)
    for _ in range(3):
        assert await house.run(Client()) is None
    assert len(connections) == 3


async def test_a_connection_that_ended_while_idle_is_not_used(house: House) -> None:
    script, connections = counted(answering(JSON, close=True))
    socket = await house.engine("w1", script)
    assert await house.run(Client()) is None
    ((_, idle),) = house.pool._idle[str(socket)]
    await wait_until_async(lambda: idle.lost)
    assert await house.run(Client()) is None
    assert len(connections) == 2


async def test_a_worker_that_closes_before_its_answer_is_passed_over_for_another(house: House) -> None:
    await house.engine("w1", answering(close=True))
    await house.engine("w2", answering(JSON))
    for _ in range(4):
        client = Client()
        assert await house.run(client) is None
        assert client.sent_headers[b"x-hostler-worker"] == b"w2"


async def test_a_worker_that_takes_no_connection_is_passed_over_and_left_alone(house: House) -> None:
    (house.folder / "w1").mkdir()
    house.observe("w1")
    await house.engine("w2", answering(JSON))
    client = Client()
    assert await house.run(client) is None
    assert client.sent_headers[b"x-hostler-worker"] == b"w2"
    house.demand.slots["w2"].in_flight = 3
    assert house.demand.try_acquire("a").slot.id == "w2"  # type: ignore[union-attr]  # there is room
    house.demand.slots["w2"].in_flight = 0


async def test_a_request_whose_only_worker_died_is_served_by_it_once_it_has_started_anew(house: House) -> None:
    died = asyncio.Event()

    async def dying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        died.set()
        writer.close()

    await house.engine("w1", dying)
    client = Client()
    running = asyncio.create_task(house.run(client))
    await died.wait()
    await wait_until_async(lambda: house.demand.queues["a"].waiters)
    house.observe("w1", WorkerState.BACKOFF)
    (house.folder / "w1" / "engine.sock").unlink()
    await house.stack.enter_async_context(raw_server(answering(JSON), house.folder / "w1" / "engine.sock"))
    house.observe("w1", since=2e9)
    assert await running is None
    assert client.status == 200


async def test_two_workers_that_break_are_a_502_with_what_to_do(house: House) -> None:
    for name in ("w1", "w2"):
        await house.engine(name, answering(close=True))
    client = Client()
    error = await house.run(client)
    assert isinstance(error, EngineBroke)
    assert "GET /api/endpoints/a" in error.message
    assert not client.status


async def test_nonsense_and_silence_before_the_answer_are_told_at_once_and_not_tried_again(house: House) -> None:
    await house.engine("w1", answering(b"nonsense\r\n\r\n"))
    assert isinstance(await house.run(Client()), EngineBroke)
    house.seen.clear()
    await house.engine("w2", answering(b""))
    assert isinstance(await house.run(Client()), EngineTooSlow)


async def test_an_answer_that_breaks_off_is_never_ended_as_if_it_were_whole(house: House) -> None:
    await house.engine("w1", answering(JSON[:-4], close=True))
    client = Client()
    assert isinstance(await house.run(client), EngineBroke)
    assert (client.status, client.ended) == (200, False)


@pytest.mark.parametrize("end", [b"", b"0\r\n\r\n"], ids=["cut", "clean but without its end marker"])
async def test_a_stream_that_breaks_off_ends_with_an_error_event(house: House, end: bytes) -> None:
    await house.engine("w1", answering(EVENTS + ONE_EVENT + end, close=True))
    client = Client(stream=True)
    assert isinstance(await house.run(client), EngineBroke)
    _, error, done = (event.removeprefix(b"data: ") for event in client.sent.strip().split(b"\n\n"))
    assert json.loads(error)["error"]["code"] == "engine_broke"
    assert (done, client.ended) == (b"[DONE]", True)


async def test_a_stream_that_stalls_ends_with_an_error_event(house: House) -> None:
    await house.engine("w1", answering(EVENTS + ONE_EVENT))
    client = Client(stream=True)
    assert isinstance(await house.run(client), EngineBroke)
    assert b"stalled in the middle" in client.sent


# waiting


async def test_a_waiting_stream_gets_heartbeats_and_then_its_answer(house: House) -> None:
    client = Client(stream=True)
    running = asyncio.create_task(house.run(client))
    await wait_until_async(lambda: client.sent.count(b": loading a\n\n") >= 3)
    await house.engine("w1", answering(EVENTS + DONE + b"0\r\n\r\n"))
    assert await running is None
    assert client.sent.endswith(b"\n\ndata: [DONE]\n\n")


async def test_an_engines_refusal_after_heartbeats_becomes_an_error_event(house: House) -> None:
    client = Client(stream=True)
    running = asyncio.create_task(house.run(client))
    await wait_until_async(lambda: client.sent)
    await house.engine("w1", answering(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 3\r\n\r\nwhy"))
    assert isinstance(await running, EngineBroke)
    assert b"status 400: why" in client.sent


async def test_a_client_that_leaves_while_waiting_leaves_nothing_behind(house: House) -> None:
    for stream in (True, False):
        running = asyncio.create_task(house.relay.run(Client(stream=stream).call))
        await wait_until_async(lambda: house.demand.queues["a"].waiters)
        running.cancel()
        await asyncio.wait({running})
        assert not house.demand.queues["a"].waiters


async def test_a_client_that_leaves_mid_answer_closes_the_engines_connection(house: House) -> None:
    closed = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(EVENTS + ONE_EVENT)
        await until_closed(reader)
        closed.set()

    await house.engine("w1", slow)
    client = Client(stream=True)
    running = asyncio.create_task(house.relay.run(client.call))
    await wait_until_async(lambda: client.sent)
    running.cancel()
    async with asyncio.timeout(0.1):
        await closed.wait()
    await asyncio.wait({running})
    assert house.demand.slots["w1"].in_flight == 0


async def test_a_caller_may_shorten_its_wait_but_not_with_nonsense(house: House) -> None:
    error = await house.run(Client(headers={b"x-hostler-timeout": b"0.05"}))
    assert isinstance(error, NoWorker)
    for value in (b"soon", b"-1", b"nan", b"inf"):
        assert isinstance(await house.run(Client(headers={b"x-hostler-timeout": value})), BadRequest)


async def test_a_request_whose_key_was_revoked_while_it_waited_gets_no_worker(house: House) -> None:
    known = {"a key"}
    house.relay = Relay(house.demand, house.pool, LIMITS, known.__contains__)
    for stream in (False, True):
        client = Client(stream=stream)
        client.call.key = "a key"
        running = asyncio.create_task(house.run(client))
        await wait_until_async(lambda: house.demand.queues["a"].waiters)
        known.clear()
        house.observe("w1")
        assert isinstance(await running, Unauthorized)
        known.add("a key")
        house.observe("w1", WorkerState.LOADING)


# responses


async def test_a_call_about_a_response_goes_to_the_worker_that_made_it(house: House) -> None:
    made = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 18\r\n\r\n{"id": "resp_1-a"}'
    await house.engine("w1", answering(made))
    assert await house.run(Client(RESPONSES)) is None
    await house.engine("w2", answering(made))
    client = Client(RESPONSES)
    made_by = house.relay.made("resp_1-a", "", lambda _: True)
    assert made_by == ("w1", "a", "")
    await house.relay.run_about_response(client.call, "resp_1-a", made_by.worker)
    assert client.sent_headers[b"x-hostler-worker"] == b"w1"
    may: list[tuple[str, str, Callable[[str], bool]]] = [
        ("resp_2", "", lambda _: True),
        ("resp_1-a", "", lambda _: False),
        ("resp_1-a", "another key", lambda _: True),
    ]
    for response_id, key, allowed in may:
        with pytest.raises(NotFound):
            house.relay.made(response_id, key, allowed)
    with pytest.raises(NotFound):
        await house.relay.run_about_response(Client(RESPONSES).call, "resp_1-a", "a worker that is gone")
    assert house.demand.slots["w1"].in_flight == 0


# the pool


async def test_the_pool_keeps_only_whole_answers_and_only_so_many() -> None:
    async with raw_server(answering(JSON)) as socket:
        pool = Pool(1.0)
        fresh: list[Connection] = [await pool.connect(socket) for _ in range(IDLE_LIMIT + 2)]
        pool.release(socket, fresh[0])
        assert not pool._idle, "nothing was answered on it"
        for connection in fresh[1:]:
            connection.done = connection.reusable = True
            pool.release(socket, connection)
        assert len(pool._idle[str(socket)]) == IDLE_LIMIT
        assert pool.take(socket) is fresh[IDLE_LIMIT]
        asked = await pool.connect(socket)
        assert asked not in fresh
        pool.sweep()
        pool.close()
        assert not pool._idle
        for connection in (asked, fresh[IDLE_LIMIT]):
            connection.abort()


async def test_an_engine_that_is_not_there_is_an_os_error() -> None:
    with short_folder() as folder, pytest.raises(OSError, match="No such file"):
        await Pool(1.0).connect(folder / "engine.sock")
