"""The few fields of a request that routing needs, read without building the body. Pure."""

from typing import Any, NamedTuple

import msgspec

from gateway.bodies import decoded
from gateway.errors import BadRequest
from gateway.proxy.form import fields_of, is_form

FORM_FIELDS = frozenset({b"model", b"stream", b"n", b"vllm_xargs"})
FORM_VALUE_BYTES = 512
"""Of one of these; a file may be of any size."""
TRUE = frozenset({b"true", b"1", b"True"})


PREFIX_LIMIT = 64 * 1024
"""Bytes of the prompt's beginning that are copied out: some 16,000 tokens, whatever a body of 64 MiB holds."""

ABSENT = msgspec.Raw()
"""What a field is that was not sent."""


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
    # from here on what could endanger an engine: each name has a rule in hygiene.py; what many requests have first
    max_tokens: msgspec.Raw = ABSENT
    max_completion_tokens: msgspec.Raw = ABSENT
    n: msgspec.Raw = ABSENT
    stop: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    response_format: msgspec.Raw = ABSENT
    allowed_token_ids: msgspec.Raw = ABSENT
    background: msgspec.Raw = ABSENT
    bad_words: msgspec.Raw = ABSENT
    best_of: msgspec.Raw = ABSENT
    chat_template: msgspec.Raw = ABSENT
    chat_template_kwargs: msgspec.Raw = ABSENT
    data_1: msgspec.Raw = ABSENT
    data_2: msgspec.Raw = ABSENT
    documents: msgspec.Raw = ABSENT
    ec_transfer_params: msgspec.Raw = ABSENT
    echo: msgspec.Raw = ABSENT
    functions: msgspec.Raw = ABSENT
    guided_choice: msgspec.Raw = ABSENT
    guided_grammar: msgspec.Raw = ABSENT
    guided_json: msgspec.Raw = ABSENT
    guided_regex: msgspec.Raw = ABSENT
    items: msgspec.Raw = ABSENT
    kv_transfer_params: msgspec.Raw = ABSENT
    logit_bias: msgspec.Raw = ABSENT
    logits_processors: msgspec.Raw = ABSENT
    logprob_token_ids: msgspec.Raw = ABSENT
    logprobs: msgspec.Raw = ABSENT
    lora_path: msgspec.Raw = ABSENT
    lora_request: msgspec.Raw = ABSENT
    max_output_tokens: msgspec.Raw = ABSENT
    media_io_kwargs: msgspec.Raw = ABSENT
    min_tokens: msgspec.Raw = ABSENT
    mm_processor_kwargs: msgspec.Raw = ABSENT
    output_config: msgspec.Raw = ABSENT
    previous_response_id: msgspec.Raw = ABSENT
    prompt_embeds: msgspec.Raw = ABSENT
    prompt_logprobs: msgspec.Raw = ABSENT
    queries: msgspec.Raw = ABSENT
    query: msgspec.Raw = ABSENT
    stop_sequences: msgspec.Raw = ABSENT
    stop_token_ids: msgspec.Raw = ABSENT
    structural_tag: msgspec.Raw = ABSENT
    structured_outputs: msgspec.Raw = ABSENT
    text: msgspec.Raw = ABSENT
    text_1: msgspec.Raw = ABSENT
    text_2: msgspec.Raw = ABSENT
    thinking_token_budget: msgspec.Raw = ABSENT
    top_k: msgspec.Raw = ABSENT
    top_logprobs: msgspec.Raw = ABSENT
    truncate_prompt_tokens: msgspec.Raw = ABSENT
    vllm_xargs: msgspec.Raw = ABSENT


ROUTING, COMMON = 8, 14
"""Where the fields that routing needs end, and where, of the rest, which are watched, those that are common do."""
WATCHED = Fields.__struct_fields__[ROUTING:]
RARE: tuple[Any, ...] = (ABSENT,) * (len(Fields.__struct_fields__) - COMMON)
"""The other watched fields of nearly all requests: none of them."""

as_tuple = msgspec.structs.astuple


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
    fields: Fields = Fields()
    """All that was looked for; absent ones are ABSENT."""
    is_form: bool = False


decode_fields = msgspec.json.Decoder(Fields).decode


def peek(body: bytes, content_type: bytes) -> Peek:
    """What routing needs, out of a JSON or multipart body.

    Raises BadRequest for a body that is neither, or names no model.
    """
    form = is_form(content_type)
    found = _peek_form(body, content_type) if form else _peek_json(body)
    if not found.model:
        raise BadRequest(
            "The field 'model' is missing: name an endpoint there (GET /v1/models lists them)", param="model"
        )
    return Peek._make((found.model, bool(found.stream), _prefix(found), found.stream_options, found, form))


def _peek_json(body: bytes) -> Fields:
    if not body:
        raise BadRequest("The body is empty: send a JSON object with the field 'model'")
    return decoded(decode_fields, body)


def _peek_form(body: bytes, content_type: bytes) -> Fields:
    fields: dict[bytes, bytes] = {}
    for name, start, end in fields_of(body, content_type):
        if name in FORM_FIELDS:
            if end - start > FORM_VALUE_BYTES:
                raise BadRequest(f"The field '{name.decode()}' is longer than {FORM_VALUE_BYTES} bytes")
            fields[name] = body[start:end].strip()
    model = fields.get(b"model", b"").decode("utf-8", "replace")
    watched = {name.decode(): msgspec.Raw(fields[name]) for name in (b"n", b"vllm_xargs") if fields.get(name)}
    return Fields(model=model or None, stream=fields.get(b"stream") in TRUE, **watched)


def _prefix(fields: Fields) -> bytes:
    if (
        fields.messages is not ABSENT
        and fields.instructions is fields.system is fields.prompt is fields.input is ABSENT
    ):
        messages = fields.messages
        return bytes(messages if len(messages) <= PREFIX_LIMIT else memoryview(messages)[:PREFIX_LIMIT])
    prefix = b""
    for raw in (fields.instructions, fields.system, fields.messages, fields.prompt, fields.input):
        if raw is not ABSENT:
            prefix += memoryview(raw)[: PREFIX_LIMIT - len(prefix)]
    return prefix
