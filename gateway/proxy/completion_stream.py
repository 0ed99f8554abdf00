"""A stream of completions on its way to the client: whether it ended, what it used, and no event that only we wanted.

Engines write one event a chunk, so nearly every chunk is one whole event with choices: three looks at its bytes tell
that, and it goes on as it is. Chunks of several events are looked at once more; any other is taken apart. Half an event
waits for its other half: nobody can read it before, it may become the usage event, and if the engine dies the error
event needs a line of its own.
"""

import re

import msgspec

from gateway.proxy.meter import Usage

DONE = b"data: [DONE]"
EMPTY = b'"choices":[]'
"""How the usage event differs from all others, as engines write it: without spaces."""
CHOICE = b'"choices":[{'
ENDS = (b"\n\n", b"\r\n\r\n")
END = re.compile(rb"\r?\n\r?\n")
END_BYTES = 4
DATA = re.compile(rb"^data: ?(.*?)\r?$", re.MULTILINE)
HELD_LIMIT = 16 * 1024
"""Bytes of half an event that are held back at most. Usage events have less than 1 KiB."""


class _Event(msgspec.Struct, frozen=True):
    choices: list[msgspec.Raw]
    usage: Usage | None = None


_decode = msgspec.json.Decoder(_Event).decode


class CompletionStream:
    """Sees a stream go by; chunks may be cut anywhere. `hides_usage`: the client did not ask for the usage event."""

    def __init__(self, *, hides_usage: bool) -> None:
        self._hides_usage = hides_usage
        self._held = b""
        """The beginning of an event."""
        self._sent = b""
        """The last bytes that were let go of an event too large to wait for."""
        self.seen = False
        """Whether it ended as a whole one does."""
        self.usage: Usage | None = None
        self.counted = 0
        """About as many tokens as came: one an event. For streams that break off before they tell their usage."""

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes of the stream; what of them goes to the client."""
        if not self._held and not self._sent:
            # one whole event that has choices is neither the usage event nor the end marker
            if chunk.find(b"\n") == len(chunk) - 2 and chunk.endswith(ENDS) and CHOICE in chunk:
                self.counted += 1
                return chunk
            if chunk.endswith(ENDS) and EMPTY not in chunk and DONE not in chunk:
                self.counted += chunk.count(CHOICE)
                return chunk
        if not self._sent:
            return self._whole_events(self._held + chunk)
        window = self._sent + chunk
        end = END.search(window)
        if end is None:
            self._sent = window[-END_BYTES + 1 :]
            return chunk
        cut = end.end() - len(self._sent)
        self._sent = b""
        return chunk[:cut] + self._whole_events(chunk[cut:])

    def rest(self) -> bytes:
        """What is still held back when the engine has ended its answer."""
        held, self._held = self._held, b""
        return b"" if held and self._is_hidden(held) else held

    def _whole_events(self, data: bytes) -> bytes:
        out: list[bytes] = []
        start = 0
        for end in END.finditer(data):
            event = data[start : end.end()]
            start = end.end()
            if not self._is_hidden(event):
                out.append(event)
        part = data[start:]
        if len(part) > HELD_LIMIT:
            self.counted += part.count(CHOICE)
            self._held, self._sent = b"", part[-END_BYTES + 1 :]
            out.append(part)
        else:
            self._held = part
        return b"".join(out)

    def _is_hidden(self, event: bytes) -> bool:
        self.counted += event.count(CHOICE)
        if DONE in event and b"\n" + DONE in b"\n" + event:
            self.seen = True
        if EMPTY not in event:
            return False
        try:
            read = _decode(b"\n".join(DATA.findall(event)))
        except msgspec.DecodeError:
            return False
        if read.usage is None or read.choices:
            return False
        self.usage = read.usage
        return self._hides_usage
