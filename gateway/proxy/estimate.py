"""What a request may take in tokens, guessed before an engine has seen it; only for requests that are limited. Pure."""

import re
from typing import Annotated

import msgspec

from gateway.prices import Price
from gateway.proxy.meter import BYTES_A_TOKEN
from gateway.proxy.peek import ABSENT, is_form
from gateway.types import Estimate

OUTPUT_TOKENS = 1024
"""Of an answer where the request does not say how long it may be."""
MEDIA_TOKENS = 1024
"""Of an image or a sound in the prompt: engines make some hundreds to some thousands of one."""
MEDIA_BYTES = 4096
"""Of a part of the prompt, from which on media is looked for."""
MEDIA = re.compile(rb'"(?:data:[^"]*|[A-Za-z0-9+/_=-]{4096,})"')
GENERATING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
"""Routes that answer with text of a model."""
MOST = 2**40
"""Whatever a request asks for, sums of it fit into the database."""


Count = Annotated[int, msgspec.Meta(ge=1, le=MOST)]


class _Asked(msgspec.Struct, frozen=True):
    """Fields of every dialect; a Raw is a view into the body."""

    instructions: msgspec.Raw = ABSENT
    system: msgspec.Raw = ABSENT
    messages: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT
    input: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    max_tokens: msgspec.Raw = ABSENT
    max_completion_tokens: msgspec.Raw = ABSENT
    max_output_tokens: msgspec.Raw = ABSENT
    n: msgspec.Raw = ABSENT


_decode = msgspec.json.Decoder(_Asked).decode
_count = msgspec.json.Decoder(Count).decode


def estimate(path: str, body: bytes, content_type: bytes, price: Price | None = None) -> Estimate:
    """The prompt's bytes by BYTES_A_TOKEN, and `n` times the most it asks for. The body was read before."""
    if is_form(content_type):  # speech: engines tell no tokens of it
        return Estimate(0, 0)
    asked = _decode(body)
    prompt = _prompt_tokens(asked)
    if path not in GENERATING:
        return Estimate(prompt, prompt, prompt, price)
    count = _number(asked.n) or 1
    most = _number(asked.max_completion_tokens) or _number(asked.max_output_tokens) or _number(asked.max_tokens)
    if most is not None:
        asks = min(MOST, prompt + count * most)
        return Estimate(asks, asks, prompt, price)
    return Estimate(prompt, min(MOST, prompt + count * OUTPUT_TOKENS), prompt, price)


def _prompt_tokens(asked: _Asked) -> int:
    size = media = 0
    for raw in (asked.instructions, asked.system, asked.messages, asked.prompt, asked.input, asked.tools):
        if raw is ABSENT:
            continue
        view = memoryview(raw)
        length = len(view)
        size += length
        if length > MEDIA_BYTES:
            for found in MEDIA.finditer(view):
                size -= found.end() - found.start()
                media += MEDIA_TOKENS
    return -(-size // BYTES_A_TOKEN) + media


def _number(raw: msgspec.Raw) -> int | None:
    """A positive whole number; None for anything else, which is the engine's to refuse."""
    if raw is ABSENT:
        return None
    try:
        return _count(raw)
    except msgspec.DecodeError:
        return None
