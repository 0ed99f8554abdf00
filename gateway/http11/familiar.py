"""A head that this connection has sent before: clients repeat theirs byte for byte, but for the body's length.

What was parsed once need not be parsed again. Only a head that has come in one piece, with nothing behind it but all or
some of its body, is compared with one that did so too: many clients (Python's) send the body in a piece of its own. The
parser sees nothing of requests that are recognised, and stands at a message's begin all the while.
"""

import re
from typing import Any

from gateway.http11.exchange import Exchange, Headers, Wire

LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)\r\n", re.IGNORECASE)
LENGTH_SAID = re.compile(rb"[1-9][0-9]{0,14}")
"""As all clients write it; what is written otherwise is the parser's to judge."""
END = b"\r\n\r\n"
HEAD_LIMIT = 8 * 1024
"""Bytes of a head that is kept."""
MORE = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"http2-settings", b"trailer", b"te"})
"""Headers that make more of a request than a head and a body."""
TRIES = 4
"""Heads that are kept in vain before no more are: this client has another one each time."""


class Head:
    """A head on both sides of the body's length, and what it says."""

    __slots__ = ("_headers", "_length_at", "after", "before", "meaning", "said")

    def __init__(self, before: bytes, after: bytes, exchange: Exchange, length_at: int) -> None:
        """`length_at`: where the length stands among the headers."""
        self.before = before
        self.after = after
        self.said = exchange.method, exchange.path, exchange.raw_path, exchange.query
        self.meaning: Any = None
        """What a handler has concluded from it: whoever has this head would conclude the same."""
        self._headers = exchange.headers
        self._length_at = length_at

    def headers(self, length: bytes) -> Headers:
        """The headers of a request whose body has this length."""
        headers = [*self._headers]
        headers[self._length_at] = (b"content-length", length)
        return headers


class Memory:
    """The last head of one connection."""

    __slots__ = ("_head", "_tries", "begun", "owed")

    def __init__(self) -> None:
        self.begun = b""
        """What is being read that began with a request, and may be that request and nothing else."""
        self.owed = 0
        """Bytes of the body of the request that was recognised last that are still to come."""
        self._head: Head | None = None
        self._tries = TRIES

    def recall(self, data: bytes, wire: Wire) -> Exchange | None:
        """The request that these bytes are or begin, and nothing else, if its head is the one that is kept."""
        head = self._head
        if head is None or not data.startswith(head.before):
            return None
        begin = len(head.before)
        end = data.find(b"\r\n", begin)
        body = data[end + len(head.after) :]
        length = data[begin:end]
        if not data.startswith(head.after, end):
            return None
        if length != b"%d" % len(body) or not body:
            owed = int(length) - len(body) if LENGTH_SAID.fullmatch(length) else 0
            if owed <= 0:
                return None
            self.owed = owed
        exchange = Exchange(wire)
        exchange.method, exchange.path, exchange.raw_path, exchange.query = head.said
        exchange.familiar = head
        exchange.length = length
        if body:
            exchange.take_in(body)
        exchange.whole = not self.owed
        self._tries = TRIES
        return exchange

    def learn(self, exchange: Exchange) -> None:
        """Keep the head of a request that has come alone, with all or some of its body, unless it is a rare one."""
        if self.begun and self._tries:
            self._tries -= 1
            self._head = head_of(self.begun, exchange) if self._tries else None


def head_of(data: bytes, exchange: Exchange) -> Head | None:
    """How to recognise this head; None where there is more to such requests than a head and a body."""
    end = data.find(END, 0, HEAD_LIMIT)
    if end < 0 or exchange.old or not exchange.keep_alive:
        return None
    end += len(END)
    names = [name for name, _ in exchange.headers]
    lengths = [*LENGTH.finditer(data, 0, end)]
    if len(lengths) != 1 or names.count(b"content-length") != 1 or not MORE.isdisjoint(names):
        return None
    begin, behind = lengths[0].span(1)
    at = names.index(b"content-length")
    if exchange.headers[at][1] != data[begin:behind] or int(data[begin:behind][:10]) < len(data) - end:
        return None
    return Head(data[:begin], data[behind:end], exchange, at)
