"""Streams of completions as the client gets them: whole events, in order, without the one it did not ask for."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.proxy.completion_stream import HELD_LIMIT, CompletionStream
from gateway.proxy.meter import Tokens

START = b'{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m",'
CONTENT = b"data: " + START + b'"choices":[{"index":0,"delta":{"content":"x"},"logprobs":null}]}'
USAGE = (
    b"data: " + START + b'"choices":[],"usage":{"prompt_tokens":37,"total_tokens":40,"completion_tokens":3,'
    b'"prompt_tokens_details":{"cached_tokens":16,"created_cache_tokens":0}},"system_fingerprint":"vllm-0.32.0"}'
)
DONE = b"data: [DONE]"
OTHERS = [
    CONTENT,
    b"data: " + START + b'"choices":[{"index":0,"delta":{"content":"\\"choices\\":[]data: [DONE]"}}]}',
    b"data: " + START + b'"choices":[{"index":0,"delta":{"content":"","tool_calls":[]}}],"usage":null}',
    b"data: " + START + b'"choices":[]}',
    b"data: " + START + b'"choices":[],"usage":null}',
    b"data: " + START + b'"choices":[{"index":0,"delta":{"x":{"choices":[]}}}],"usage":{"prompt_tokens":1}}',
    b'data: {"error":{"message":"no","code":400}}',
    b'data: not JSON "choices":[]',
    b": a comment",
    b"event: ping\ndata: {}",
    b"",
    CONTENT.replace(b"x", b"y" * 2 * HELD_LIMIT),
]
EVENTS = st.lists(st.sampled_from([*OTHERS, USAGE, CONTENT, CONTENT, DONE]), max_size=12)
LINE_ENDS = st.sampled_from([b"\n", b"\r\n"])


def cut(data: bytes, places: list[float]) -> list[bytes]:
    """The same bytes in pieces; a place is a part of the length."""
    edges = [0, *sorted(round(place * len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@settings(deadline=None)
@given(EVENTS, LINE_ENDS, st.lists(st.floats(0, 1), max_size=30), st.booleans())
def test_however_a_stream_is_cut_the_client_gets_every_event_but_the_usage_it_did_not_ask_for(
    events: list[bytes],
    line_end: bytes,
    places: list[float],
    hides: bool,  # noqa: FBT001 - hypothesis fills it in by place
) -> None:
    wire = [event.replace(b"\n", line_end) + 2 * line_end for event in events]
    expected = b"".join(one for one, event in zip(wire, events, strict=True) if not (hides and event == USAGE))
    stream = CompletionStream(hides_usage=hides)
    got = b"".join(stream.feed(chunk) for chunk in cut(b"".join(wire), places))
    assert got + stream.rest() == expected
    assert stream.seen == (DONE in events)
    assert (stream.usage is not None) == (USAGE in events)


@settings(deadline=None)
@given(st.lists(st.sampled_from(OTHERS), max_size=8), st.lists(st.floats(0, 1), max_size=10))
def test_an_event_that_is_whole_never_waits(events: list[bytes], places: list[float]) -> None:
    wire = b"".join(event + b"\n\n" for event in events)
    ends = set(itertools.accumulate((len(event) + 2 for event in events), initial=0))
    stream = CompletionStream(hides_usage=True)
    came = went = 0
    for chunk in cut(wire, places):
        came += len(chunk)
        went += len(stream.feed(chunk))
        assert went >= max(end for end in ends if end <= came)


def test_the_engines_figures_are_read() -> None:
    stream = CompletionStream(hides_usage=True)
    assert stream.feed(CONTENT + b"\n\n" + USAGE + b"\n\n" + DONE + b"\n\n") == CONTENT + b"\n\n" + DONE + b"\n\n"
    assert stream.usage is not None
    assert stream.usage.tokens() == Tokens(prompt=37, generated=3, cached=16)


def test_usage_in_every_event_stays_where_it_was_asked_for() -> None:
    asked = [CONTENT[:-1] + b',"usage":{"prompt_tokens":37,"completion_tokens":%d}}\n\n' % n for n in range(3)]
    stream = CompletionStream(hides_usage=False)
    assert [stream.feed(event) for event in [*asked, USAGE + b"\n\n"]] == [*asked, USAGE + b"\n\n"]


def test_what_is_held_back_has_a_bound() -> None:
    stream = CompletionStream(hides_usage=True)
    sent = sum(len(stream.feed(b"x" * 1000)) for _ in range(1000))
    assert sent >= 1_000_000 - HELD_LIMIT - 1000


@pytest.mark.parametrize("text", [b"", b"data: x", CONTENT, b"data: [DON"])
def test_a_stream_that_breaks_off_has_not_ended_and_its_tokens_are_counted_by_its_events(text: bytes) -> None:
    stream = CompletionStream(hides_usage=True)
    stream.feed(7 * (CONTENT + b"\n\n"))
    stream.feed(text)
    stream.rest()
    assert not stream.seen
    assert stream.counted == 7 + (text == CONTENT)


def test_the_end_marker_counts_without_the_empty_line_after_it() -> None:
    stream = CompletionStream(hides_usage=True)
    assert stream.feed(CONTENT + b"\n\n" + DONE) + stream.rest() == CONTENT + b"\n\n" + DONE
    assert stream.seen
