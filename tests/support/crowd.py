"""Many clients at once on one event loop: HTTP by hand, so that each can be cut off at a chosen byte."""

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterable
from typing import Any, Self

from tests.support.raw_http import RawAnswer, dechunked, post_bytes
from tests.support.stack import ADMIN_KEY

SECONDS = 60.0
"""For any one wait; a machine that does other things meanwhile is no failure."""


class Caller:
    """One client connection to 127.0.0.1."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.received = b""

    @classmethod
    async def connect(cls, port: int, receive_buffer: int | None = None, trust: ssl.SSLContext | None = None) -> Self:
        """Connect; `receive_buffer` bytes are all that the kernel takes for a client that does not read."""
        client = socket.socket()
        try:
            client.settimeout(0)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if receive_buffer is not None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            async with asyncio.timeout(SECONDS):
                await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
                limit, host = 65_536 if receive_buffer is None else 1, "localhost" if trust else None
                return cls(*await asyncio.open_connection(sock=client, limit=limit, ssl=trust, server_hostname=host))
        except BaseException:
            client.close()
            raise

    def send(self, data: bytes) -> None:
        """Send bytes; nobody waits for them to be taken."""
        self._writer.write(data)

    async def drain(self) -> None:
        """Wait until what was sent is nearly taken. Raises ConnectionError where it never will be."""
        async with asyncio.timeout(SECONDS):
            await self._writer.drain()

    def post(self, path: str, body: object, *headers: str, key: str = ADMIN_KEY) -> None:
        """Send a whole JSON request."""
        self.send(post_bytes(path, body, key, *headers))

    async def read_until(self, mark: bytes) -> bytes:
        """Everything received so far, once it holds `mark`. Raises AssertionError if the connection ends before."""
        async with asyncio.timeout(SECONDS):
            while mark not in self.received:
                piece = await self._reader.read(65_536)
                assert piece, f"closed before {mark!r} came; received {self.received[-500:]!r}"
                self.received += piece
        return self.received

    async def read_to_end(self) -> bytes:
        """Everything, once the peer has closed or reset the connection."""
        pieces = [self.received]
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(SECONDS):
                while piece := await self._reader.read(65_536):
                    pieces.append(piece)
        self.received = b"".join(pieces)
        return self.received

    async def read_some(self) -> None:
        """Read a little, if anything still comes."""
        async with asyncio.timeout(SECONDS):
            self.received += await self._reader.read(4096)

    async def answer(self) -> RawAnswer:
        """The next answer, whole: by its length or in chunks. Raises AssertionError if it is cut."""
        await self.read_until(b"\r\n\r\n")
        head, _, rest = self.received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("transfer-encoding") == "chunked":
            self.received = rest
            whole = await self.read_until(b"\r\n0\r\n\r\n")
            end = whole.index(b"\r\n0\r\n\r\n") + len(b"\r\n0\r\n\r\n")
            body, self.received = dechunked(whole[:end]), whole[end:]
        else:
            length = int(headers.get("content-length", 0))
            async with asyncio.timeout(SECONDS):
                while len(rest) < length:
                    piece = await self._reader.read(65_536)
                    assert piece, f"closed after {len(rest)} of {length} bytes"
                    rest += piece
            body, self.received = rest[:length], rest[length:]
        return RawAnswer(int(first.split()[1]), headers, body)

    def stop_reading(self) -> None:
        """Whatever comes from now on stays in the kernel."""
        transport: Any = self._writer.transport
        transport.pause_reading()

    def hang_up(self) -> None:
        """Close at once."""
        self._writer.transport.abort()


@contextlib.asynccontextmanager
async def calling(
    port: int, receive_buffer: int | None = None, trust: ssl.SSLContext | None = None
) -> AsyncIterator[Caller]:
    """A connection for the length of a block, with `trust` through TLS."""
    caller = await Caller.connect(port, receive_buffer, trust)
    try:
        yield caller
    finally:
        caller.hang_up()


@contextlib.asynccontextmanager
async def crowd(
    port: int, size: int, receive_buffer: int | None = None, trust: ssl.SSLContext | None = None
) -> AsyncIterator[list[Caller]]:
    """So many connections for the length of a block; at its end all hang up at once."""
    callers: list[Caller] = []
    try:
        while len(callers) < size:
            callers.append(await Caller.connect(port, receive_buffer, trust))
        yield callers
    finally:
        for caller in callers:
            caller.hang_up()


def contents(stream: bytes) -> list[str]:
    """The pieces of text in a whole stream of chat completions. Raises AssertionError if it is not whole.

    Whole: no error event, and `[DONE]` once, as its last event.
    """
    events = [event for event in stream.decode().split("\n\n") if event and not event.startswith(":")]
    assert events, "an empty stream"
    assert all(event.startswith("data: ") for event in events), stream[-500:]
    assert events[-1] == "data: [DONE]", stream[-500:]
    chunks: Iterable[Any] = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert not any("error" in chunk for chunk in chunks), stream[-500:]
    texts = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
    return [text for text in texts if text]
