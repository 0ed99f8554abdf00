"""What stands before a handshake, on real sockets and uvloop."""

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from gateway.certificate import Certificate
from gateway.http11.door import AT_ONCE, Door, Hall, MistakenConnection
from gateway.http11.exchange import Exchange
from gateway.http11.secure import SecureConnection
from tests.support.certificates import Authority
from tests.support.crowd import Caller, calling
from tests.support.waiting import wait_until_async

SECONDS = 60.0
GET = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"
CROWD = 3 * AT_ONCE + 1


class Watched(Hall):
    """A hall that counts the handshakes of each turn of the loop."""

    def __init__(self, *needs: Any, **times: Any) -> None:
        super().__init__(*needs, **times)
        self.turn = 0
        self.begun: Counter[int] = Counter()
        self.longest = 0

    def count(self) -> None:
        """Count the turns, from now on."""
        self.turn += 1
        self._loop.call_soon(self.count)

    def queue(self, door: Door, hello: bytes) -> None:
        """One more waits."""
        super().queue(door, hello)
        self.longest = max(self.longest, len(self._waiting))

    async def _shake_hands(self, door: Door) -> None:
        self.begun[self.turn] += 1
        await super()._shake_hands(door)


class Served:
    """The server's hall, and what the connections behind it share."""

    hall: Watched
    port: int
    total_requests = 0

    def __init__(self) -> None:
        self.authority = Authority()
        self.connections: set[Any] = set()
        self.tasks: set[asyncio.Task[None]] = set()

    def hello(self) -> bytes:
        """How a client begins."""
        sent = ssl.MemoryBIO()
        with pytest.raises(ssl.SSLWantReadError):
            self.authority.trust.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost").do_handshake()
        return sent.read()


async def ok(exchange: Exchange) -> None:
    exchange.start(200, [(b"content-length", b"2")])
    exchange.end(b"ok")


@asynccontextmanager
async def serving(folder: Path, handshake_seconds: float = SECONDS) -> AsyncIterator[Served]:
    served = Served()
    kind = type("Limited", (SecureConnection,), {"direct": staticmethod(lambda _path: ok)})
    needs: Any = (SimpleNamespace(loaded=True, loaded_app=None), served, {})
    served.hall = Watched(
        Certificate(*served.authority.sign(folder)).context,
        lambda: kind(*needs),
        lambda: MistakenConnection(*needs),
        handshake_seconds=handshake_seconds,
        shutdown_seconds=SECONDS,
    )
    server = await asyncio.get_running_loop().create_server(served.hall.door, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
        await wait_until_async(lambda: not served.connections, "no connection is left", seconds=SECONDS)
        await wait_until_async(lambda: not served.hall._tasks, "no handshake is left", seconds=SECONDS)
    finally:
        server.close()


def run(scenario: Callable[[], Any]) -> None:
    """On the loop that the product runs on; what it would only log is a failure here."""
    problems: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, problem: problems.append(problem))
        await scenario()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(watched())
    assert not problems


@pytest.mark.parametrize(
    "request_",
    [GET, b"DELETE /api/keys/1 HTTP/1.1\r\nhost: h\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: 999999\r\n\r\n"],
)
def test_a_client_that_speaks_http_is_told_what_to_write_instead(tmp_path: Path, request_: bytes) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as served, calling(served.port) as caller:
            caller.send(request_)
            answer = await caller.answer()
            assert (answer.status, answer.headers["connection"]) == (400, "close")
            assert "https://" in answer.json()["error"]["message"]
            assert await caller.read_to_end() == b""

    run(scenario)


def test_a_crowd_of_handshakes_is_taken_a_few_in_each_turn_and_all_are_served(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as served, AsyncExitStack() as stack:
            crowd = [await stack.enter_async_context(calling(served.port)) for _ in range(CROWD)]
            served.hall.count()
            for caller in crowd:  # in one turn of this loop, which is the server's too
                caller.send(served.hello())
            await asyncio.gather(*(caller.read_until(b"\x16\x03\x03") for caller in crowd))
            assert served.hall.longest > AT_ONCE
            assert sum(served.hall.begun.values()) == CROWD
            assert max(served.hall.begun.values()) == AT_ONCE

    run(scenario)


def test_clients_that_leave_while_they_wait_for_their_turn_leave_nothing_behind(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as served:
            crowd = [await Caller.connect(served.port) for _ in range(CROWD)]
            for caller in crowd:
                caller.send(served.hello())
            for caller in crowd:
                caller.hang_up()
            async with calling(served.port, trust=served.authority.trust) as late:
                late.send(GET)
                assert (await late.answer()).status == 200

    run(scenario)


@pytest.mark.parametrize("beginning", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01"])
def test_a_handshake_that_does_not_end_is_cut_off(tmp_path: Path, beginning: bytes) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, handshake_seconds=0.1) as served, calling(served.port) as caller:
            caller.send(beginning)
            assert not (await caller.read_to_end()).startswith(b"HTTP")

    run(scenario)


def test_what_is_said_along_with_the_end_of_the_handshake_is_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as served:
            received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = served.authority.trust.wrap_bio(received, sent, server_hostname="localhost")
            with pytest.raises(ssl.SSLWantReadError):
                client.do_handshake()
            hello = sent.read()
            async with calling(served.port) as caller:
                caller.send(hello[:1])  # a hello in two pieces, of which the first is one byte
                await wait_until_async(lambda: served.hall._tasks, "its turn has come", seconds=SECONDS)
                caller.send(hello[1:])
                while True:
                    await caller.read_some()
                    received.write(caller.received)
                    caller.received = b""
                    try:
                        client.do_handshake()
                    except ssl.SSLWantReadError:
                        continue
                    break
                client.write(GET)
                caller.send(sent.read())
                answer = b""
                while not answer.endswith(b"ok"):
                    await caller.read_some()
                    received.write(caller.received)
                    caller.received = b""
                    while received.pending:
                        try:
                            answer += client.read(4096)
                        except ssl.SSLWantReadError:
                            break
                assert answer.startswith(b"HTTP/1.1 200")

    run(scenario)
