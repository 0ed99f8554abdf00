"""HTTP/1.1 on a raw asyncio protocol: requests parsed by httptools, answers written as ready-made bytes."""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol, cast

import httptools

JSON_TYPE = b"application/json"
_HEAD = b"HTTP/1.1 %d %s\r\nserver: uvicorn\r\ncontent-type: %s\r\ncontent-length: %d\r\n%s\r\n"
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n%s\r\n"
)
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


@dataclass(slots=True)
class Request:
    """One request, read whole; header names are lower case."""

    method: str
    path: str
    query: str
    headers: dict[bytes, bytes]
    body: bytes


class Owner(Protocol):
    """Whoever is making the answer of a connection."""

    def client_gone(self) -> None:
        """Stop: the client has closed the connection before the answer was complete."""
        ...


class Connection(asyncio.Protocol):
    """One client connection; answers one request at a time, in order."""

    def __init__(self, handle: Callable[["Connection", Request], None], peers: set["Connection"], idle: float) -> None:
        self._handle = handle
        self._peers = peers
        self._idle_seconds = idle
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._queue: deque[tuple[Request, bool]] = deque()
        self._keep_alive = True
        self._active_at = 0.0
        self.busy = False
        self.congested = False
        self.owner: Owner | None = None
        self.closing = False

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._peers.add(self)
        self._active_at = time.monotonic()
        asyncio.get_running_loop().call_later(self._idle_seconds, self._close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - however it was lost
        self._peers.discard(self)
        self._queue.clear()
        if self.owner is not None:
            self.owner.client_gone()
            self.owner = None
        self.busy = False

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.write(
                b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\nInvalid HTTP request received."
            )
            self._transport.close()

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False

    # what httptools calls

    def on_message_begin(self) -> None:
        self._headers, self._body = {}, []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self._headers[name] = value
        if name == b"expect" and value.lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        path, _, query = self._url.decode("latin-1").partition("?")
        self._url = b""
        method = self._parser.get_method().decode()
        request = Request(method, path, query, self._headers, b"".join(self._body))
        keep_alive = self._parser.should_keep_alive()
        if self.busy:
            self._queue.append((request, keep_alive))
        else:
            self._start(request, keep_alive=keep_alive)

    # what the engine calls

    def answer(self, body: bytes, status: int = 200, content_type: bytes = JSON_TYPE) -> None:
        """Answer whole."""
        extra = b"" if self._keep_alive else b"connection: close\r\n"
        reason = _REASONS.get(status, b"Unknown")
        self._transport.write(_HEAD % (status, reason, content_type, len(body), extra) + body)
        self._finished()

    def answer_json(self, value: Any, status: int = 200) -> None:
        """Answer whole, with what `value` is as JSON."""
        self.answer(json.dumps(value, separators=(",", ":")).encode(), status)

    def begin_stream(self) -> None:
        """Send the head of an event stream."""
        self._transport.write(_STREAM_HEAD % (b"" if self._keep_alive else b"connection: close\r\n"))

    def send(self, events: bytes) -> None:
        """Send some events of the stream as one chunk."""
        self._transport.write(b"%x\r\n%s\r\n" % (len(events), events))

    def end_stream(self, events: bytes = b"") -> None:
        """Send the last events and end the stream cleanly."""
        last = b"%x\r\n%s\r\n" % (len(events), events) if events else b""
        self._transport.write(last + b"0\r\n\r\n")
        self._finished()

    def send_raw(self, data: bytes) -> None:
        """Send bytes that need not be HTTP."""
        self._transport.write(data)

    def cut(self) -> None:
        """Close in the middle of the answer, after what was written."""
        self.owner = None
        self.closing = True
        self._transport.close()

    def drain(self) -> None:
        """Close as soon as nothing is being answered."""
        self.closing = True
        if not self.busy:
            self._transport.close()

    # private

    def _start(self, request: Request, *, keep_alive: bool) -> None:
        self.busy, self._keep_alive = True, keep_alive and not self.closing
        self._handle(self, request)

    def _finished(self) -> None:
        self.owner = None
        self.busy = False
        self._active_at = time.monotonic()
        if not self._keep_alive or self.closing:
            self._transport.close()
        elif self._queue:
            request, keep_alive = self._queue.popleft()
            self._start(request, keep_alive=keep_alive)

    def _close_if_idle(self) -> None:
        if self._transport.is_closing():
            return
        left = self._active_at + self._idle_seconds - time.monotonic()
        if not self.busy and left <= 0:
            self._transport.close()
        else:
            asyncio.get_running_loop().call_later(max(left, 0.05), self._close_if_idle)
