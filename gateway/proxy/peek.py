"""The few fields of a request that routing needs, read without building the body. Pure."""

import re

import msgspec

from gateway.bodies import decoded
from gateway.errors import BadRequest

FORM_FIELD = re.compile(
    rb"\r\nContent-Disposition: *form-data; *"
    rb'name=(?:"(?P<quoted>model|stream)"|(?P<bare>model|stream)(?=[;\s]))[^\r\n]*'
    rb"\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{0,512})\r\n",
    re.IGNORECASE,
)
TRUE = frozenset({b"true", b"1", b"True"})


class Peek(msgspec.Struct, frozen=True):
    """What the gateway reads of a body; everything else is the engine's business."""

    model: str | None = None
    stream: bool | None = None


_decode = msgspec.json.Decoder(Peek).decode


def peek(body: bytes, content_type: bytes) -> tuple[str, bool]:
    """The model's name and whether a stream was asked for, out of a JSON or multipart body.

    Raises BadRequest for a body that is neither, or names no model.
    """
    found = _peek_form(body) if content_type.lower().startswith(b"multipart/form-data") else _peek_json(body)
    if not found.model:
        raise BadRequest(
            "The field 'model' is missing: name an endpoint there (GET /v1/models lists them)", param="model"
        )
    return found.model, bool(found.stream)


def _peek_json(body: bytes) -> Peek:
    if not body:
        raise BadRequest("The body is empty: send a JSON object with the field 'model'")
    return decoded(_decode, body)


def _peek_form(body: bytes) -> Peek:
    fields = {(quoted or bare).lower(): value.strip() for quoted, bare, value in FORM_FIELD.findall(body)}
    model = fields.get(b"model", b"").decode("utf-8", "replace")
    return Peek(model=model or None, stream=fields.get(b"stream") in TRUE)
