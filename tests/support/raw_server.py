"""A Unix-socket server that answers with exactly the bytes a test says, in exactly these pieces."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from tests.support.processes import short_folder

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def raw_server(script: Script, socket: Path | None = None) -> AsyncIterator[Path]:
    """Run `script` for every connection; yields the socket's path. Connections are closed when their script ends."""
    handlers: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        writers.append(writer)
        task.add_done_callback(handlers.discard)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await script(reader, writer)
        writer.close()

    with short_folder() as folder:
        path = socket or folder / "engine.sock"
        server = await asyncio.start_unix_server(handle, path)
        try:
            yield path
        finally:
            await asyncio.sleep(0.01)  # connections that were just made get their handlers, and ends are noticed
            server.close()
            for task in list(handlers):
                task.cancel()
            await asyncio.gather(*handlers, return_exceptions=True)
            for writer in writers:
                writer.transport.abort()
            await asyncio.sleep(0.01)  # both ends of each connection are told of its end
            path.unlink(missing_ok=True)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """The head and body of one request. Raises IncompleteReadError if the client has gone."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return head + await reader.readexactly(int(value))
    return head


HEALTHY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


async def read_call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """As `read_request`; whoever asks before how the engine does (a probe, the canary) is told, and does not count."""
    while (request := await read_request(reader)).startswith((b"GET /health ", b"GET /metrics ")):
        writer.write(HEALTHY)
    return request


def answering(*pieces: bytes, close: bool = False) -> Script:
    """A script: each request is answered with these pieces, written one by one; `close`: and that is all."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if close:
                return

    return script


async def until_closed(reader: asyncio.StreamReader) -> None:
    """Return when the client has closed, or broken, the connection."""
    with contextlib.suppress(ConnectionError):
        while await reader.read(65_536):
            pass
