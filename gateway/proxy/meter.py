"""What a request took, read out of the engine's answer on its way through. Pure.

Engines tell it in one small object named `usage`, at the end of an answer. Text that a model writes stands in JSON
strings, where quotes are escaped: no prompt can make an answer contain that name by itself.
"""

import re
from typing import Annotated, Protocol

import msgspec

MARK = b'"usage":'
OBJECT = re.compile(rb"\s*(\{[^{}]*+(?:\{[^{}]*+\}[^{}]*+)*+\})")
CAPTURED = 4096
"""Bytes that are kept from the mark on; usage objects have less than 500."""
BYTES_A_TOKEN = 4
"""Of a prompt, for an estimate where the engine never told: about what tokenizers make of English."""


class Tokens(msgspec.Struct, frozen=True):
    """What a request took, in tokens."""

    prompt: int = 0
    """Cached ones included."""
    generated: int = 0
    cached: int = 0
    estimated: bool = False
    """The engine did not come to tell: its events were counted, and the prompt's bytes."""


Count = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
"""Whatever an engine says, sums of it fit into the database."""


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: Count | None = None


class Usage(msgspec.Struct, frozen=True):
    """The object `usage` of every dialect: completions, embeddings and the like; responses; messages."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: Count | None = None
    """Messages count these and the next ones beside `input_tokens`, the other dialects among them."""
    cache_creation_input_tokens: Count | None = None

    def tokens(self) -> Tokens:
        """The same in one form."""
        details = self.prompt_tokens_details or self.input_tokens_details
        read = self.cache_read_input_tokens or 0
        return Tokens(
            prompt=(self.prompt_tokens or self.input_tokens or 0) + read + (self.cache_creation_input_tokens or 0),
            generated=self.completion_tokens or self.output_tokens or 0,
            cached=(details.cached_tokens or 0) if details is not None else read,
        )


_decode = msgspec.json.Decoder(Usage).decode


class Meter(Protocol):
    """Has seen an answer go by."""

    @property
    def usage(self) -> Usage | None:
        """What the engine told."""
        ...

    @property
    def counted(self) -> int:
        """About how many tokens came, if the engine has not told."""
        ...


def tokens(meter: Meter | None, prompt_bytes: int) -> Tokens:
    """What a request took; an estimate for a stream that did not get as far as telling it all."""
    if meter is None:
        return Tokens()
    usage = meter.usage
    told = usage.tokens() if usage is not None else Tokens()
    if told.generated or not meter.counted:
        return told
    prompt = told.prompt or -(-prompt_bytes // BYTES_A_TOKEN)
    return Tokens(prompt, meter.counted, told.cached, estimated=True)


class BodyMeter:
    """Finds the last usage object of an answer that comes in any pieces."""

    counted = 0

    def __init__(self) -> None:
        self._edge = b""
        self._found: bytes | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Look at the next bytes; all of them go on."""
        window = self._edge + chunk
        at = window.rfind(MARK)
        if at >= 0:
            self._found = window[at + len(MARK) : at + CAPTURED]
        elif self._found is not None and len(self._found) < CAPTURED:
            self._found += chunk[:CAPTURED]
        self._edge = window[-len(MARK) + 1 :]
        return chunk

    @property
    def usage(self) -> Usage | None:
        """What the engine told; None where it did not, or not in a form we know."""
        found = usage_object(self._found) if self._found is not None else None
        try:
            return _decode(found) if found is not None else None
        except msgspec.DecodeError:
            return None


def usage_object(found: bytes) -> bytes | None:
    """The object that this begins with, if it is whole."""
    end = found.find(b"}") + 1
    if end and found.startswith(b"{") and found.rfind(b"{", 1, end) < 0:  # nothing nested: OBJECT would match the same
        return found[:end]
    match = OBJECT.match(found)
    return match[1] if match is not None else None
