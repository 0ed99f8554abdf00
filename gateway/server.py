"""uvicorn as Hostler runs it: uvloop, httptools with limits on a header's bytes and time, one error shape, drain."""

import array
import asyncio
import fcntl
import signal
import sys
import termios
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import BadRequest, GatewayError, HeaderTooLarge, RequestTimeout
from gateway.proxy.call import request_id
from gateway.settings import Settings

LINGER_SECONDS = 1.0
"""After a refusal: how long what the client still sends is read and thrown away."""
REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class GuardedProtocol(HttpToolsProtocol):
    """One client connection. httptools itself would take a header of any size, and wait for it for ever."""

    header_kib = 64
    header_seconds = 10.0
    client_stall_seconds = 300.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline: asyncio.TimerHandle | None = None
        self._reader_watch: asyncio.TimerHandle | None = None
        self._refused = False
        self._await_header()

    def _await_header(self) -> None:
        self._header_bytes = 0
        self._header_tail = b""
        self._in_header = True
        self._between = False
        self._stop_clock()
        self._deadline = self.loop.call_later(self.header_seconds, self._header_is_late)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _header_is_late(self) -> None:
        if self.transport.is_closing():
            return
        if self._is_answering():
            # it may be us who do not read, because requests sent ahead wait for their turn
            self._deadline = self.loop.call_later(self.header_seconds, self._header_is_late)
            return
        if self._header_bytes == 0:
            self.transport.close()  # a connection that never said a word needs no answer
            return
        self._refuse(
            RequestTimeout(f"The request's header was not complete within {self.header_seconds:g} s: send it whole")
        )

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._between and data.strip(b"\r\n"):
            self._await_header()
        if not self._in_header:
            super().data_received(data)
            return
        # what follows the header's end is body, and that end may have been cut in two
        window = self._header_tail + data
        end = window.find(b"\r\n\r\n")
        own_bytes = len(data) if end < 0 else end + 4 - len(self._header_tail)
        self._header_bytes += own_bytes
        self._header_tail = window[-3:]
        if self._header_bytes > self.header_kib * 1024:
            self._refuse(
                HeaderTooLarge(
                    f"The request's header is larger than {self.header_kib} KiB (HOSTLER_MAX_HEADER_KIB): send less"
                )
            )
            return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._in_header:  # it came in one piece with the end of the request before: how much of it is not known
            self._await_header()
            self._header_bytes = 1

    def on_headers_complete(self) -> None:
        self._in_header = False
        self._stop_clock()
        super().on_headers_complete()
        self.headers = []  # what follows are trailers, which must not turn up among the request's headers later

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._between = True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._stop_watch()
        super().resume_writing()

    def _watch_reader(self) -> None:
        self._reader_watch = self.loop.call_later(self.client_stall_seconds, self._look_at_reader, self._untaken())

    def _untaken(self) -> int:
        """Bytes written to the client that it has not acknowledged: ours, and those that the kernel holds."""
        in_kernel = array.array("i", [0])
        fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, in_kernel)
        return self.transport.get_write_buffer_size() + in_kernel[0]

    def _look_at_reader(self, before: int) -> None:
        """A client that took nothing all the time would hold its worker for ever; a slow one may go on."""
        if self._untaken() >= before:
            self.transport.abort()
        else:
            self._watch_reader()

    def _stop_watch(self) -> None:
        if self._reader_watch is not None:
            self._reader_watch.cancel()
            self._reader_watch = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        self._stop_watch()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(BadRequest(f"This is not an HTTP/1.1 request: {msg}"))

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: GatewayError) -> None:
        self._refused = True
        self._stop_clock()
        if self._is_answering():
            # nothing may come into the middle of an answer that was asked for before; after it the connection ends
            self.cycle.keep_alive = False
            return
        body = error.body()
        headers = [*error.headers(), (b"content-length", b"%d" % len(body)), (b"x-request-id", request_id({}))]
        lines = [b"HTTP/1.1 %d %s" % (error.status, REASONS[error.status]), b"connection: close"]
        lines += [name + b": " + value for name, value in headers if name != b"connection"]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        # closing with unread bytes would reset the connection and lose the answer: end our side, let the client end its
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)


def guarded(settings: Settings) -> type[GuardedProtocol]:
    """The protocol with these limits."""
    limits = {
        "header_kib": settings.max_header_kib,
        "header_seconds": settings.header_seconds,
        "client_stall_seconds": settings.client_stall_seconds,
    }
    return type("LimitedProtocol", (GuardedProtocol,), limits)


def serve(app: Any, settings: Settings) -> None:
    """Run until SIGTERM or SIGINT: then no new connection, running requests up to the drain bound, and out.

    A stop that was asked for is no failure: the process then ends with status 0.
    """
    # uvicorn raises the signal again when it has finished, and ours is the handler it finds then
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=guarded(settings),
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=2048,
        timeout_keep_alive=round(settings.keep_alive_seconds),
        timeout_graceful_shutdown=round(settings.drain_seconds),
    )
    uvicorn.Server(config).run()
