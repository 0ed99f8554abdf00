"""A head that this engine has sent before: engines repeat theirs byte for byte, but for the body's length and the date.

What was parsed once need not be parsed again, and what of it goes on to clients is rendered already. Only an answer
that has come whole in one piece is compared with one that did so too. The date is compared like all the rest: with each
new second one answer is parsed. The parser sees nothing of those that are recognised, and stands at a message's begin
all the while. Pure.
"""

import re
from typing import NamedTuple

OK = 200
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)\r\n", re.IGNORECASE)
END = b"\r\n\r\n"
HEAD_LIMIT = 8 * 1024
"""Bytes of a head that is kept."""
LONGEST_PAUSE = 256
"""Heads that go by until another one is kept, at most: an engine that has a new one each time pays next to nothing."""
DROPPED = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"server", b"date", b"upgrade", b"trailer"})
"""Response headers that belong to the connection behind us."""

Headers = list[tuple[bytes, bytes]]


class Repeated(NamedTuple):
    """A head on both sides of the body's length, and what of it goes on, on both sides of the same."""

    before: bytes
    after: bytes
    first: bytes
    last: bytes


class Memory:
    """The last head of one engine; its connections share it."""

    __slots__ = ("_head", "_pause", "_unlike")

    def __init__(self) -> None:
        self._head: Repeated | None = None
        self._pause = 1
        self._unlike = 0
        """Answers since the last one that was kept."""

    def recall(self, data: bytes) -> tuple[bytes, bytes] | None:
        """What these bytes are if they are a whole answer, and nothing else, with the head that is kept.

        That is: what of its head goes on, each header with its line's end, one of them the body's length; and the body.
        """
        if self._head is None:
            return None
        before, after, first, last = self._head
        if not data.startswith(before):
            return None
        begin = len(before)
        end = data.find(b"\r", begin)
        length = data[begin:end]
        body_at = end + len(after)
        if not data.startswith(after, end) or length != b"%d" % (len(data) - body_at):
            return None
        self._pause = 1
        return first + length + last, data[body_at:]

    def learn(self, data: bytes, status: int, headers: Headers) -> None:
        """Keep the head of an answer that has come whole and alone, unless it is a rare one.

        After each that was kept in vain twice as many go by before the next.
        """
        if status != OK:
            return
        self._unlike += 1
        if self._unlike >= self._pause:
            self._unlike = 0
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._head = repeated(data, headers)


def repeated(data: bytes, headers: Headers) -> Repeated | None:
    """How to recognise the head of this answer; None where there is more to such answers than a head and a body."""
    end = data.find(END, 0, HEAD_LIMIT) + len(END)
    lengths = [*LENGTH.finditer(data, 0, max(0, end))]
    if end < len(END) or len(lengths) != 1:
        return None
    begin, behind = lengths[0].span(1)
    said = [value for name, value in headers if name == b"content-length"]
    are_events, headers = forwarded(headers)
    # so it is no head before the answer's (100 Continue), for then more would follow than the body
    if said != [data[begin:behind]] or said != [b"%d" % (len(data) - end)] or are_events:
        return None
    lines = [b"%b: %b\r\n" % header for header in headers]
    at = lines.index(b"content-length: %b\r\n" % said[0])
    first = b"".join(lines[:at]) + b"content-length: "
    return Repeated(data[:begin], data[behind:end], first, b"\r\n" + b"".join(lines[at + 1 :]))


def forwarded(headers: Headers) -> tuple[bool, Headers]:
    """Whether an answer with these headers is a stream of events, and which of them go on to the client."""
    are_events, kept = False, []
    for header in headers:
        name = header[0]
        if name == b"content-type":
            are_events = b"text/event-stream" in header[1]
        if name not in DROPPED:
            kept.append(header)
    return are_events, kept
