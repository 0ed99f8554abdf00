"""What the gateway reads of a request's body."""

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.proxy.peek import PREFIX_LIMIT, peek

JSON = b"application/json"


def form(*fields: tuple[str, str], file: bytes = b"RIFF....") -> tuple[bytes, bytes]:
    """A multipart body as httpx makes it, and its content type; the file is the last part."""
    parts: list[tuple[str, tuple[str | None, bytes]]] = [(name, (None, value.encode())) for name, value in fields]
    parts.append(("file", ("speech.wav", file)))
    request = httpx.Request("POST", "http://x/", files=parts)
    return request.read(), request.headers["content-type"].encode()


def refusal(body: bytes, content_type: bytes = JSON) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        peek(body, content_type)
    return caught.value


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"a"}', ("a", False)),
        (b'{"model":"a","stream":true}', ("a", True)),
        (b'{"model":"a","stream":null}', ("a", False)),
        (b' { "stream" : true , "messages":[{"model":"b"}], "model" : "Org/A:1" } ', ("Org/A:1", True)),
        (b'{"model":"\\u00fc"}', ("\u00fc", False)),
    ],
)
def test_model_and_stream_are_read_from_json_wherever_they_stand(body: bytes, expected: tuple[str, bool]) -> None:
    assert peek(body, JSON)[:2] == expected


def test_json_is_read_whatever_the_client_calls_it() -> None:
    assert peek(b'{"model":"a"}', b"application/x-www-form-urlencoded")[:2] == ("a", False)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The body is empty"),
        (b"{", "The body is not JSON"),
        (b"model=a", "The body is not JSON"),
        (b'{"model":"\xff"}', "The body is not JSON"),
        (b'{"model":"\\ud800"}', "The body is not JSON"),
        (b"[]", "The body does not fit"),
        (b'{"model":1}', r"The body does not fit: .*\$\.model"),
        (b'{"model":"a","stream":"yes"}', r"The body does not fit: .*\$\.stream"),
        (b"{}", "The field 'model' is missing"),
        (b'{"model":""}', "The field 'model' is missing"),
        (b'{"model":null}', "The field 'model' is missing"),
        (b'{"messages":' + b"[" * 100_000, "nested too deeply"),
    ],
    ids=lambda value: value[:20],
)
def test_a_body_that_does_not_do_is_refused_with_the_reason(body: bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        peek(body, JSON)


def test_model_and_stream_are_read_from_a_form() -> None:
    assert peek(*form(("model", "whisper"), ("language", "en")))[:2] == ("whisper", False)
    assert peek(*form(("language", "en"), ("stream", "true"), ("model", "Org/Whisper")))[:2] == ("Org/Whisper", True)
    assert peek(*form(("model", "whisper"), ("stream", "false")))[:2] == ("whisper", False)


def test_fields_whose_names_only_begin_alike_are_not_mistaken() -> None:
    asked = (("model", "whisper"), ("stream", "false"), ("stream_include_usage", "true"), ("model_hint", "other"))
    assert peek(*form(*asked))[:2] == ("whisper", False)


def test_a_form_is_a_form_in_any_spelling_of_its_type_and_with_bare_names() -> None:
    body, kind = form(("model", "whisper"))
    assert peek(body, kind.replace(b"multipart/form-data", b"Multipart/Form-Data"))[:2] == ("whisper", False)
    assert peek(body.replace(b'"model"', b"model"), kind)[:2] == ("whisper", False)


def test_a_form_without_a_model_is_refused() -> None:
    assert refusal(*form(("language", "en"))).param == "model"
    assert refusal(b"", b"multipart/form-data; boundary=x").param == "model"


def test_a_large_file_does_not_make_reading_slow_or_wrong() -> None:
    body, kind = form(("model", "whisper"), file=b"\r\nContent-Disposition: form-data;" * 50_000)
    assert peek(body, kind)[:2] == ("whisper", False)


@pytest.mark.parametrize(
    ("fields", "prefix"),
    [
        (b'"messages": [ {"role":"user"} ]', b'[ {"role":"user"} ]'),
        (b'"prompt":"once"', b'"once"'),
        (b'"input":"ask","instructions":"be brief"', b'"be brief""ask"'),
        (b'"messages":[1],"max_tokens":5,"system":"s"', b'"s"[1]'),
        (b'"messages":[1],"messages":[2]', b"[2]"),
        (b'"max_tokens":5', b""),
    ],
)
def test_what_makes_the_prompt_is_given_as_it_stands_with_the_instructions_first(fields: bytes, prefix: bytes) -> None:
    assert peek(b'{"model":"a",' + fields + b"}", JSON).prefix == prefix


def test_of_a_large_prompt_only_the_beginning_is_copied() -> None:
    prompt = msgspec.json.encode({"model": "a", "system": "s" * 60_000, "messages": ["m" * 2**20]})
    found = peek(prompt, JSON).prefix
    assert len(found) == PREFIX_LIMIT
    assert found.startswith(b'"sss')
    assert found.endswith(b's"["' + b"m" * (PREFIX_LIMIT - 60_002 - 2))


def test_a_form_has_no_prompt() -> None:
    assert peek(*form(("model", "whisper"), ("prompt", "names: Ada"))).prefix == b""


TYPES = st.sampled_from([JSON, b"", b"multipart/form-data; boundary=x", b"text/plain"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["model", "stream", "x"]), inner),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.binary() | ANYTHING.map(msgspec.json.encode), TYPES)
def test_any_body_gives_a_model_or_a_refusal_and_nothing_else(body: bytes, content_type: bytes) -> None:
    try:
        model, stream, prefix, *_ = peek(body, content_type)
    except BadRequest:
        return
    assert model
    assert isinstance(stream, bool)
    assert len(prefix) <= PREFIX_LIMIT
