"""The usage that engines tell, found in the bytes of every dialect however they are cut."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.dialects import ANTHROPIC, RESPONSES, StreamEnd
from gateway.proxy.meter import CAPTURED, OBJECT, BodyMeter, Meter, Tokens, tokens, usage_object

# as vLLM 0.32 writes them
CHAT = (
    b'{"id":"chatcmpl-1","choices":[{"message":{"content":"\\"usage\\":{\\"prompt_tokens\\":9}"}}],"usage":'
    b'{"prompt_tokens":37,"total_tokens":40,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":16,'
    b'"created_cache_tokens":0,"multimodal_tokens":null},"completion_tokens_details":null},"prompt_logprobs":null}'
)
LONG_AFTER = CHAT[:-1] + b',"prompt_token_ids":[' + b"1," * 20_000 + b"1]}"
EMBEDDING = (
    b'{"data":[],"usage":{"prompt_tokens":7,"total_tokens":7,"completion_tokens":0,"prompt_tokens_details":null}}'
)
RESPONSE = (
    b'{"id":"resp_1","usage":{"input_tokens":26,"input_tokens_details":{"cached_tokens":16,"cache_write_tokens":0,'
    b'"input_tokens_per_turn":[]},"output_tokens":3,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":29},'
    b'"user":null}'
)
MESSAGE = (
    b'{"type":"message","usage":{"input_tokens":21,"output_tokens":3,"cache_creation_input_tokens":0,'
    b'"cache_read_input_tokens":16}}'
)
SPEECH = b'{"text":"so it is","usage":{"type":"duration","seconds":4}}'
RESPONSE_STREAM = (
    b'event: response.created\ndata: {"response":{"usage":null}}\n\n'
    b'event: response.output_text.delta\ndata: {"delta":"a"}\n\n'
    b'event: response.output_text.delta\ndata: {"delta":"b"}\n\n'
    b'event: response.completed\ndata: {"response":' + RESPONSE + b"}\n\n"
)
MESSAGE_STREAM = (
    b'event: message_start\ndata: {"message":{"usage":{"input_tokens":37,"output_tokens":0}}}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta"}}\n\n'
    b'event: message_delta\ndata: {"usage":{"input_tokens":21,"output_tokens":3,"cache_read_input_tokens":16}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)


@pytest.mark.parametrize(
    ("meter", "answer", "expected"),
    [
        (BodyMeter, CHAT, Tokens(37, 3, 16)),
        (BodyMeter, LONG_AFTER, Tokens(37, 3, 16)),
        (BodyMeter, EMBEDDING, Tokens(7)),
        (BodyMeter, RESPONSE, Tokens(26, 3, 16)),
        (BodyMeter, MESSAGE, Tokens(37, 3, 16)),
        (BodyMeter, SPEECH, Tokens()),
        (lambda: StreamEnd(RESPONSES), RESPONSE_STREAM, Tokens(26, 3, 16)),
        (lambda: StreamEnd(ANTHROPIC), MESSAGE_STREAM, Tokens(37, 3, 16)),
        (BodyMeter, b'{"error":{"message":"no"}}', Tokens()),
        (BodyMeter, b'{"usage":{"prompt_tokens":-1}}', Tokens()),
        (BodyMeter, b'{"usage":{"prompt_tokens":99999999999999999999}}', Tokens()),
        (BodyMeter, b'{"usage":{"prompt_tokens":1', Tokens()),
        (BodyMeter, b'{"usage":' + b"{" * 2 * CAPTURED, Tokens()),
    ],
    ids=lambda value: value[:30] if isinstance(value, bytes) else "",
)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_what_an_engine_tells_is_found_however_its_answer_is_cut(
    meter: Callable[[], BodyMeter | StreamEnd], answer: bytes, expected: Tokens, places: list[float]
) -> None:
    seen = meter()
    edges = [0, *sorted(round(place * len(answer)) for place in places), len(answer)]
    passed = b"".join(seen.feed(answer[start:end]) for start, end in itertools.pairwise(edges))
    assert passed + (seen.rest() if isinstance(seen, StreamEnd) else b"") == answer
    assert tokens(seen, 1000) == expected


def broken(dialect_stream: bytes, meter: StreamEnd) -> Meter:
    meter.feed(dialect_stream)
    return meter


def test_a_stream_that_breaks_off_is_estimated_by_its_events_and_its_prompts_bytes() -> None:
    cut = RESPONSE_STREAM[: RESPONSE_STREAM.index(b"event: response.completed")]
    assert tokens(broken(cut, StreamEnd(RESPONSES)), 1001) == Tokens(251, 2, 0, estimated=True)


def test_a_message_that_breaks_off_has_told_its_prompt_and_its_events_are_counted() -> None:
    cut = MESSAGE_STREAM[: MESSAGE_STREAM.index(b"event: message_delta")]
    assert tokens(broken(cut, StreamEnd(ANTHROPIC)), 1001) == Tokens(37, 1, 0, estimated=True)


def test_what_no_engine_answered_took_nothing() -> None:
    assert tokens(None, 1000) == Tokens()


@given(st.text('{} "a,', max_size=20))
def test_a_flat_object_is_found_without_a_search_and_is_the_same(text: str) -> None:
    found = text.encode()
    match = OBJECT.match(found)
    assert usage_object(found) == (match and match[1])
