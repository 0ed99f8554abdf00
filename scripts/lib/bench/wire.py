"""What goes over the wire in a measurement: requests, and the answers that the mock engine gives to them. Pure.

A request's prompt begins with an order, `bench: 400 events at 50/s`, so that it reaches the engine through gateways
that parse and rebuild bodies too. The engine's events carry a number each: who knows the order knows every byte of the
answer.
"""

import json
import re
from typing import Any

EVENT_BYTES = 190
"""Length of one server-sent event: what vLLM sends for a token of a chat without log probabilities."""
DISTINCT = 1000
"""Events differ within this many, then begin again."""
ORDER = re.compile(rb"bench: (\d+) events at (\d+)/s")
WANTS_USAGE = re.compile(rb'"include_usage":\s*true')
MODEL = "bench"
TOKEN = b'"content":"t'
"""Begins a token in every event, also in one that a gateway has rebuilt without spaces."""
FILLER = "The quick brown fox jumps over the lazy dog while the engine is warming up. "


def _event(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    fixed = {"id": "chatcmpl-", "object": "chat.completion.chunk", "created": 1767225600, "model": MODEL}
    return {**fixed, "choices": [choice]}


def _line(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n".encode()


def _token(index: int) -> bytes:
    body = _event({"content": f"t{index:06d}"})
    body["id"] += "0" * (EVENT_BYTES - len(_line(body)))
    return _line(body)


EVENTS = tuple(_token(index) for index in range(DISTINCT))
CYCLE = b"".join(EVENTS)
CYCLE_TWICE = CYCLE * 2
"""Any piece of the event part of a stream that is shorter than a cycle is found in it at its position."""
FINISH = _line(_event({}, "stop"))
MOST_TOKENS = 16_384
"""That a request says it may take."""
USAGE = {"prompt_tokens": 64, "completion_tokens": 64, "total_tokens": 128}
USAGE_EVENT = _line(_event({}) | {"choices": [], "usage": USAGE})
DONE = b"data: [DONE]\n\n"

ANSWER = json.dumps(
    {
        "id": "chatcmpl-",
        "object": "chat.completion",
        "created": 1767225600,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": FILLER * 4, "refusal": None, "tool_calls": []},
                "text": FILLER,  # one answer serves both chats and the readiness probe's completion
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    },
    separators=(",", ":"),
).encode()


def chunk(data: bytes) -> bytes:
    """One chunk of HTTP's chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def tail(*, usage: bool) -> tuple[bytes, ...]:
    """The events after the last token; the usage event only for those who asked."""
    return (FINISH, USAGE_EVENT, DONE) if usage else (FINISH, DONE)


def order(body: bytes) -> tuple[int, int]:
    """How many events a request asks for and at how many a second; 0 and 0 for a JSON answer."""
    found = ORDER.search(body)
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def _tool(number: int) -> dict[str, Any]:
    """A function as agents have them."""
    parameters = {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "What to look for"},
            "limit": {"type": "integer", "description": "How many at most"},
            "kinds": {"type": "array", "items": {"type": "string", "enum": ["file", "folder", "link"]}},
        },
        "required": ["query"],
    }
    text = "Look something up in the records of the house and say what stands there, with all that belongs to it."
    return {
        "type": "function",
        "function": {"name": f"tool_{number}", "description": text, "parameters": parameters},
    }


def request(
    address: str,
    key: str,
    *,
    events: int = 0,
    rate: int = 0,
    prompt_bytes: int = 200,
    salt: int = 0,
    usage: bool = False,
    tools: int = 0,
) -> bytes:
    """A whole HTTP request for a chat; `salt` makes its prompt differ from others after the first words."""
    text = f"bench: {events} events at {rate}/s. You are a helpful assistant. Question {salt}: "
    text = (text + FILLER * (prompt_bytes // len(FILLER) + 1))[: max(prompt_bytes, len(text))]
    fields: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    # the engine goes by the prompt; a hundred endless streams would ask for more than any limit has
    fields["max_tokens"] = min(max(events, 64), MOST_TOKENS)
    if tools:
        fields["tools"] = [_tool(number) for number in range(tools)]
    if events:
        fields["stream"] = True
    if usage:
        fields["stream_options"] = {"include_usage": True}
    body = json.dumps(fields, separators=(",", ":")).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nAccept: */*\r\nUser-Agent: hostler-bench\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
