"""Bodies that were changed in their bytes say what they should, and nothing else in them has moved."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.proxy.peek import peek
from gateway.proxy.splice import OPTIONS_LIMIT, with_model, with_usage

JSON = b"application/json"
USAGE = {"include_usage": True}


def usage(body: bytes) -> tuple[bytes, bool]:
    return with_usage(body, peek(body, JSON))


def escaped(text: str) -> str:
    """The JSON string with every character written as an escape."""
    return '"' + "".join(f"\\u{ord(character):04x}" for character in text) + '"'


NAMES = st.sampled_from(["model", "stream_options", "stream", "messages", "x"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.sampled_from(["a", "model", '"model":"a"', '\\"', "{"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.just('"model":"a",'), inner, max_size=3),
    max_leaves=6,
)
OPTIONS: st.SearchStrategy[Any] = st.none() | st.fixed_dictionaries(
    {}, optional={"include_usage": st.none() | st.booleans(), "x": VALUES}
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """JSON objects as clients may write them: fields twice, in any order, with escapes and spaces anywhere."""
    members: list[tuple[str, Any]] = [("model", draw(st.sampled_from(["a", "b", "\u00fc", 'q"']))), ("stream", True)]
    members += draw(st.lists(st.tuples(st.just("model"), st.sampled_from(["a", "b"])), max_size=2))
    members += draw(st.lists(st.tuples(st.just("stream_options"), OPTIONS), max_size=2))
    members += draw(st.lists(st.tuples(st.sampled_from(["messages", "x", "Model", '\\"model']), VALUES), max_size=4))
    space = draw(st.sampled_from(["", " ", "\n\t", "\r\n"]))

    def key(name: str) -> str:
        return escaped(name) if draw(st.integers(0, 9)) == 0 else json.dumps(name)

    def value(content: Any) -> str:
        return json.dumps(content, ensure_ascii=draw(st.booleans()), separators=(f"{space},", f":{space}"))

    text = f"{space},{space}".join(
        f"{key(name)}{space}:{space}{value(content)}" for name, content in draw(st.permutations(members))
    )
    return f"{space}{{{space}{text}{space}}}{space}".encode()


def pieces_around(before: bytes, after: bytes) -> tuple[int, int]:
    """How many bytes at the beginning and at the end are the same."""
    head = next((at for at, (one, other) in enumerate(zip(before, after, strict=False)) if one != other), len(before))
    tail = 0
    while tail < min(len(before), len(after)) - head and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    return head, tail


@settings(deadline=None, max_examples=300)
@given(bodies(), st.sampled_from(["endpoint", "Org/Model:8b@main", "a", "b"]))
def test_the_model_is_replaced_and_everything_else_stays(body: bytes, name: str) -> None:
    before = json.loads(body)
    assume(before["model"] != name)
    after = with_model(body, JSON, name)
    assert json.loads(after) == before | {"model": name}
    head, tail = pieces_around(body, after)
    # one piece was replaced: the old name, or nothing where it is said once more
    assert len(body) - head - tail <= len(escaped("xx"))
    assert len(after) - head - tail <= len(name) + len(',"model":""')


@settings(deadline=None, max_examples=300)
@given(bodies())
def test_a_stream_is_made_to_tell_its_usage_unless_it_was_asked_to(body: bytes) -> None:
    before = json.loads(body)
    given_options = before.get("stream_options") or {}
    after, hides = usage(body)
    asked = given_options.get("include_usage") is True
    assert hides is not asked
    assert json.loads(after) == (before if asked else before | {"stream_options": given_options | USAGE})
    if asked:
        assert after is body


def test_no_other_byte_moves() -> None:
    body = b' {"temperature": 1.0,  "model" :\t"small", "seed":1e0,"tools":[{"model":{"type":"string"}}]} '
    assert with_model(body, JSON, "big") == body.replace(b'"small"', b'"big"')
    assert usage(body) == (b' {"stream_options":{"include_usage":true},' + body[2:], True)


def test_the_same_name_deeper_in_the_body_is_left_alone() -> None:
    body = b'{"x":{"model":"a"},"model":"a","messages":[{"model":"a"},"\\"model\\":\\"a\\""]}'
    assert with_model(body, JSON, "b") == b'{"x":{"model":"a"},"model":"b",' + body[31:]


def test_where_the_place_is_not_found_the_field_is_said_once_more() -> None:
    deep = b'{"model":"a","messages":[' + b",".join([b'{"model":"a"}'] * 10) + b"]}"
    assert with_model(deep, JSON, "b") == deep[:-1] + b',"model":"b"}'
    written = b'{"mod\\u0065l":"a"}\n'
    assert with_model(written, JSON, "b") == b'{"mod\\u0065l":"a","model":"b"}\n'
    assert json.loads(with_model(written, JSON, "b")) == {"model": "b"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (b"null", USAGE),
        (b"{}", USAGE),
        (b'{"include_usage":null}', USAGE),
        (b'{"include_usage":"Off"}', USAGE),
        (b'{"include_usage":0}', USAGE),
        (b'{"include_usage": false, "other": 1}', USAGE | {"other": 1}),
        # alone it has no effect; turned on beside our option it would change every event
        (b'{"continuous_usage_stats":true}', USAGE | {"continuous_usage_stats": False}),
        (b'{"include_usage":true,"continuous_usage_stats":true}', None),
        (b'{"include_usage":"yes"}', None),
        (b'{"include_usage":1}', None),
        # what an engine refuses it may refuse
        (b'{"include_usage":"maybe"}', None),
        (b'{"include_usage":{}}', None),
        (b"[]", None),
        (b"5", None),
    ],
)
def test_options_are_completed_and_a_wish_of_the_clients_is_kept(
    options: bytes, expected: dict[str, Any] | None
) -> None:
    body = b'{"model":"a","stream":true,"stream_options": ' + options + b',"max_tokens":5}'
    after, hides = usage(body)
    if expected is None:
        assert (after, hides) == (body, False)
    else:
        assert hides
        assert after.startswith(b'{"model":"a","stream":true,"stream_options": {')
        assert after.endswith(b',"max_tokens":5}')
        assert json.loads(after)["stream_options"] == expected


def test_absurd_options_are_refused() -> None:
    with pytest.raises(BadRequest, match="stream_options"):
        usage(b'{"model":"a","stream":true,"stream_options":"' + b"x" * OPTIONS_LIMIT + b'"}')


def test_the_model_of_a_form_is_replaced_and_the_file_is_not_touched() -> None:
    parts = [("model", (None, b"small")), ("language", (None, b"en")), ("file", ("speech.wav", b"RIFF\r\n\x00\xff"))]
    request = httpx.Request("POST", "http://x/", files=parts)
    body, kind = request.read(), request.headers["content-type"].encode()
    after = with_model(body, kind, "whisper-large")
    assert peek(after, kind).model == "whisper-large"
    assert after == body.replace(b"small", b"whisper-large")
