"""Whether what a client got is right, a refusal as documented, or a broken promise. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.engine_simulator.text import answer_words, render
from tests.trial.traffic import CHAT, Request

RIGHT, REFUSED, CUT_SHORT, LEFT, WRONG = "right", "refused", "cut short", "left", "WRONG"
"""Outcomes. CUT_SHORT: a stream that had begun and ended with an error event."""
REFUSALS = {
    429: {"rate_limit_exceeded": "rate_limit_error"},
    502: {"engine_broke": "api_error"},
    503: {"no_worker": "service_unavailable_error", "endpoint_failed": "service_unavailable_error"},
    504: {"engine_too_slow": "timeout_error"},
}
"""Codes, each with its type, that an answer of this status may carry (docs/api.md)."""
WITH_RETRY_AFTER = (429, 503)
CODES = {code: kind for codes in REFUSALS.values() for code, kind in codes.items()}
END = "data: [DONE]"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came; `trouble` is what the connection met, empty if it ended as it should."""

    status: int = 0
    headers: Mapping[str, str]
    body: bytes = b""
    trouble: str = ""


@dataclass(frozen=True)
class Judgement:
    """`code` is that of an error; `why` says what is wrong, and is empty where nothing is."""

    outcome: str
    code: str = ""
    why: str = ""


def expected(request: Request, seed: int) -> str:
    """The one right answer."""
    given = render(_messages(request)) if request.route == CHAT else request.prompt.encode()
    return "".join(answer_words(given, seed, request.tokens))


def body(request: Request) -> dict[str, Any]:
    """What the client sends."""
    asked = {"messages": _messages(request)} if request.route == CHAT else {"prompt": request.prompt}
    limits = {"max_tokens": request.tokens, "ignore_eos": True}
    return {"model": request.model, "stream": request.stream, **asked, **limits}


def judge(request: Request, reply: Reply, seed: int) -> Judgement:
    """What a reply is."""
    if reply.trouble:
        return Judgement(WRONG, why=reply.trouble)
    if not reply.headers.get("x-request-id"):
        return Judgement(WRONG, why="no x-request-id")
    try:
        if reply.status != 200:
            return _refusal(reply)
        return _stream(request, reply.body, seed) if request.stream else _whole(request, reply.body, seed)
    except (ValueError, LookupError, TypeError) as error:
        return Judgement(WRONG, why=f"{error!r} in {reply.status} {reply.body[-300:]!r}")


def _messages(request: Request) -> list[dict[str, str]]:
    return [{"role": "user", "content": request.prompt}]


def _refusal(reply: Reply) -> Judgement:
    error = json.loads(reply.body)["error"]
    code = error["code"]
    why = _flaw(error)
    if code not in REFUSALS.get(reply.status, {}):
        why = f"{reply.status} with the code {code}: {error['message']}"
    elif reply.status in WITH_RETRY_AFTER and int(reply.headers.get("retry-after", 0)) < 1:
        why = f"{reply.status} {code} without Retry-After"
    return Judgement(WRONG if why else REFUSED, code, why)


def _flaw(error: dict[str, Any]) -> str:
    """What is wrong with an error; empty if nothing is."""
    if set(error) != {"message", "type", "param", "code"}:
        return f"an error with the fields {sorted(error)}"
    if CODES.get(error["code"]) != error["type"]:
        return f"an error of type {error['type']} with the code {error['code']}"
    return "" if error["message"].strip() else "an error without a message"


def _stream(request: Request, text: bytes, seed: int) -> Judgement:
    events = [event for event in text.decode().split("\n\n") if event and not event.startswith(":")]
    if not events or events[-1] != END:
        return Judgement(WRONG, why=f"a stream that ends with {text[-200:]!r}")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    told = "".join(_piece(request, choice) for chunk in chunks for choice in chunk.get("choices", ()))
    right = expected(request, seed)
    if "error" in chunks[-1]:
        error = chunks[-1]["error"]
        why = _flaw(error) or ("" if right.startswith(told) else f"other words than asked for: {told[:80]!r}")
        return Judgement(WRONG if why else (CUT_SHORT if told else REFUSED), error["code"], why)
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    return _verdict(told, reasons, right)


def _piece(request: Request, choice: dict[str, Any]) -> str:
    return (choice["delta"].get("content") if request.route == CHAT else choice["text"]) or ""


def _whole(request: Request, text: bytes, seed: int) -> Judgement:
    [choice] = json.loads(text)["choices"]
    told = choice["message"]["content"] if request.route == CHAT else choice["text"]
    return _verdict(told, [choice["finish_reason"]], expected(request, seed))


def _verdict(told: str, reasons: list[str], right: str) -> Judgement:
    if told != right:
        return Judgement(WRONG, why=f"{told[:80]!r} instead of {right[:80]!r}")
    return Judgement(RIGHT) if reasons == ["length"] else Judgement(WRONG, why=f"finished for {reasons}")
