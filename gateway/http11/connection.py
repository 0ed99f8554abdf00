"""A client's connection on httptools: limits on a header's bytes and time, pipelining, keep-alive, drain.

uvicorn listens, handles signals and counts connections and tasks; this is its protocol. uvicorn's own costs as much for
one request as all the rest of the gateway, and would take a header of any size and wait for it for ever.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

import httptools
import structlog

from gateway.errors import BadRequest, GatewayError, InternalError, RequestTimeout
from gateway.http11.asgi import AsgiExchange
from gateway.http11.eager import begin
from gateway.http11.exchange import Exchange, header_too_large, last_words
from gateway.http11.familiar import Memory
from gateway.http11.phase import BODY, HEADER, NOTHING
from gateway.http11.reader import StalledReader
from gateway.http11.target import target_of

log = structlog.get_logger(__name__)

LINGER_SECONDS = 1.0
"""After a refusal: how long what the client still sends is read and thrown away."""
AHEAD_LIMIT = 64 * 1024
"""Bytes of further requests that are read while one is being answered; so a hang-up is noticed meanwhile."""

CLOSE = (b"connection", b"close")
FRAMING = frozenset({b"content-length", b"transfer-encoding"})

Handler = Callable[[Exchange], Coroutine[Any, Any, None]]
Direct = Callable[[str], Handler | None]
"""Path to the handler that takes its requests as exchanges; None: they go the way of ASGI."""


class ClientConnection(asyncio.Protocol):
    """One client connection; several requests on it are answered in their order."""

    header_bytes: ClassVar[int] = 64 * 1024
    header_seconds: ClassVar[float] = 10.0
    client_stall_seconds: ClassVar[float] = 300.0
    idle_seconds: ClassVar[float] = 75.0
    direct: ClassVar[Any]
    """The `Direct` of the application."""

    transport: asyncio.Transport

    def __init__(
        self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        if not config.loaded:
            config.load()
        self.loop = _loop or asyncio.get_event_loop()
        self.blocked = False
        self.stopping = False
        self._app = config.loaded_app
        self._server = server_state
        self._state = app_state
        self._parser: Any = self._new_parser()
        self._resumes = False
        """Whether the parser is told the head of a request that it knows already."""
        self._phase = HEADER
        self._tail = b""
        """The last bytes of a header that is not whole yet."""
        self._seen = 0
        """Bytes of the header that is being read."""
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._incoming: Exchange | None = None
        """The request that is being read."""
        self._current: Exchange | None = None
        """The request that is being answered."""
        self._waiting: deque[Exchange] = deque()
        self._memory = Memory()
        self._ahead = 0
        self._paused = False
        self._refusal: GatewayError | None = None
        """What ends the connection once everything before it has been answered."""
        self._lingers = False
        self._header_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._idle_since = 0.0

    # asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream's transport, by construction
        self._reader = StalledReader(self.transport, self.loop, self.client_stall_seconds)
        self._server.connections.add(self)
        self._header_timer = self.loop.call_later(self.header_seconds, self._header_is_late)

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or self._lingers:
            return
        if self._phase is not NOTHING or self._current is not None or self._waiting:
            self._take(data)
        elif (known := self._memory.recall(data, self)) is not None:
            if not known.whole:
                self._phase, self._incoming = BODY, known
            self._waiting.append(known)
            self._start_next()
        else:
            self._memory.begun = data
            self._take(data)
            if self._phase is BODY and self._incoming is not None:
                self._memory.learn(self._incoming)
            self._memory.begun = b""

    def _take(self, data: bytes) -> None:
        if self._memory.owed and not (data := self._take_owed(data)):
            return
        if self._phase is not BODY:
            self._seen += len(data)
            if self._seen > self.header_bytes and self._seen - self._after_header(data) > self.header_bytes:
                self._refuse(header_too_large(self.header_bytes))
                return
        self._feed(data)
        if self._waiting:
            if self._current is None:
                self._start_next()
            else:
                self._ahead += len(data)
                if self._ahead > AHEAD_LIMIT:
                    self._pause()
        if self._phase is HEADER:
            self._tail = data[-3:]
            if self._header_timer is None:
                self._header_timer = self.loop.call_later(self.header_seconds, self._header_is_late)
        elif self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _take_owed(self, data: bytes) -> bytes:
        """More of a body whose head was not parsed, so the parser gets none of it either; what follows on the body."""
        part = data[: self._memory.owed]
        self._memory.owed -= len(part)
        self.on_body(part)
        if not self._memory.owed:
            self._end_message()
        return data[len(part) :]

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        for timer in (self._header_timer, self._idle_timer):
            if timer is not None:
                timer.cancel()
        self._header_timer = self._idle_timer = None
        self._reader.stop()
        self.blocked = False
        self._waiting.clear()
        self._parser = self._incoming = None
        current, self._current = self._current, None
        if current is not None:
            current.lose()

    def pause_writing(self) -> None:
        self.blocked = True
        self._reader.begin()

    def resume_writing(self) -> None:
        self.blocked = False
        self._reader.stop()
        if self._current is not None and self._current.when_free is not None:
            self._current.when_free()

    # uvicorn calls

    def shutdown(self) -> None:
        """No further request on this connection: the server stops."""
        self.stopping = True
        if self._current is None:
            self.hang_up()

    # httptools calls

    def on_message_begin(self) -> None:
        if self._resumes:
            return
        self._phase = HEADER
        self._seen = self._seen or 1
        self._url = b""
        self._incoming = Exchange(self)
        self._headers = self._incoming.headers

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        exchange, parser = self._incoming, self._parser
        if self._resumes or exchange is None:
            self._resumes = False
            return
        self._phase = BODY
        self._headers = []  # trailers say nothing to us
        exchange.method = parser.get_method().decode("ascii")
        exchange.path, exchange.raw_path, exchange.query = target_of(self._url)
        exchange.old = parser.get_http_version() == "1.0"
        exchange.keep_alive = not exchange.old and parser.should_keep_alive()
        self._waiting.append(exchange)

    def on_body(self, body: bytes) -> None:
        if self._incoming is not None and not self._incoming.take_in(body):
            self._pause()

    def on_message_complete(self) -> None:
        if not self._parser.should_upgrade():
            self._end_message()

    def _end_message(self) -> None:
        self._phase = NOTHING
        self._seen, self._tail = 0, b""
        if self._incoming is not None:
            self._incoming.take_end()
            self._memory.learn(self._incoming)
            self._incoming = None

    # exchanges call

    def read_on(self) -> None:
        """Read again after a pause."""
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    def answered(self, exchange: Exchange) -> None:
        """Go on with the next request, or wait for one."""
        self._server.total_requests += 1
        if exchange is not self._current:  # the client has gone meanwhile
            return
        self._current = None
        if not exchange.keep_alive or self.stopping:
            self._close(whole=exchange.whole)
        elif self._waiting:
            self.loop.call_soon(self._start_next)  # from here, a thousand requests sent ahead would nest
        elif self._refusal is not None:
            self._tell(self._refusal)
        else:
            self._ahead = 0
            if self._paused:
                self.read_on()
            self._idle_since = self.loop.time()
            if self._idle_timer is None:
                self._idle_timer = self.loop.call_later(self.idle_seconds, self._look_whether_idle)

    # our own steps

    def hang_up(self) -> None:
        """Close once everything that was written has been sent."""
        self.transport.close()

    def _after_header(self, data: bytes) -> int:
        """Bytes of this piece that follow on the header's end, which may have been cut in two."""
        end = (self._tail + data).find(b"\r\n\r\n")
        return 0 if end < 0 else len(self._tail) + len(data) - end - 4

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                data = b""
            except httptools.HttpParserUpgrade as upgrade:
                data = self._not_upgraded(data[upgrade.args[0] :])
            except httptools.HttpParserError as problem:
                self._refuse(BadRequest(f"This is not an HTTP/1.1 request: {problem}"))
                return

    def _not_upgraded(self, rest: bytes) -> bytes:
        """No other protocol is spoken here: a request that asks for one (Java's client does) is one like all others.

        httptools takes what follows for the other protocol. A fresh parser takes it for the body, if it is given a head
        that says how long the body is; nobody hears of that head.
        """
        framing = [header for header in self._incoming.headers if header[0] in FRAMING] if self._incoming else []
        self._parser = self._new_parser()
        if not framing:
            self.on_message_complete()
            return rest
        self._resumes = True
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in framing)
        return b"POST / HTTP/1.1\r\n" + lines + b"\r\n" + rest

    def _new_parser(self) -> Any:
        parser = httptools.HttpRequestParser(self)
        # a request that follows on one with `Connection: close` is no error that would lose the first one's answer
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _pause(self) -> None:
        if not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def _start_next(self) -> None:
        if self._current is not None or not self._waiting:
            return
        self._current = exchange = self._waiting.popleft()
        handler: Handler | None = self.direct(exchange.path)
        task = begin(self._run_asgi(exchange) if handler is None else self._run_direct(exchange, handler), self.loop)
        if not task.done():
            exchange.task = task
            self._server.tasks.add(task)

    async def _run_direct(self, exchange: Exchange, handler: Handler) -> None:
        exchange.cancels = True
        try:
            await handler(exchange)
        finally:
            self._finish(exchange)

    async def _run_asgi(self, exchange: Exchange) -> None:
        view = AsgiExchange(exchange, self._state, self.transport)
        try:
            await self._app(view.scope, view.receive, view.send)
        except Exception:  # the root of a request's task
            log.exception("request failed", path=exchange.path)
        finally:
            self._finish(exchange)

    def _finish(self, exchange: Exchange) -> None:
        """The handler has returned: an answer that is not whole by now never will be."""
        self._server.tasks.discard(exchange.task)
        if exchange.ended or exchange.gone:
            return
        if exchange.started:
            self.hang_up()  # with a length or an end of chunks missing the client knows that this is not all
            return
        error = InternalError("The gateway failed on this request; its log has the cause")
        body = error.body()
        exchange.start(error.status, [*error.headers(), (b"content-length", b"%d" % len(body)), CLOSE])
        exchange.end(body)

    # refusals

    def _header_is_late(self) -> None:
        self._header_timer = None
        if self.transport.is_closing():
            return
        if self._current is not None:
            # it may be us who do not read, because requests sent ahead wait for their turn
            self._header_timer = self.loop.call_later(self.header_seconds, self._header_is_late)
            return
        if self._seen == 0:
            self.hang_up()  # a connection that never said a word needs no answer
            return
        self._refuse(
            RequestTimeout(f"The request's header was not complete within {self.header_seconds:g} s: send it whole")
        )

    def _refuse(self, error: GatewayError) -> None:
        """Read nothing more, and end the connection with this error once what came before is answered."""
        self._refusal = error
        broken, self._incoming = self._incoming, None
        if self._waiting and self._waiting[-1] is broken:
            self._waiting.pop()
        current = self._current
        if current is not None and current is broken:  # it is being handled, and its body will never be whole
            self._current = None
            current.lose()
            if current.started:
                self.transport.abort()
                return
        if self._current is None and not self._waiting:
            self._tell(error)

    def _tell(self, error: GatewayError) -> None:
        self.transport.write(last_words(error))
        self._close(whole=False)

    def _close(self, *, whole: bool) -> None:
        """Close; where the request has not been read whole, in a way that the answer survives.

        Closing with unread bytes would reset the connection: our side is ended, and the client ends its own.
        """
        if whole:
            self.hang_up()
            return
        self._lingers = True
        self.read_on()
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _look_whether_idle(self) -> None:
        """One lazy timer: it is not set anew for each request, but looks how long the silence really is."""
        self._idle_timer = None
        if self._current is not None or self.transport.is_closing():
            return
        left = self._idle_since + self.idle_seconds - self.loop.time()
        if self._phase is HEADER:
            left = self.header_seconds  # which has a timer of its own
        if left > 0:
            self._idle_timer = self.loop.call_later(left, self._look_whether_idle)
        else:
            self.hang_up()
