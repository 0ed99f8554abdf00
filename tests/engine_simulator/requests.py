"""Reading requests: bodies, limits, and vLLM's ways of saying no."""

import json
from typing import Any

from tests.engine_simulator.engine import Engine
from tests.engine_simulator.http import Request


class RequestError(Exception):
    """Refused, with a status and vLLM's error body."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param

    def body(self, path: str) -> dict[str, Any]:
        """Give the error as JSON; the messages routes speak Anthropic's shape."""
        if path.startswith("/v1/messages"):
            return {"type": "error", "error": {"type": self.kind, "message": str(self)}}
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.status}}


def read_body(request: Request, *required: str) -> dict[str, Any]:
    """Read a JSON object that has these fields. Raises `RequestError` 400."""
    content_type = request.headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if content_type != b"application/json":
        raise _invalid(["Unsupported Media Type: Only 'application/json' is allowed"], "body")
    try:
        body = json.loads(request.body)
    except ValueError as error:
        position = getattr(error, "pos", 0)
        raise _invalid(
            [
                {
                    "type": "json_invalid",
                    "loc": f"body.{position}",
                    "msg": "JSON decode error",
                    "input": "<dict of 0 items>",
                }
            ],
            f"body.{position}",
        ) from error
    if not isinstance(body, dict):
        kind = {"type": "model_attributes_type", "loc": "body", "msg": "Input should be a valid dictionary"}
        raise _invalid([kind], "body")
    missing = [name for name in required if body.get(name) is None]
    if missing:
        errors = [{"type": "missing", "loc": f"body.{name}", "msg": "Field required"} for name in missing]
        raise _invalid(errors, f"body.{missing[0]}")
    return body


def check_model(engine: Engine, model: Any) -> None:
    """Refuse a model that is not served, as vLLM does. Raises `RequestError` 404."""
    is_served = model in engine.arguments.served_names or (isinstance(model, str) and model in engine.adapters)
    if model and not is_served:
        served = ", ".join(engine.arguments.served_names)
        raise RequestError(
            404, f"The model `{model}` does not exist. Valid aliases: {served}.", "NotFoundError", "model"
        )


def token_limit(engine: Engine, asked: Any, prompt_tokens: int) -> int:
    """How many tokens the answer may have. Raises `RequestError` 400 if the prompt leaves no room."""
    longest = engine.arguments.max_model_len
    if asked is not None and (not isinstance(asked, int) or asked < 1):
        raise RequestError(400, f"max_tokens must be at least 1, got {asked}.", param="max_tokens")
    if prompt_tokens + (asked or 1) > longest:
        total = prompt_tokens + (asked or 1)
        raise RequestError(
            400,
            f"This model's maximum context length is {longest} tokens. However, you requested {asked or 1} output"
            f" tokens and your prompt contains {prompt_tokens} input tokens, for a total of {total}"
            " tokens. Please reduce the length of the input prompt or the number of requested output tokens.",
            param="input_tokens",
        )
    return int(asked) if asked else longest - prompt_tokens


def _invalid(errors: list[Any], param: str) -> RequestError:
    label = "error" if len(errors) == 1 else "errors"
    lines = "".join(f"\n  {error}" for error in errors)
    return RequestError(400, f"{len(errors)} validation {label}:{lines}", "Bad Request", param)
