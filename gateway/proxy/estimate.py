"""What a request may take in tokens, guessed before an engine has seen it; only for requests that are limited. Pure."""

import re
from collections.abc import Iterable
from operator import attrgetter
from typing import Annotated

import msgspec

from gateway.errors import BadRequest
from gateway.prices import Price
from gateway.proxy.bulk import LARGE, outside_texts, unescaped
from gateway.proxy.meter import BYTES_A_TOKEN
from gateway.proxy.peek import ABSENT, Fields, Peek
from gateway.types import Estimate

OUTPUT_TOKENS = 1024
"""Of an answer where the request does not say how long it may be."""
LONG_TOKENS = 16_384
"""Of an answer that hardly one is longer than."""
DENSE = 2
"""So many times what is guessed a prompt may have, as other languages and code do, and TEMPLATE_TOKENS beside."""
TEMPLATE_TOKENS = 64
MEDIA_TOKENS = 1024
"""Of an image or a sound in the prompt: engines make some hundreds to some thousands of one."""
MEDIA_BYTES = 4096
"""Of a part of the prompt, from which on media is looked for."""
MEDIA = re.compile(rb'"(?:data:[^"]*|[A-Za-z0-9+/_=-]{4096,})"')
ANSWERS: dict[str, tuple[str, ...]] = {
    "/v1/chat/completions": ("max_completion_tokens", "max_tokens"),
    "/v1/completions": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
    "/v1/messages": ("max_tokens",),
}
"""Routes that answer with text of a model, and what bounds its length there; elsewhere such a field means nothing."""
SHORT_TOKENS = 16
"""Of a completion that does not say how long it may be: vLLM's default for that route."""
STARTS = b'"{'
CHAT = b"[{"
"""How messages begin."""
FIRST = re.compile(rb'\[\s*["\[{]')
"""How a list begins whose entries are texts, lists or objects; tokens are numbers."""
ARRAY = ord("[")
OPENING = (b"[", b"{")
BRACKETS = re.compile(rb"([\[{\]}])")
MOST = 2**40
"""Whatever a request asks for, sums of it fit into the database."""


Count = Annotated[int, msgspec.Meta(ge=1, le=MOST)]


_prompt = attrgetter("instructions", "system", "messages", "prompt", "input")
_texts = attrgetter("documents", "data_2", "items", "text_2")
"""With each of these texts something is compared,"""
_repeated = attrgetter("query", "queries", "text_1", "data_1")
"""namely one of these."""
NONE = (ABSENT,) * 4

_count = msgspec.json.Decoder(Count).decode
_text = msgspec.json.Decoder(str | float).decode
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def estimate(path: str, read: Peek, price: Price | None = None) -> Estimate:
    """The prompt's bytes by BYTES_A_TOKEN, and the most it asks for, as often as it asks, of a body as it was read.

    Raises BadRequest for an answer that would be generated after the request has ended, where nothing counts it.
    """
    if read.is_form:  # speech: engines tell no tokens of it
        return Estimate(0, 0)
    asked, text = read.fields, read.prefix
    if len(text) <= MEDIA_BYTES and text.startswith(CHAT) and _has_only_messages(asked):
        prompt = -(-len(text) // BYTES_A_TOKEN)  # as `_prompt_tokens` counts the messages, which are all of the prefix
    else:
        prompt = _prompt_tokens(asked)
    bounds = ANSWERS.get(path)
    dense = DENSE * prompt + TEMPLATE_TOKENS
    if bounds is None:
        return Estimate(prompt, prompt, prompt, price, min(MOST, dense))
    if path == "/v1/responses" and bytes(asked.background) == b"true":
        raise BadRequest(
            "'background' is not taken from keys and for endpoints that have limits: what is generated behind a "
            "request's back can't be counted. Send it with a key without limits, or without 'background'",
            param="background",
        )
    count = 1
    if asked.n is not ABSENT or asked.best_of is not ABSENT:
        count = max(_number(asked.n) or 1, _number(asked.best_of) or 1)
    most = _most(asked, bounds)
    if path == "/v1/completions":
        count *= _how_many(asked.prompt)
        if asked.max_tokens is ABSENT:
            most = SHORT_TOKENS
    if most is not None:
        asks = min(MOST, prompt + count * most)
        return Estimate(asks, asks, prompt, price, min(MOST, dense + count * most))
    likely, longest = min(MOST, prompt + count * OUTPUT_TOKENS), min(MOST, dense + count * LONG_TOKENS)
    return Estimate(prompt, likely, prompt, price, longest)


def _most(asked: Fields, bounds: Iterable[str]) -> int | None:
    """The first of these fields that holds a number."""
    for name in bounds:
        bound = getattr(asked, name)
        if bound is not ABSENT and (most := _number(bound)) is not None:
            return most
    return None


def _has_only_messages(asked: Fields) -> bool:
    """Whether nothing else is there that counts as a prompt: so it is with nearly all chats."""
    return (
        asked.tools is asked.instructions is asked.system is asked.prompt is asked.input is ABSENT
        and asked.documents is asked.data_2 is asked.items is asked.text_2 is ABSENT
        and asked.query is asked.queries is asked.text_1 is asked.data_1 is ABSENT
    )


def _prompt_tokens(asked: Fields) -> int:
    tokens = -(-len(asked.tools) // BYTES_A_TOKEN)  # there are no media among them, and looking for some takes long
    for raw in _prompt(asked):
        if raw is not ABSENT:
            tokens += _tokens_of(raw)
    texts, repeated = _texts(asked), _repeated(asked)
    return tokens if texts == repeated == NONE else min(MOST, tokens + _compared(texts, repeated))


def _compared(texts: Iterable[msgspec.Raw], repeated: Iterable[msgspec.Raw]) -> int:
    """Tokens of texts that are compared with each other."""
    texts = [raw for raw in texts if raw is not ABSENT]
    repeated = [raw for raw in repeated if raw is not ABSENT]
    # of two lists, each text of one is compared with one of the other
    once = any(_how_many(raw) > 1 for raw in repeated)
    times = 1 if once else max(map(_how_many, texts), default=1)
    return sum(map(_tokens_of, texts)) + sum(map(_tokens_of, repeated)) * times


def _tokens_of(raw: msgspec.Raw) -> int:
    view = memoryview(raw)
    size = len(view)
    # tokens already, in one list or in several
    if view[0] == ARRAY and view[1] not in STARTS and b'"' not in (text := bytes(view)) and b"{" not in text:
        return text.count(b",") + 1
    if size <= MEDIA_BYTES:
        return -(-size // BYTES_A_TOKEN)
    media = 0
    for found in MEDIA.finditer(view if size <= LARGE else unescaped(bytes(view))):
        size -= found.end() - found.start()
        media += MEDIA_TOKENS
    return -(-size // BYTES_A_TOKEN) + media


def _how_many(raw: msgspec.Raw) -> int:
    """Texts (or lists of tokens) in a field that may hold one or a list of them."""
    if not FIRST.match(memoryview(raw)):
        return 1
    return len(_list(raw)) if len(raw) <= LARGE else _counted(bytes(raw))


def _counted(array: bytes) -> int:
    """The entries of a list that has some, without building any."""
    pieces = BRACKETS.split(outside_texts(array))
    depth = commas = 0
    for between, bracket in zip(pieces[::2], pieces[1::2], strict=False):
        if depth == 1:
            commas += between.count(b",")
        depth += 1 if bracket in OPENING else -1
    return commas + 1


def _number(raw: msgspec.Raw) -> int | None:
    """A positive whole number, also one that is written as a text or with a point: engines take those too.

    None for anything else, which is the engine's to refuse.
    """
    if raw is ABSENT:
        return None
    try:
        return _count(raw)
    except msgspec.DecodeError:
        pass
    try:
        number = float(_text(raw))
    except (msgspec.DecodeError, ValueError):
        return None
    return int(number) if 1 <= number <= MOST and number.is_integer() else None
