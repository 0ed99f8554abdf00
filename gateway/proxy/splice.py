"""Changes to a request made in its bytes: the model's name, and the option that makes a stream tell its usage. Pure.

Nothing is parsed into objects and written out again: numbers, spaces and the order of fields reach the engine as the
client sent them. Where a field stands is not computed either. Each place that looks like it is tried, and the result
read back: only a body in which the field has the new value, by the same decoder that read the old one, is sent. A body
where no try succeeds (a key written with escapes, or that stands there often) gets the field once more at its end: of
fields that stand there twice every engine takes the last, as our own decoder does.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from gateway.errors import BadRequest
from gateway.proxy.form import fields_of, is_form
from gateway.proxy.peek import ABSENT, Fields, Peek, decode_fields

TRIES = 4
"""Places that are tried, the last ones first: each costs a copy of the body."""
MODEL = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*("(?:[^"\\]|\\.){1,1000}")')
STREAM_OPTIONS = re.compile(rb'"stream_options"[ \t\r\n]*:[ \t\r\n]*')
WANTED = b'"stream_options":{"include_usage":true}'
OPTIONS_LIMIT = 16 * 1024
"""Bytes that stream_options may have; the two that exist take 60."""

YES = frozenset({1, "1", "true", "t", "yes", "y", "on"})
NO = frozenset({None, 0, "0", "false", "f", "no", "n", "off"})
"""What an engine on pydantic takes for a boolean."""


def with_model(body: bytes, content_type: bytes, name: str) -> bytes:
    """The same JSON object or form, with `name` as its model. It must have one."""
    if is_form(content_type):
        return _form_with_model(body, content_type, name)
    value = msgspec.json.encode(name)
    places = (found.span(1) for found in reversed(deque(MODEL.finditer(body), TRIES)))
    return _replaced(body, places, b'"model":', value, lambda fields: fields.model == name)


def with_usage(body: bytes, asked: Peek) -> tuple[bytes, bool]:
    """A stream's body that asks for usage, and whether that was our wish alone: then the client must not see it.

    Options that no engine takes stay as they are, for the engine to refuse. Raises BadRequest for options that are
    absurdly large.
    """
    given = asked.stream_options
    if given is ABSENT:
        return _inserted(body, WANTED), True
    if len(given) > OPTIONS_LIMIT:
        raise BadRequest(f"stream_options are larger than {OPTIONS_LIMIT} bytes", param="stream_options")
    options = _options(given)
    if options is None:
        return body, False
    value = msgspec.json.encode(options)
    places = (
        (found.end(), found.end() + len(given))
        for found in reversed(deque(STREAM_OPTIONS.finditer(body), TRIES))
        if body.startswith(bytes(given), found.end())
    )
    return _replaced(
        body, places, b'"stream_options":', value, lambda fields: bytes(fields.stream_options) == value
    ), True


def _options(given: msgspec.Raw) -> dict[str, Any] | None:
    """The options with usage turned on; None where the client did so itself, or where no engine will take them."""
    options = msgspec.json.decode(given)
    if options is None:
        options = {}
    if not isinstance(options, dict):
        return None
    usage = options.get("include_usage")
    usage = usage.lower() if isinstance(usage, str) else usage
    if isinstance(usage, list | dict) or usage in YES or usage not in NO:
        return None
    options["include_usage"] = True
    if "continuous_usage_stats" in options:
        options["continuous_usage_stats"] = False  # it has no effect on its own, and must not get one
    return options


def _replaced(
    body: bytes, places: Iterable[tuple[int, int]], key: bytes, value: bytes, done: Callable[[Fields], bool]
) -> bytes:
    view = memoryview(body)
    for start, end in places:
        spliced = b"".join((view[:start], value, view[end:]))
        try:
            if done(decode_fields(spliced)):
                return spliced
        except msgspec.DecodeError:  # it stood in the middle of something else
            continue
    end = body.rindex(b"}")
    return b"".join((view[:end], b",", key, value, view[end:]))


def _inserted(body: bytes, member: bytes) -> bytes:
    """The object with one more member before its first."""
    start = body.index(b"{") + 1
    return b"".join((memoryview(body)[:start], member, b",", memoryview(body)[start:]))


def _form_with_model(body: bytes, content_type: bytes, name: str) -> bytes:
    """The last field of that name counts, here as for engines."""
    *_, model = (field for field in fields_of(body, content_type) if field.name == b"model")
    return b"".join((memoryview(body)[: model.start], name.encode(), memoryview(body)[model.end :]))
