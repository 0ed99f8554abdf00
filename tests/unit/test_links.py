"""An engine owns the folder of its socket: a link that it puts there leads neither gateway nor manager anywhere."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.proxy import upstream
from tests.support.processes import short_folder
from tests.support.raw_server import answering, raw_server
from tests.support.waiting import wait_until_async
from worker_manager.engines.readiness import open_client, probe

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
OTHERS = ANSWER.replace(b"\r\n\r\n", b"\r\nx-other: 1\r\n\r\n")
SECONDS = 30.0


@pytest.fixture
async def other() -> AsyncIterator[Path]:
    """A socket that somebody else listens on, in a folder beside the engine's."""
    with short_folder() as folder:
        for name in ("own", "other"):
            (folder / name).mkdir()
        socket = folder / "other" / "engine.sock"
        async with raw_server(answering(OTHERS), socket):
            yield socket


def own_place(other: Path) -> Path:
    """Where the engine's own socket belongs."""
    return other.parents[1] / "own" / "engine.sock"


def link(other: Path) -> Path:
    """A link to the other's socket, in the place of the engine's own."""
    own_place(other).symlink_to("../other/engine.sock")
    return own_place(other)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_the_gateway_connects_to_a_socket_and_not_to_a_link(other: Path) -> None:
    connection = await upstream.connect(str(other), SECONDS)
    connection.abort()
    with pytest.raises(OSError, match="refused"):
        await upstream.connect(str(link(other)), SECONDS)


async def test_the_manager_asks_a_socket_and_not_a_link(other: Path) -> None:
    async with open_client(other, SECONDS) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.post("/sleep")).status_code == 200
    async with open_client(link(other), SECONDS) as client:
        with pytest.raises(httpx.ConnectError):
            await client.post("/sleep")
    assert "ConnectError" in (await probe(own_place(other), "m")).reason


async def test_what_takes_the_place_of_a_held_socket_is_not_asked(other: Path) -> None:
    own = own_place(other)
    async with raw_server(answering(ANSWER, close=True), own), open_client(own, SECONDS) as client:
        assert "x-other" not in (await client.get("/health")).headers
        own.unlink()
        link(other)
        assert "x-other" not in (await client.get("/health")).headers


async def test_a_socket_that_is_not_there_yet_is_asked_again_and_nothing_is_left_open(other: Path) -> None:
    own = own_place(other)
    before = descriptors()
    async with open_client(own, SECONDS) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("/health")
        async with raw_server(answering(ANSWER), own):
            assert (await client.get("/health")).status_code == 200
    with pytest.raises(FileNotFoundError):
        await upstream.connect(str(other.with_name("nothing")), SECONDS)
    await wait_until_async(lambda: descriptors() <= before, "every descriptor is closed", seconds=SECONDS)
