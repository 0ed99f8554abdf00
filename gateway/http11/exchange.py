"""One request and its answer on a client's connection.

Writing never waits: what the client's socket does not take at once is kept, `blocked` says so, and `when_free` is
called when there is room again. Whoever forwards a body stops its source in between. The answer's head waits for the
first piece of the body, so that a short answer is one write.
"""

import asyncio
import io
import os
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol

from gateway.errors import BodyTooLarge, GatewayError, HeaderTooLarge, RequestTimeout

Headers = list[tuple[bytes, bytes]]
BODILESS = frozenset({204, 304})
UNREAD_LIMIT = 64 * 1024
"""Bytes of a request's body that are kept for a handler that does not ask for them."""
MIB = 1024 * 1024

_status_lines = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


def status_line(status: int) -> bytes:
    """The first line of an answer; engines may use a status nobody has named."""
    return _status_lines.get(status) or b"HTTP/1.1 %d \r\n" % status


def last_words(error: GatewayError) -> bytes:
    """The answer that ends a connection on which nobody knows where the next request would begin."""
    body = error.body()
    headers = [
        *error.headers(),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", os.urandom(16).hex().encode()),
    ]
    lines = [name + b": " + value + b"\r\n" for name, value in headers if name != b"connection"]
    return status_line(error.status) + b"connection: close\r\n" + b"".join(lines) + b"\r\n" + body


class Wire(Protocol):
    """The connection as an exchange sees it."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    blocked: bool
    stopping: bool

    def read_on(self) -> None:
        """Read again after a pause."""
        ...

    def answered(self, exchange: "Exchange") -> None:
        """The exchange has its whole answer."""
        ...


class Familiar(Protocol):
    """A head that has come before (`familiar.Head`), and has a body of a known length behind it: nothing else."""

    meaning: Any
    """What a handler has concluded from it: whoever has this head would conclude the same."""

    def headers(self, length: bytes) -> Headers:
        """The headers of a request whose body has this length."""
        ...


class Exchange:
    """A request, and the means to answer it. Header names are in lower case."""

    __slots__ = (
        "_chunked",
        "_head",
        "_headers",
        "_mute",
        "_parts",
        "_size",
        "_told",
        "_waiters",
        "_whole",
        "_wire",
        "cancels",
        "ended",
        "familiar",
        "gone",
        "keep_alive",
        "length",
        "method",
        "old",
        "path",
        "query",
        "raw_path",
        "started",
        "task",
        "when_free",
        "whole",
    )

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.method = ""
        self.path = ""
        self.raw_path = b""
        self.query = b""
        self.familiar: Familiar | None = None
        """The head, where it was not parsed again."""
        self._headers: Headers | None = None
        self.length = b""
        """How long the body is, in the words of a familiar head."""
        self.old = False
        """Whether it is HTTP/1.0: no chunks, and the connection ends with the answer."""
        self._told = False
        """Whether a client that waits for our word before it sends the body has been given it."""
        self.keep_alive = True
        self.whole = False
        """Whether the request's body has come whole."""
        self.started = False
        self.ended = False
        self.gone = False
        """Whether the client has hung up."""
        self.task: asyncio.Task[None] | None = None
        self.cancels = False
        """Whether its task is cancelled when the client hangs up before the answer is whole."""
        self.when_free: Callable[[], None] | None = None
        """Called when the client's socket takes bytes again."""
        self._parts: list[bytes] = []
        self._size = 0
        self._whole: io.BytesIO | None = None
        self._waiters: tuple[asyncio.Future[None], ...] = ()
        """An application may wait for the client to hang up while it waits for room in its socket."""
        self._head = b""
        self._chunked = False
        self._mute = False

    @property
    def headers(self) -> Headers:
        """Names and values in their order. Those of a familiar head are made only if somebody asks."""
        if self._headers is None:
            self._headers = [] if self.familiar is None else self.familiar.headers(self.length)
        return self._headers

    # the request's body

    def take_in(self, part: bytes) -> bool:
        """Keep a piece of the body. Returns whether reading should go on."""
        if self.ended:
            return True
        if self._whole is None:
            self._parts.append(part)
        else:
            self._whole.write(part)
        self._size += len(part)
        self.wake()
        return self._whole is not None or self._size <= UNREAD_LIMIT

    def take_end(self) -> None:
        """The body is whole."""
        self.whole = True
        if self._waiters:
            self.wake()

    async def body(self, limit: int, seconds: float) -> bytes:
        """The whole body. Raises BodyTooLarge before reading one that says so, RequestTimeout after such a silence."""
        if not self.whole:
            await self._rest(limit, seconds)
        if self._size > limit:
            raise too_large(limit)
        if self._whole is not None:
            return self._whole.getvalue()
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    async def _rest(self, limit: int, seconds: float) -> None:
        lengths = [value for name, value in self.headers if name == b"content-length" and value.isdigit()]
        if lengths and int(lengths[0]) > limit:
            raise too_large(limit)
        # grows in place and gives its bytes away without a copy: a list of pieces would cost a large body twice
        self._whole = io.BytesIO()
        self._whole.write(b"".join(self._parts))
        self._parts.clear()
        while not self.whole and self._size <= limit:
            try:
                async with asyncio.timeout(seconds):
                    await self.news()
            except TimeoutError:
                raise RequestTimeout(f"The request's body stopped coming for {seconds:g} s: send it whole") from None

    async def piece(self) -> bytes:
        """What has come of the body since the last time; waits for something, or for the end."""
        if not self._parts and not self.whole:
            await self.news()
        data = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return data

    async def news(self) -> None:
        """Wait until more of the body has come, its end, the end of the client, or room in its socket."""
        if not self.started and not self.gone and self._expects():
            self._told = True
            self._wire.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._wire.read_on()
        waiter = self._wire.loop.create_future()
        self._waiters += (waiter,)
        try:
            await waiter
        finally:
            self._waiters = tuple(other for other in self._waiters if other is not waiter)

    def _expects(self) -> bool:
        if self.familiar is not None:
            return False
        return not (self.whole or self._told) and (b"expect", b"100-continue") in [
            (name, value.lower()) for name, value in self.headers
        ]

    def wake(self) -> None:
        """Tell all who wait in `news`."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def lose(self) -> None:
        """The client has hung up."""
        self.gone = True
        self.wake()
        if self.cancels and self.task is not None and not self.ended:
            self.task.cancel()

    # the answer

    @property
    def peer(self) -> str | None:
        """The address at the connection's other end; None where it is gone already or has none."""
        address = self._wire.transport.get_extra_info("peername")
        return str(address[0]) if isinstance(address, tuple) else None

    @property
    def blocked(self) -> bool:
        """Whether the client's socket is full: better to write no more for now."""
        return self._wire.blocked

    def start(self, status: int, headers: Headers, lines: bytes = b"", *, sized: bool = False) -> None:
        """Set status and headers; they go out with the first piece of the body, or with `flush`.

        `lines`: further headers as they go out, each with its line's end; `sized`: one of them says how long the body
        is, else none does.
        """
        self.started = True
        self._mute = status in BODILESS or self.method == "HEAD"
        chunked = not (sized or self._mute or self.old)
        if self._wire.stopping or (
            not self.whole and self._expects()
        ):  # whether the client sends its body now is anybody's guess
            self.keep_alive = False
        said = False
        parts = [status_line(status)]
        for name, value in headers:
            if name == b"content-length":
                chunked = False
            elif name == b"connection":
                said = b"close" in value.lower()
                self.keep_alive = self.keep_alive and not said
            elif name == b"transfer-encoding":
                continue
            parts.append(b"%b: %b\r\n" % (name, value))
        parts.append(lines)
        if not self.keep_alive and not said:
            parts.append(b"connection: close\r\n")
        parts.append(b"transfer-encoding: chunked\r\n\r\n" if chunked else b"\r\n")
        self._chunked = chunked
        self._head = b"".join(parts)

    def write(self, data: bytes) -> None:
        """Send a piece of the body."""
        if self.gone or self.ended:
            return
        if self._chunked and data:
            data = b"%b%x\r\n%b\r\n" % (self._head, len(data), data)
        elif self._mute:
            data = self._head
        elif self._head:
            data = self._head + data
        self._head = b""
        if data:
            self._wire.transport.write(data)

    def flush(self) -> None:
        """Send the head now if it still waits."""
        if self._head:
            self.write(b"")

    def end(self, data: bytes = b"") -> None:
        """Send the last piece of the body."""
        if self.ended:
            return
        if self._chunked and not self.gone:
            last = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
            self._wire.transport.write(self._head + last)
        else:
            self.write(data)
        self._head = b""
        self.ended = True
        self.when_free = None
        self._parts.clear()
        self._whole = None
        self._wire.answered(self)


def too_large(limit: int) -> BodyTooLarge:
    """The refusal of a body over so many bytes."""
    return BodyTooLarge(
        f"The body is larger than {limit // MIB} MiB (HOSTLER_MAX_BODY_MIB): send less, or ask the operator to raise it"
    )


def header_too_large(limit: int) -> HeaderTooLarge:
    """The refusal of a header over so many bytes."""
    return HeaderTooLarge(
        f"The request's header is larger than {limit // 1024} KiB (HOSTLER_MAX_HEADER_KIB): send less"
    )
