"""What the content of a message would make an engine fetch, or take for a tensor. Pure.

An engine that is given an address fetches it, whoever may reach what stands there: its own network, its host's files,
the machine's metadata service (CVE-2026-24779). `data:` URLs carry the medium in the request itself.
"""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from gateway.bodies import built
from gateway.errors import BadRequest
from gateway.proxy.peek import ABSENT
from gateway.types import Allowable

FRAMES = 64
"""Images that a `data:video/jpeg` URL may hold: vLLM before 0.19 decodes as many as there are (CVE-2026-34755)."""
VIDEO = "data:video/jpeg"
NULL = b"null"


class Part(msgspec.Struct, frozen=True):
    """A message, an item of the Responses API, or one part of their content."""

    type: msgspec.Raw = ABSENT
    content: msgspec.Raw = ABSENT
    output: msgspec.Raw = ABSENT
    image_url: msgspec.Raw = ABSENT
    audio_url: msgspec.Raw = ABSENT
    video_url: msgspec.Raw = ABSENT
    file_url: msgspec.Raw = ABSENT
    server_url: msgspec.Raw = ABSENT
    source: msgspec.Raw = ABSENT
    image_embeds: msgspec.Raw = ABSENT
    audio_embeds: msgspec.Raw = ABSENT
    prompt_embeds: msgspec.Raw = ABSENT
    input_audio: msgspec.Raw = ABSENT


class Message(msgspec.Struct, frozen=True):
    """One message of a chat."""

    content: msgspec.Raw = ABSENT


class Place(msgspec.Struct, frozen=True):
    """The object that holds a URL."""

    url: msgspec.Raw = ABSENT


class Danger(NamedTuple):
    """What was found, and what would have to be allowed."""

    allowable: Allowable | None
    """None: nothing allows it."""
    param: str
    why: str


MEDIUM = Danger(None, "", "")
"""What is told of each image, sound, video or file, beside what may be wrong with it: too many are too much."""
LEAST_OF_TENSORS = len('"audio_embeds"')
"""Bytes that a type's name has at least, however it is written, which says that its part is a tensor."""
OPENING = b"{["
OBJECT, ARRAY = OPENING
QUOTE = ord('"')
NESTED = ("content", "output")
URLS = ("image_url", "audio_url", "video_url", "file_url", "server_url", "source")
EMBEDS = ("image_embeds", "audio_embeds", "prompt_embeds")
TEXT = (ABSENT,) * (len(Part.__struct_fields__) - 1)
"""What a part that is only text has beside its type."""

decode_list = msgspec.json.Decoder(list[Part | str]).decode
decode_messages = msgspec.json.Decoder(list[Message]).decode
decode_one = msgspec.json.Decoder(Part).decode
decode_place = msgspec.json.Decoder(Place).decode
as_tuple = msgspec.structs.astuple


def dangers_of_chat(raw: msgspec.Raw) -> Iterator[Danger]:
    """What is dangerous in the messages of a chat. Raises BadRequest for what are no messages."""
    if memoryview(raw)[0] != ARRAY:
        return
    try:
        messages = decode_messages(raw)
    except msgspec.ValidationError:
        raise BadRequest("'messages' must be an array of objects", param="messages") from None
    for number, message in enumerate(messages):
        content = message.content
        if content is not ABSENT and memoryview(content)[0] in OPENING:
            yield from dangers(content, f"messages[{number}].content")


def dangers(raw: msgspec.Raw, param: str) -> Iterator[Danger]:
    """What is dangerous in a field that holds text, a part, or a list of messages or parts; whatever is in them too.

    Raises BadRequest for a list of what is neither text nor an object.
    """
    pending = [(raw, param)]
    while pending:
        raw, param = pending.pop()
        for number, part in enumerate(_parts(raw, param)):
            if type(part) is not Part:
                continue
            fields = as_tuple(part)
            if fields[1:] == TEXT and len(fields[0]) < LEAST_OF_TENSORS:
                continue
            where = f"{param}[{number}]"
            for key, value in zip(NESTED, fields[1:3], strict=True):
                if value and memoryview(value)[0] in OPENING:
                    pending.append((value, f"{where}.{key}"))
            yield from _dangers_of(part, where)


def _parts(raw: msgspec.Raw, param: str) -> list[Part | str]:
    first = memoryview(raw)[0]
    try:
        if first == OBJECT:
            return [decode_one(raw)]
        return decode_list(raw) if first in OPENING else []
    except UnicodeDecodeError as problem:
        raise BadRequest(f"'{param}' is not UTF-8: {problem}", param=param) from None
    except msgspec.ValidationError:
        if b"{" not in bytes(raw):
            return []  # tokens: numbers fetch nothing
        raise BadRequest(f"'{param}' must be an array of texts and objects", param=param) from None


def _dangers_of(part: Part, name: str) -> Iterator[Danger]:
    if part.input_audio is not ABSENT:
        yield MEDIUM
    for key in URLS:
        value = getattr(part, key)
        if value is not ABSENT:
            yield MEDIUM
            yield from _of_url(value, f"{name}.{key}")
    is_tensor = part.type is not ABSENT and built(part.type) in EMBEDS
    for key in EMBEDS:
        value = getattr(part, key)
        if is_tensor or (value is not ABSENT and bytes(value) != NULL):
            yield MEDIUM
            yield Danger(Allowable.EMBEDS, f"{name}.{key}", "tensors from outside can crash the engine")
            return


def _of_url(value: msgspec.Raw, param: str) -> Iterator[Danger]:
    raw: msgspec.Raw = value
    if memoryview(raw)[0] == OBJECT:
        raw = decode_place(raw).url
        if raw is ABSENT:
            return
        param += ".url"
    if memoryview(raw)[0] != QUOTE:
        return  # null, or what no engine takes for a URL
    begin = bytes(memoryview(raw)[: len(VIDEO) + 1]).lower()
    if begin.startswith(b'"data:') and b"\\" not in begin and not begin.startswith(b'"data:video'):
        return  # what it holds need not be read
    url: str = built(raw)
    if url[:5].lower() != "data:":
        yield Danger(Allowable.MEDIA_URLS, param, "the engine would fetch it, with its own rights; send a data: URL")
    elif url[: len(VIDEO)].lower() == VIDEO and url.count(",") > FRAMES:
        yield Danger(None, param, f"it holds {url.count(',')} images, and {FRAMES} are the most")
