"""Multipart forms, read as engines read them (python-multipart with Starlette): where each field stands. Pure.

Each byte is looked at a fixed number of times, whatever a form is made of. What an engine would refuse, or could read
otherwise than this does, is refused here.
"""

import re
from typing import NamedTuple

from gateway.errors import BadRequest

PARTS = 1000
"""As many as Starlette takes."""
HEAD_BYTES = 16 * 1024
"""Of the header of one part."""
NEAR_MISSES = 1000
"""Lines that begin like the boundary and are none."""
BOUNDARY_BYTES = 200
FORM = b"multipart/form-data"
PARAMETER = re.compile(rb';[ \t]*+([\w-]++\*?)=(?:"((?:[^"\\\r\n]|\\.)*+)"|([^\s;"]*+))[ \t]*+')
LINE_ENDS = re.compile(rb"[\r\n]*+")


class Field(NamedTuple):
    """One field that is no file, and the span of its value in the body."""

    name: bytes
    start: int
    end: int


def is_form(content_type: bytes) -> bool:
    """Whether a body of this type is a multipart form; whatever else it says, it is taken for JSON."""
    return content_type[: len(FORM)].lower() == FORM


def fields_of(body: bytes, content_type: bytes) -> list[Field]:
    """The fields of a form in their order; of those with one name engines take the last. Raises BadRequest."""
    delimiter = b"\r\n--" + _boundary(content_type)
    at = LINE_ENDS.match(body).end()  # type: ignore[union-attr]  # it matches nothing, too
    if at == len(body):
        return []
    if not body.startswith(delimiter[2:], at):
        raise BadRequest("The form does not begin with the boundary that its content type names")
    at += len(delimiter) - 2
    found: list[Field] = []
    for _ in range(PARTS):
        if body.startswith(b"--", at):
            return found
        head_end = body.find(b"\r\n\r\n", at, at + HEAD_BYTES)
        if head_end < 0 or not body.startswith(b"\r\n", at):
            raise BadRequest(f"The header of a part of the form does not end within {HEAD_BYTES // 1024} KiB")
        name, is_file = _named(body[at + 2 : head_end])
        start, end = head_end + 4, _end(body, delimiter, head_end + 4)
        if not is_file:
            found.append(Field(name, start, end))
        at = end + len(delimiter)
    raise BadRequest(f"The form has more than {PARTS} parts")


def _end(body: bytes, delimiter: bytes, start: int) -> int:
    """Where the part that begins at `start` ends."""
    for _ in range(NEAR_MISSES):
        end = body.find(delimiter, start)
        if end < 0:
            raise BadRequest("The form is not whole: its last part does not end with the boundary")
        if body.startswith((b"\r\n", b"--"), end + len(delimiter)):
            return end
        start = end + 1
    raise BadRequest("The form's boundary stands in its own parts: choose a longer one")


def _boundary(content_type: bytes) -> bytes:
    boundary = _parameters(content_type).get(b"boundary", b"")
    if not 0 < len(boundary) <= BOUNDARY_BYTES:
        raise BadRequest("The content type of a form names its boundary: multipart/form-data; boundary=…")
    return boundary


def _named(head: bytes) -> tuple[bytes, bool]:
    """The name of a part, and whether it is a file."""
    lines = [line.partition(b":") for line in head.split(b"\r\n")]
    dispositions = [value.strip() for name, _, value in lines if name.lower() == b"content-disposition"]
    told = _parameters(dispositions[0]) if len(dispositions) == 1 else {}
    if b"name" not in told:
        raise BadRequest('A part of the form has no name: it needs one Content-Disposition: form-data; name="…"')
    return told[b"name"], b"filename" in told or b"filename*" in told


def _parameters(header: bytes) -> dict[bytes, bytes]:
    """What stands behind the semicolons of a header's value. Raises BadRequest for what can be read in two ways."""
    kind, semicolon, _ = header.partition(b";")
    at = len(kind)
    found: dict[bytes, bytes] = {}
    while semicolon and at < len(header):
        match = PARAMETER.match(header, at)
        if match is None or match[1].lower() in found:
            raise BadRequest("A header of the form can't be read: its parameters are name=value, each once")
        found[match[1].lower()] = match[2] if match[2] is not None else match[3]
        at = match.end()
    return found
