"""How each inference route speaks when it streams: its end marker and its error event. Pure."""

from typing import NamedTuple

import msgspec

from gateway.errors import GatewayError
from gateway.proxy.meter import BodyMeter, Usage


class Dialect(NamedTuple):
    """What a stream of one family of routes looks like."""

    name: str
    end: bytes
    """How a line of the last event of a whole stream begins, and no other line."""


OPENAI = Dialect("openai", b"data: [DONE]")
RESPONSES = Dialect("responses", b"event: response.completed")
ANTHROPIC = Dialect("anthropic", b"event: message_stop")

RESPONSES_ENDS = (b"event: response.completed", b"event: response.failed", b"event: response.incomplete")
OVERLAP = 64
"""Bytes kept from the chunk before: longer than any end marker, so one that was cut in two is still seen."""
DELTA = b"delta\n"
"""How the first line of an event with text ends, in the dialects whose events have names."""


EVENT_ENDS = (b"\n\n", b"\r\n\r\n")
HELD_LIMIT = 64 * 1024
"""Bytes of an event that is not whole that are held back at most."""


class StreamEnd:
    """Sees a stream of named events go by: whether it ended as a whole one does, and what it used.

    Chunks may be cut anywhere.
    """

    def __init__(self, dialect: Dialect) -> None:
        ends = RESPONSES_ENDS if dialect is RESPONSES else (dialect.end,)
        # only at the start of a line: a model may well say `data: [DONE]` in its text
        self._ends = tuple(b"\n" + end for end in ends)
        self._tail = b"\n"
        self._held = b""
        """The beginning of an event that is not whole."""
        self._meter = BodyMeter()
        self.seen = False
        self.counted = 0
        """About as many tokens as came."""

    def feed(self, chunk: bytes) -> bytes:
        """Look at the next bytes of the stream; whole events go on, for half of one would spoil an error event."""
        window = self._tail + chunk
        for end in self._ends:
            if end in window:
                self.seen = True
        self._tail = window[-OVERLAP:]
        self.counted += chunk.count(DELTA)
        self._meter.feed(chunk)
        if not self._held and chunk.endswith(EVENT_ENDS):
            return chunk
        data = self._held + chunk
        cut = max(data.rfind(end) + len(end) if end in data else 0 for end in EVENT_ENDS)
        if len(data) - cut > HELD_LIMIT:
            cut = len(data)
        self._held = data[cut:]
        return data[:cut]

    @property
    def usage(self) -> Usage | None:
        """What the engine told."""
        return self._meter.usage

    def rest(self) -> bytes:
        """What is still held back when the engine has ended its answer."""
        return self._held


def error_event(dialect: Dialect, error: GatewayError) -> bytes:
    """The bytes that end a broken stream so that the route's own clients raise, with our message."""
    detail: dict[str, object] = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    if dialect is ANTHROPIC:
        short = {"type": "error", "error": {"type": error.type, "message": error.message}}
        return b"event: error\ndata: " + msgspec.json.encode(short) + b"\n\n"
    if dialect is RESPONSES:
        body = {"type": "error", "code": error.code, "message": error.message, "param": error.param, "error": detail}
        return b"event: error\ndata: " + msgspec.json.encode(body) + b"\n\n"
    return b"data: " + msgspec.json.encode({"error": detail}) + b"\n\ndata: [DONE]\n\n"


def heartbeat(endpoint: str, eta_seconds: float | None) -> bytes:
    """An SSE comment: clients ignore it, proxies and people see that something happens."""
    eta = f", about {eta_seconds:.0f} s left" if eta_seconds is not None else ""
    return f": loading {endpoint}{eta}\n\n".encode()
