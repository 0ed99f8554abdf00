"""Tokens and words without a tokenizer: a prompt token is three bytes, an answer token is one seeded word."""

import hashlib
import json
import random
from collections.abc import Sequence
from typing import Any

BYTES_PER_TOKEN = 3
VOCABULARY = tuple(
    first + second + third
    for first in ("b", "d", "f", "k", "l", "m", "n", "p")
    for second in ("a", "e", "i", "o")
    for third in ("l", "n", "r", "s", "t", "mo", "ra", "vi")
)


def encode(text: bytes) -> list[int]:
    """Turn text into token ids below 2**26; reversible without a vocabulary.

    The byte count is kept in the upper bits, since the last token may be shorter than three bytes.
    """
    pieces = (text[start : start + BYTES_PER_TOKEN] for start in range(0, len(text), BYTES_PER_TOKEN))
    return [int.from_bytes(piece) | len(piece) << 24 for piece in pieces]


def decode(tokens: Sequence[int]) -> bytes:
    """Undo `encode`. Ids that it never makes decode to nothing sensible."""
    return b"".join((token & 0xFFFFFF).to_bytes(3)[3 - min(3, token >> 24) :] for token in tokens)


def token_count(prompt: bytes) -> int:
    """Count a prompt's tokens; an empty one has its start token."""
    return max(1, -(-len(prompt) // BYTES_PER_TOKEN))


def answer_words(prompt: bytes, seed: int, count: int) -> list[str]:
    """Make the answer to a prompt: the same for the same prompt and seed, whatever the machine."""
    digest = hashlib.blake2b(prompt, digest_size=8, key=seed.to_bytes(16, signed=True)).digest()
    words = random.Random(int.from_bytes(digest)).choices(VOCABULARY, k=count)  # noqa: S311 - repeatable, not secret
    return [words[0], *(f" {word}" for word in words[1:])] if words else []


def numbers(prompt: bytes, seed: int, count: int) -> list[float]:
    """Make `count` repeatable numbers in [-1, 1), for embeddings and scores."""
    digest = hashlib.blake2b(prompt, digest_size=8, key=seed.to_bytes(16, signed=True)).digest()
    source = random.Random(int.from_bytes(digest))  # noqa: S311 - repeatable, not secret
    return [round(source.uniform(-1.0, 1.0), 6) for _ in range(count)]


def render(messages: Sequence[Any]) -> bytes:
    """Put chat messages through what stands for a chat template."""
    parts = []
    for message in messages:
        content = message.get("content")
        text = content if isinstance(content, str) else json.dumps(content)
        parts.append(f"<|{message.get('role')}|>\n{text}\n")
    return "".join(parts).encode(errors="replace")


def prompt_bytes(prompt: Any) -> bytes:
    """Turn a prompt as the completions route takes it (text, token ids, or a list of one of these) into bytes."""
    if isinstance(prompt, str):
        return prompt.encode(errors="replace")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        return decode(prompt)
    if isinstance(prompt, list) and prompt:
        return prompt_bytes(prompt[0])
    return json.dumps(prompt).encode()
