"""The few fields of a request that routing needs, read without building the body. Pure."""

import re
from typing import NamedTuple

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


PREFIX_LIMIT = 64 * 1024
"""Bytes of the prompt's beginning that are copied out: some 16,000 tokens, whatever a body of 64 MiB holds."""

ABSENT = msgspec.Raw()
"""What a field is that was not sent."""


class Peek(NamedTuple):
    """What the gateway reads of a body; everything else is the engine's business."""

    model: str
    stream: bool
    prefix: bytes
    """The first bytes, at most PREFIX_LIMIT, of the JSON that becomes the prompt, as it stands in the body.

    Instructions and system prompt come first. Empty where there is no prompt, or a form.
    """
    stream_options: msgspec.Raw = ABSENT
    """As it stands in the body, which it keeps alive."""


class Fields(msgspec.Struct, frozen=True):
    """The fields of every dialect; a Raw is a view into the body: nothing is copied, nothing is built."""

    model: str | None = None
    stream: bool | None = None
    instructions: msgspec.Raw = ABSENT
    system: msgspec.Raw = ABSENT
    messages: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT
    input: msgspec.Raw = ABSENT
    stream_options: msgspec.Raw = ABSENT


decode_fields = msgspec.json.Decoder(Fields).decode


def peek(body: bytes, content_type: bytes) -> Peek:
    """What routing needs, out of a JSON or multipart body.

    Raises BadRequest for a body that is neither, or names no model.
    """
    found = _peek_form(body) if is_form(content_type) else _peek_json(body)
    if not found.model:
        raise BadRequest(
            "The field 'model' is missing: name an endpoint there (GET /v1/models lists them)", param="model"
        )
    return Peek(found.model, bool(found.stream), _prefix(found), found.stream_options)


def is_form(content_type: bytes) -> bool:
    """Whether a body of this type is a multipart form; whatever else it says, it is taken for JSON."""
    return content_type.lower().startswith(b"multipart/form-data")


def _peek_json(body: bytes) -> Fields:
    if not body:
        raise BadRequest("The body is empty: send a JSON object with the field 'model'")
    return decoded(decode_fields, body)


def _peek_form(body: bytes) -> Fields:
    fields = {(quoted or bare).lower(): value.strip() for quoted, bare, value in FORM_FIELD.findall(body)}
    model = fields.get(b"model", b"").decode("utf-8", "replace")
    return Fields(model=model or None, stream=fields.get(b"stream") in TRUE)


def _prefix(fields: Fields) -> bytes:
    prefix = b""
    for raw in (fields.instructions, fields.system, fields.messages, fields.prompt, fields.input):
        if raw is not ABSENT:
            prefix += memoryview(raw)[: PREFIX_LIMIT - len(prefix)]
    return prefix
