"""How streams end, and how they break so that clients notice."""

import itertools

import httpx
import msgspec
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder, Stream

from gateway.errors import EngineBroke, GatewayError, NoWorker
from gateway.proxy.dialects import ANTHROPIC, HELD_LIMIT, OPENAI, RESPONSES, Dialect, StreamEnd, error_event, heartbeat

ERROR = EngineBroke('The worker of "a" broke off\nin the middle: try again')
WHOLE = {
    OPENAI: b'data: {"choices":[]}\n\ndata: [DONE]\n\n',
    RESPONSES: b'event: response.created\n\nevent: response.completed\ndata: {"type":"response.completed"}\n\n',
    ANTHROPIC: b'event: message_start\ndata: {}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n',
}
LAST = {OPENAI: b"data: [DONE]", RESPONSES: b"event: response.completed", ANTHROPIC: b"event: message_stop"}
DIALECTS = st.sampled_from([OPENAI, RESPONSES, ANTHROPIC])


def fed(dialect: Dialect, *chunks: bytes) -> StreamEnd:
    end = StreamEnd(dialect)
    for chunk in chunks:
        end.feed(chunk)
    return end


@given(DIALECTS, st.lists(st.integers(0, 120), max_size=20))
def test_the_end_of_a_stream_is_seen_however_it_is_cut(dialect: Dialect, places: list[int]) -> None:
    raw = WHOLE[dialect]
    edges = [0, *sorted(min(place, len(raw)) for place in places), len(raw)]
    chunks = [raw[start:end] for start, end in itertools.pairwise(edges)]
    assert fed(dialect, *chunks).seen


@given(DIALECTS, st.lists(st.integers(0, 120), max_size=20), st.sampled_from([b"\n", b"\r\n"]))
def test_whole_events_go_on_at_once_and_half_of_one_waits(dialect: Dialect, places: list[int], line: bytes) -> None:
    raw = WHOLE[dialect].replace(b"\n", line)
    edges = [0, *sorted(min(place, len(raw)) for place in places), len(raw)]
    end, sent, given_out = StreamEnd(dialect), b"", b""
    for start, stop in itertools.pairwise(edges):
        sent += raw[start:stop]
        given_out += end.feed(raw[start:stop])
        whole, mark, _half = sent.rpartition(line * 2)
        assert given_out == whole + mark
        assert sent == given_out + end.rest()


def test_an_event_without_end_is_not_held_back_for_ever() -> None:
    end = StreamEnd(ANTHROPIC)
    assert sum(len(end.feed(b"x" * 1000)) for _ in range(100)) > 0
    assert len(end.rest()) <= HELD_LIMIT


@given(DIALECTS, st.integers(0, 200))
def test_a_stream_that_was_cut_before_its_end_marker_has_not_ended(dialect: Dialect, length: int) -> None:
    raw = WHOLE[dialect]
    marker = raw.index(LAST[dialect]) + len(LAST[dialect])
    assert fed(dialect, raw[: min(length, marker - 1)]).seen is False


@pytest.mark.parametrize("dialect", [OPENAI, RESPONSES, ANTHROPIC])
def test_a_model_that_says_the_end_marker_in_its_text_does_not_end_the_stream(dialect: Dialect) -> None:
    text = LAST[dialect].decode()
    body = msgspec.json.encode({"choices": [{"delta": {"content": f"{text}\n{text}"}}]})
    assert not fed(dialect, b"data: " + body + b"\n\n", b"data: x" + LAST[dialect]).seen


def test_a_response_may_also_end_failed_or_incomplete() -> None:
    for kind in (b"failed", b"incomplete", b"completed"):
        assert fed(RESPONSES, b"event: response." + kind + b"\n").seen


def test_a_stream_may_begin_with_its_end_and_may_use_carriage_returns() -> None:
    assert fed(OPENAI, b"data: [DONE]\r\n\r\n").seen
    assert fed(OPENAI, b"data: {}\r\n\r\n", b"data: [DONE]\r\n\r\n").seen


def events(raw: bytes) -> list[tuple[str | None, str]]:
    return [(event.event, event.data) for event in SSEDecoder().iter_bytes(iter([raw]))]


def raised_by_openai(raw: bytes) -> openai.APIError:
    """What openai's own stream reader raises on these bytes."""
    response = httpx.Response(200, content=raw, request=httpx.Request("POST", "http://x/v1"))
    with openai.OpenAI(api_key="made-up", base_url="http://x/v1") as client:
        stream: Stream[object] = Stream(cast_to=object, response=response, client=client)  # type: ignore[arg-type]  # httpx2's is alike
        with pytest.raises(openai.APIError) as caught:
            list(stream)
    return caught.value


@pytest.mark.parametrize("dialect", [OPENAI, RESPONSES])
def test_openais_client_raises_our_message_on_an_error_event(dialect: Dialect) -> None:
    raised = raised_by_openai(error_event(dialect, ERROR))
    assert raised.message == ERROR.message
    assert raised.code == "engine_broke"


def test_anthropics_error_event_has_its_name_and_its_shape() -> None:
    ((name, data),) = events(error_event(ANTHROPIC, ERROR))
    assert name == "error"
    assert msgspec.json.decode(data) == {"type": "error", "error": {"type": "api_error", "message": ERROR.message}}


def test_an_openai_stream_ends_after_its_error_event_as_clients_expect() -> None:
    assert events(error_event(OPENAI, ERROR))[-1] == (None, "[DONE]")


@given(DIALECTS, st.text(max_size=200))
def test_no_message_can_break_out_of_its_event(dialect: Dialect, text: str) -> None:
    message = text.encode("utf-8", "replace").decode()
    raw = error_event(dialect, NoWorker(message, retry_after=1))
    assert len(events(raw)) == (2 if dialect is OPENAI else 1)
    assert raw.endswith(b"\n\n")


def test_every_error_can_become_an_event() -> None:
    kinds: list[type[GatewayError]] = [GatewayError, *GatewayError.__subclasses__()]
    for kind in kinds:
        assert events(error_event(OPENAI, kind("what")))


def test_a_heartbeat_is_a_comment_and_says_how_long_it_takes() -> None:
    assert events(heartbeat("a", 24.2)) == []
    assert heartbeat("a", 24.2) == b": loading a, about 24 s left\n\n"
    assert heartbeat("a", None) == b": loading a\n\n"
