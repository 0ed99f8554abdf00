"""The operations that are forwarded to engines: what is certain of their bodies, and no more. Pure."""

from gateway.openapi.operation import EVENTS, JSON, TEXT, Operation, Parameter, Schema, rows, text, thing
from gateway.proxy.paths import INFERENCE_ROUTES
from gateway.types import Scope

SPEECH = "/v1/audio/"
FORM = "multipart/form-data"
MODEL = text() | {"minLength": 1, "description": "An endpoint's name, an alias, or a LoRA adapter of one"}
STREAM: Schema = {"type": ["boolean", "null"]}
MESSAGES = rows(thing(role=text()))
PROMPT: Schema = {"anyOf": [text(), rows(text()), rows({"type": "integer"})]}

FIELDS: dict[str, dict[str, Schema]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": PROMPT},
    "/v1/embeddings": {"input": PROMPT},
    "/v1/responses": {"input": {"anyOf": [text(), rows({"type": "object"})]}},
    "/v1/rerank": {"query": text(), "documents": rows(text())},
    "/v1/score": {},
    "/v1/pooling": {},
    "/v1/classify": {"input": {"anyOf": [text(), rows(text())]}},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/tokenize": {},
    "/detokenize": {"tokens": rows({"type": "integer"})},
    f"{SPEECH}transcriptions": {"file": text() | {"format": "binary"}},
    f"{SPEECH}translations": {"file": text() | {"format": "binary"}},
}
"""What each route needs beside `model`; what else a body may hold is the engine's business."""

STREAMS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})

HEADERS = (
    Parameter("x-hostler-timeout", {"type": "number", "minimum": 0}, "Seconds to wait for a worker", "header"),
    Parameter("x-hostler-priority", text(enum=("interactive", "batch")), "What goes first", "header"),
)


def forwarded(path: str) -> Operation:
    """What is certain of a route that is forwarded."""
    is_speech = path.startswith(SPEECH)
    fields = {"model": MODEL, **FIELDS[path]}
    body = thing(**fields) if is_speech else thing(**fields) | {"properties": {**fields, "stream": STREAM}}
    return Operation(
        "POST",
        path,
        "Forwarded to a worker of the endpoint that `model` names",
        Scope.INFERENCE,
        answer={},
        media=(JSON, EVENTS) if path in STREAMS else (JSON, TEXT, EVENTS) if is_speech else (JSON,),
        body=body,
        body_media=FORM if is_speech else JSON,
        parameters=HEADERS,
        is_inference=True,
    )


def about_response(method: str, path: str, summary: str) -> Operation:
    """Build a later call about a response: it goes to the worker that made it."""
    return Operation(method, path, summary, Scope.INFERENCE, answer={}, is_inference=True)


FORWARDED = (
    *(forwarded(path) for path in INFERENCE_ROUTES),
    about_response("GET", "/v1/responses/{response_id}", "A response, from the worker that made it"),
    about_response("POST", "/v1/responses/{response_id}/cancel", "Cancel a response, at the worker that makes it"),
)
"""All that engines answer."""
