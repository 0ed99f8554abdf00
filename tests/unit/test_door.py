"""What stands before a handshake, on real sockets and uvloop."""

import asyncio
import ssl
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.http11.door import AT_ONCE, Door, Hall
from tests.support.crowd import Caller, calling
from tests.support.secure_server import SECONDS, Served, ok, run, serving
from tests.support.waiting import wait_until_async

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


def hello(served: Served[Watched]) -> bytes:
    """How a client begins."""
    sent = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        served.authority.trust.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost").do_handshake()
    return sent.read()


@pytest.mark.parametrize(
    "request_",
    [GET, b"DELETE /api/keys/1 HTTP/1.1\r\nhost: h\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: 999999\r\n\r\n"],
)
def test_a_client_that_speaks_http_is_told_what_to_write_instead(tmp_path: Path, request_: bytes) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ok, Watched) as served, calling(served.port) as caller:
            caller.send(request_)
            answer = await caller.answer()
            assert (answer.status, answer.headers["connection"]) == (400, "close")
            assert "https://" in answer.json()["error"]["message"]
            assert await caller.read_to_end() == b""

    run(scenario)


def test_a_crowd_of_handshakes_is_taken_a_few_in_each_turn_and_all_are_served(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ok, Watched) as served, AsyncExitStack() as stack:
            crowd = [await stack.enter_async_context(calling(served.port)) for _ in range(CROWD)]
            served.hall.count()
            for caller in crowd:  # in one turn of this loop, which is the server's too
                caller.send(hello(served))
            await asyncio.gather(*(caller.read_until(b"\x16\x03\x03") for caller in crowd))
            assert served.hall.longest > AT_ONCE
            assert sum(served.hall.begun.values()) == CROWD
            assert max(served.hall.begun.values()) == AT_ONCE

    run(scenario)


def test_clients_that_leave_while_they_wait_for_their_turn_leave_nothing_behind(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ok, Watched) as served:
            crowd = [await Caller.connect(served.port) for _ in range(CROWD)]
            for caller in crowd:
                caller.send(hello(served))
            for caller in crowd:
                caller.hang_up()
            async with calling(served.port, trust=served.authority.trust) as late:
                late.send(GET)
                assert (await late.answer()).status == 200

    run(scenario)


@pytest.mark.parametrize("beginning", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01"])
def test_a_handshake_that_does_not_end_is_cut_off(tmp_path: Path, beginning: bytes) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ok, Watched, handshake_seconds=0.1) as served, calling(served.port) as caller:
            caller.send(beginning)
            assert not (await caller.read_to_end()).startswith(b"HTTP")

    run(scenario)


def test_what_is_said_along_with_the_end_of_the_handshake_is_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ok, Watched) as served:
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
