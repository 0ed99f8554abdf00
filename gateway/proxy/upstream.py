"""An HTTP/1.1 client connection to an engine: one asyncio.Protocol on httptools, made for forwarding.

The pump: body bytes that arrive are written to the client in the same call, with no future, no task switch and no
queue. Where the client's socket is full the engine's socket is paused until there is room again: backpressure reaches
the engine and memory stays flat.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Any, Protocol

import httptools

from gateway.proxy.repeated import OK, Headers, Memory

HEADER_LIMIT = 64 * 1024
"""Bytes of an engine's response header; more is malformed."""
READ_LIMIT = 256 * 1024
SMALL_BODY = 64 * 1024
"""Bytes of a request's body that are cheaper to copy than to write in a call of their own."""


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


class Sink(Protocol):
    """Where a body goes: the client's side of an exchange."""

    when_free: Callable[[], None] | None

    @property
    def blocked(self) -> bool:
        """Whether it should get no more for now; `when_free` is called once that is over."""
        ...

    def write(self, data: bytes) -> None:
        """Take a piece; never waits."""
        ...

    def flush(self) -> None:
        """Send what is held back for the first piece: it is not here yet."""
        ...


class Connection(asyncio.Protocol):
    """One connection, one request at a time: `request`, `head`, then `pump` or `read`."""

    def __init__(self, memory: Memory | None = None) -> None:
        """`memory`: of the engine's last head, shared by its connections."""
        self.transport: asyncio.Transport | None = None
        self._memory = memory or Memory()
        self._loop = asyncio.get_running_loop()
        self._parser: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._patience = 0.0
        """Seconds of silence after which whoever waits is told so."""
        self.lost = False
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: Headers = []
        """Those of an answer that was parsed."""
        self.lines = b""
        """Of an answer that was recognised, and is whole: what of its head goes on, as it goes out."""
        self.answered = False
        self.done = False
        self.reusable = False
        self._error: BaseException | None = None
        self._header_bytes = 0
        self._in_headers = True
        self._chunks: list[bytes] = []
        self._held = 0
        self._paused = False
        self._sink: Sink | None = None
        self._watcher: ChunkWatcher | None = None
        self._heard = 0.0
        self._unasked = False
        self._begins = False
        """Whether a request was sent and nothing has come yet."""

    # what the relay calls

    def request(self, head: bytes, body: bytes) -> None:
        """Send a request: its head up to and with the empty line, and its whole body."""
        self._reset()
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        if self.transport is None or self.lost:
            self._fail(UpstreamClosed("the connection was closed while idle"))
            return
        self._begins = True
        if len(body) < SMALL_BODY:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)

    async def head(self, seconds: float) -> None:
        """Wait until status and headers are there. Raises UpstreamClosed, UpstreamMalformed, UpstreamSilent."""
        while self._in_headers and self._error is None:
            await self._news(seconds)
        self._check()

    async def read(self, seconds: float, limit: int) -> bytes:
        """The whole body, at most `limit` bytes of it. Raises as `head`."""
        body = bytearray()
        while True:
            body += self.take()[: limit - len(body)]
            if self.done:
                return bytes(body)
            self._read_on()
            while not (self._chunks or self.done or self._error is not None):
                await self._news(seconds)
            self._check()

    def take(self) -> bytes:
        """What has come of the body and was not taken yet: all of it where the answer was recognised."""
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._held = 0
        return data

    async def pump(self, sink: Sink, stall_seconds: float, watcher: ChunkWatcher | None = None) -> bytes:
        """Forward the body as it comes until it is whole. Raises as `head`; what was written stays written.

        Returns the last piece of the body, which is not written: it goes out best with whatever ends the answer.
        """
        self._watcher = watcher
        if watcher is not None:
            # what came in one piece with the head
            self._chunks = [kept for chunk in self._chunks if (kept := watcher.feed(chunk))]
        if not self.done:
            self._sink = sink
            sink.when_free = self._read_on
            if self._chunks:
                self._flush()
            else:
                sink.flush()
            if not sink.blocked:
                self._read_on()
            try:
                while not self.done and self._error is None:
                    await self._news(stall_seconds)
                self._check()
            except asyncio.CancelledError:
                self.abort()
                raise
            finally:
                sink.when_free = None
        return self.take()

    def abort(self) -> None:
        """Close at once; the engine notices and gives up the request."""
        self._sink = None
        if self.transport is not None:
            self.transport.abort()

    # waiting

    def _news(self, seconds: float) -> "asyncio.Future[None]":
        """Done when something has come or gone wrong, which may not be what is waited for."""
        waiter = self._waiter = self._loop.create_future()
        self._heard = self._loop.time()
        self._patience = seconds
        self._watch_clock()
        return waiter

    def _check(self) -> None:
        if self._error is not None and not self.done:
            raise self._error

    def _watch_clock(self) -> None:
        """One lazy timer a connection, set anew only where it would come too late."""
        until = self._heard + self._patience
        if self._timer is not None:
            if self._timer_at <= until:
                return
            self._timer.cancel()
        self._timer_at = until
        self._timer = self._loop.call_at(until, self._tick)

    def _tick(self) -> None:
        """Look how long the silence really is, and sleep on if it was broken."""
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._sink is not None and self._sink.blocked:
            # it is the client that does not read; the engine is not to blame
            self._heard = self._loop.time()
        if self._heard + self._patience > self._loop.time():
            self._watch_clock()
        else:
            self._fail(UpstreamSilent(f"nothing came for {self._patience:g} s"))

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._wake()

    # asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream's transport, by construction

    def data_received(self, data: bytes) -> None:
        begins, self._begins = self._begins, False
        if begins and (known := self._memory.recall(data)) is not None:
            # a whole answer, which the parser needs not see
            self.lines, body = known
            self._chunks.append(body)
            self.status = OK
            self._in_headers = False
            self.done = self.reusable = True
            self._wake()
            return
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
        if self._in_headers:
            if self._header_bytes > HEADER_LIMIT:
                self._malformed(f"its header is over {HEADER_LIMIT} bytes")
            return
        if begins and self.reusable:
            self._memory.learn(data, self.status, self.headers)
        self._pass_on()

    def _pass_on(self) -> None:
        if self.done or self._sink is None:
            if self._held > READ_LIMIT and not self.done:
                self._pause()  # nobody takes it yet
            self._wake()  # the last piece is for whoever ends the answer
        elif self._chunks:
            self._flush()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
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

    def _pause(self) -> None:
        if self.transport is not None and not self._paused and not self.transport.is_closing():
            self.transport.pause_reading()
            self._paused = True

    def _read_on(self) -> None:
        if self._paused and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()
            self._paused = False
            self._heard = self._loop.time()

    def _flush(self) -> None:
        """Hand what has come to the client's side."""
        sink = self._sink
        if sink is not None:
            sink.write(self.take())
            if sink.blocked:
                self._pause()


async def connect(socket: str, seconds: float, memory: Memory | None = None) -> Connection:
    """A fresh connection to the engine that listens on this Unix socket. Raises OSError, TimeoutError.

    A link in the socket's place is refused. The folder is the engine's own: a link there could name another engine's
    socket, or the manager's, and the gateway may open those. What is opened here stays what it is until the connection
    is made, whatever the engine puts in its place meanwhile.
    """
    loop = asyncio.get_running_loop()
    held = os.open(socket, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        async with asyncio.timeout(seconds):
            _, connection = await loop.create_unix_connection(lambda: Connection(memory), f"/proc/self/fd/{held}")
    finally:
        os.close(held)
    return connection
