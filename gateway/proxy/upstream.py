"""An HTTP/1.1 client connection to an engine: one asyncio.Protocol on httptools, made for forwarding.

The pump: when body bytes arrive, the protocol drives the ASGI `send` coroutine itself. It nearly always finishes at
once, so a chunk crosses the process with no future, no task switch and no queue. Where the client's socket is full the
coroutine blocks; then the engine's socket is paused, a task finishes the write, and reading goes on: backpressure
reaches the engine and memory stays flat.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import coroutine
from typing import Any, Protocol

import httptools

HEADER_LIMIT = 64 * 1024
"""Bytes of an engine's response header; more is malformed."""
READ_LIMIT = 256 * 1024
SMALL_BODY = 64 * 1024
"""Bytes of a request's body that are cheaper to copy than to write in a call of their own."""

Send = Callable[[Any], Awaitable[None]]


class UpstreamError(Exception):
    """The root of what can go wrong with an engine's answer."""


class UpstreamClosed(UpstreamError):
    """The engine closed the connection before its answer was whole."""


class UpstreamMalformed(UpstreamError):
    """The engine's answer is not HTTP."""


class UpstreamSilent(UpstreamError):
    """The engine did not say anything in time."""


class ChunkWatcher(Protocol):
    """Sees every piece of a body on its way through."""

    def feed(self, chunk: bytes) -> bytes:
        """Look at the next bytes; what of them goes on, which is nearly always the same object."""
        ...


class Connection(asyncio.Protocol):
    """One connection, one request at a time: `request`, `head`, then `pump` or `read`."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._parser: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._blocked: asyncio.Task[None] | None = None
        self.lost = False
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.answered = False
        self.done = False
        self.reusable = False
        self._error: BaseException | None = None
        self._header_bytes = 0
        self._in_headers = True
        self._chunks: list[bytes] = []
        self._held = 0
        self._paused = False
        self._send: Send | None = None
        self._watcher: ChunkWatcher | None = None
        self._heard = 0.0
        self._unasked = False

    # what the relay calls

    def request(self, head: bytes, body: bytes) -> None:
        """Send a request: its head up to and with the empty line, and its whole body."""
        self._reset()
        self._parser = httptools.HttpResponseParser(self)
        if self.transport is None or self.lost:
            self._fail(UpstreamClosed("the connection was closed while idle"))
            return
        if len(body) < SMALL_BODY:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)

    async def head(self, seconds: float) -> None:
        """Wait until status and headers are there. Raises UpstreamClosed, UpstreamMalformed, UpstreamSilent."""
        await self._wait_until(lambda: not self._in_headers, seconds)

    async def read(self, seconds: float, limit: int) -> bytes:
        """The whole body, at most `limit` bytes of it. Raises as `head`."""
        body = bytearray()
        while True:
            body += self._take()[: limit - len(body)]
            if self.done:
                return bytes(body)
            self._read_on()
            await self._wait_until(lambda: self.done or bool(self._chunks), seconds)

    async def pump(self, send: Send, stall_seconds: float, watcher: ChunkWatcher | None = None) -> None:
        """Forward the body as it comes until it is whole. Raises as `head`; what was sent stays sent."""
        self._watcher = watcher
        if watcher is not None:
            # what came in one piece with the head
            self._chunks = [kept for chunk in self._chunks if (kept := watcher.feed(chunk))]
        self._send = send
        if self._chunks:
            self._flush()
        self._read_on()
        try:
            await self._wait_until(lambda: self.done, stall_seconds)
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            # a write that the client holds up comes first: nothing may overtake it, not even an error event
            while self._blocked is not None:
                await self._blocked

    def abort(self) -> None:
        """Close at once; the engine notices and gives up the request."""
        self._send = None
        if self._blocked is not None:
            self._blocked.cancel()
        if self.transport is not None:
            self.transport.abort()

    # waiting

    async def _wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        self._heard = self._loop.time()
        while not ready():
            if self._error is not None:
                raise self._error
            self._waiter = self._loop.create_future()
            if self._timer is None:
                self._timer = self._loop.call_later(seconds, self._tick, seconds)
            try:
                await self._waiter
            finally:
                self._waiter = None
                self._stop_timer()
        if self._error is not None and not self.done:
            raise self._error

    def _tick(self, seconds: float) -> None:
        """One lazy timer a wait: it looks how long the silence really is and sleeps on if it was broken."""
        self._timer = None
        if self._blocked is not None:
            # it is the client that does not read; the engine is not to blame
            self._heard = self._loop.time()
        left = self._heard + seconds - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._tick, seconds)
        else:
            self._fail(UpstreamSilent(f"nothing came for {seconds:g} s"))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._wake()

    # asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream's transport, by construction

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        self.answered = True
        if self._parser is None or self.done:
            # bytes nobody asked for: an engine that does this can't be trusted with the next request
            self.reusable = False
            self.abort()
            return
        if self._in_headers:
            self._header_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as problem:
            self._malformed(f"{problem}")
            return
        except httptools.HttpParserUpgrade:
            self._malformed("it switched protocols")
            return
        if self._unasked:
            self.reusable = False
        if self._in_headers and self._header_bytes > HEADER_LIMIT:
            self._malformed(f"its header is over {HEADER_LIMIT} bytes")
            return
        if self._send is not None and self._chunks:
            self._flush()
        elif self._held > READ_LIMIT:
            self._pause()  # nobody takes it yet: the client is still being told the status
        if not self._in_headers and (self._send is None or self.done):
            self._wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self.done or self._parser is None:
            self._wake()
            return
        if exc is None and not self._in_headers and self._ends_with_connection():
            self.done = True
            self._wake()
            return
        self._fail(UpstreamClosed(f"the engine closed the connection ({exc or 'cleanly'})"))

    def _ends_with_connection(self) -> bool:
        """A response without length and without chunks ends where its connection does."""
        names = {name for name, _ in self.headers}
        return b"content-length" not in names and b"transfer-encoding" not in names

    def _malformed(self, what: str) -> None:
        self._fail(UpstreamMalformed(f"the engine's answer is not HTTP: {what}"))
        self.abort()

    # httptools calls

    def on_message_begin(self) -> None:
        if self.done:  # a second answer to one request
            self._unasked = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers and not self.done:  # trailers are not forwarded
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.done:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200:  # noqa: PLR2004 - informational answers precede the real one
            self.headers.clear()
            return
        self.status = status
        self._in_headers = False

    def on_body(self, chunk: bytes) -> None:
        if self.done:
            return
        if self._watcher is not None:
            chunk = self._watcher.feed(chunk)
            if not chunk:
                return
        self._chunks.append(chunk)
        self._held += len(chunk)

    def on_message_complete(self) -> None:
        if self._in_headers or self.done:
            return
        self.reusable = bool(self._parser.should_keep_alive())
        self.done = True

    # the pump

    def _take(self) -> bytes:
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._held = 0
        return data

    def _pause(self) -> None:
        if self.transport is not None and not self._paused and not self.transport.is_closing():
            self.transport.pause_reading()
            self._paused = True

    def _read_on(self) -> None:
        if self.transport is not None and self._paused and not self.transport.is_closing() and self._blocked is None:
            self.transport.resume_reading()
            self._paused = False

    @staticmethod
    def _body(data: bytes) -> dict[str, object]:
        return {"type": "http.response.body", "body": data, "more_body": True}

    def _flush(self) -> None:
        """Hand what has come to the client's side, without a task if it takes it at once."""
        if self._blocked is not None or self._send is None:
            return
        step = self._send(self._body(self._take()))
        try:
            blocked_on = step.send(None)  # type: ignore[attr-defined]  # ASGI's send is a coroutine function
        except StopIteration:
            return
        except BaseException as problem:  # noqa: BLE001 - whatever the client's side raises belongs to the relay
            self._fail(problem)
            return
        self._pause()
        self._blocked = self._loop.create_task(self._finish(step, blocked_on))  # type: ignore[arg-type]

    async def _finish(self, step: Coroutine[Any, Any, None], blocked_on: Any) -> None:
        """Complete a blocked write and whatever has come since, then read on."""
        try:
            await _resume(step, blocked_on)
            while self._chunks and self._send is not None:
                await self._send(self._body(self._take()))
        except asyncio.CancelledError:
            raise
        except Exception as problem:  # noqa: BLE001 - as in _flush
            self._fail(problem)
        finally:
            self._blocked = None
            self._read_on()
        if self.done:
            self._wake()


@coroutine
def _resume(step: Coroutine[Any, Any, None], blocked_on: Any) -> Generator[Any, Any, None]:
    """Await the rest of a coroutine that was begun by hand and has yielded a future already."""
    while True:
        try:
            value = yield blocked_on
        except BaseException as problem:  # noqa: BLE001 - passed on into the coroutine, as `yield from` does
            try:
                blocked_on = step.throw(problem)
            except StopIteration:
                return
        else:
            try:
                blocked_on = step.send(value)
            except StopIteration:
                return


async def connect(socket: str, seconds: float) -> Connection:
    """A fresh connection to the engine that listens on this Unix socket. Raises OSError, TimeoutError."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(seconds):
        _, connection = await loop.create_unix_connection(Connection, socket)
    return connection
