"""What a request may take, guessed from its body."""

import base64
import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.proxy.bulk import LARGE
from gateway.proxy.estimate import (
    LONG_TOKENS,
    MEDIA_TOKENS,
    OUTPUT_TOKENS,
    SHORT_TOKENS,
    TEMPLATE_TOKENS,
    _counted,
    _prompt_tokens,
    estimate,
)
from gateway.proxy.peek import peek
from gateway.types import Estimate

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "x" * 400}]
PROMPT = -(-len(msgspec.json.encode(MESSAGES)) // 4)


def first(guess: Estimate) -> tuple[int, int, int]:
    return guess.least, guess.likely, guess.prompt


def of(path: str = CHAT, **fields: object) -> Estimate:
    return estimate(path, peek(msgspec.json.encode({"model": "m", **fields}), b"application/json"))


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"max_tokens": 50}),
        (CHAT, {"max_completion_tokens": 50, "max_tokens": 9}),
        (CHAT, {"max_tokens": 10, "n": 5}),
        (CHAT, {"max_tokens": "50", "n": 1.0}),
        (CHAT, {"max_tokens": 50, "max_output_tokens": 1, "best_of": 1}),
        ("/v1/completions", {"max_tokens": 10, "n": 2, "best_of": 5}),
        ("/v1/completions", {"max_tokens": 50, "max_completion_tokens": 1}),
        ("/v1/messages", {"max_tokens": 50}),
        ("/v1/responses", {"max_output_tokens": 50, "max_tokens": 1}),
    ],
)
def test_a_request_that_says_how_much_it_asks_for_reserves_that(path: str, fields: dict[str, object]) -> None:
    assert first(of(path, messages=MESSAGES, **fields)) == (PROMPT + 50, PROMPT + 50, PROMPT)


@pytest.mark.parametrize("most", [None, "many", -1, 0, 1.5, [], {}])
def test_one_that_does_not_reserves_the_usual_output(most: object) -> None:
    assert first(of(messages=MESSAGES, max_tokens=most)) == (PROMPT, PROMPT + OUTPUT_TOKENS, PROMPT)
    assert first(of(messages=MESSAGES, max_tokens=most, n=2)) == (PROMPT, PROMPT + 2 * OUTPUT_TOKENS, PROMPT)


@pytest.mark.parametrize(
    ("prompt", "how_many", "tokens"),
    [
        ("x" * 398, 1, 100),
        (["x" * 97, "x" * 97], 2, 51),
        ([[1, 2, 3], [4, 5]], 2, 5),
        (list(range(1_000)), 1, 1_000),
        ([[7] * 50], 1, 50),
        (["one"], 1, 2),
        ([], 1, 1),
    ],
)
def test_each_prompt_of_a_list_asks_for_an_answer_and_tokens_are_counted_as_such(
    prompt: object, how_many: int, tokens: int
) -> None:
    asks = tokens + how_many * 3 * 10
    assert first(of("/v1/completions", prompt=prompt, max_tokens=10, n=3)) == (asks, asks, tokens)
    assert first(of("/v1/embeddings", input=prompt)) == (tokens, tokens, tokens)
    # vLLM's own default, and nothing known where it is switched off
    assert of("/v1/completions", prompt=prompt).likely == tokens + how_many * SHORT_TOKENS
    assert of("/v1/completions", prompt=prompt, max_tokens=None).likely == tokens + how_many * OUTPUT_TOKENS


LISTS = st.lists(st.text(st.sampled_from('a,"\\[{'), max_size=5) | st.lists(st.integers(0, 9), max_size=3), min_size=1)


@given(LISTS | st.lists(st.fixed_dictionaries({"a": LISTS}), min_size=1))
def test_the_entries_of_a_large_list_are_counted_without_building_them(entries: list[object]) -> None:
    assert _counted(msgspec.json.format(msgspec.json.encode(entries), indent=1)) == len(entries)


def test_a_large_list_counts_like_a_small_one() -> None:
    texts = ["x" * 97, 'x"' * 20_000] * 40
    small, large = (of("/v1/completions", prompt=[*texts, text], max_tokens=10) for text in ("y", "y " * LARGE))
    assert small.least - small.prompt == large.least - large.prompt == 81 * 10


def test_what_it_hardly_takes_more_than_is_told_beside() -> None:
    dense = 2 * PROMPT + TEMPLATE_TOKENS
    assert of(messages=MESSAGES, max_tokens=50, n=2).most == dense + 100
    assert of(messages=MESSAGES, n=2).most == dense + 2 * LONG_TOKENS
    assert of("/v1/embeddings", input=MESSAGES).most == dense


def test_a_query_counts_with_each_document_and_of_two_lists_each_text_once() -> None:
    query, documents = "q" * 38, ["d" * 37] * 10
    assert of("/v1/rerank", query=query, documents=documents).least == 10 * 10 + 101
    assert of("/v1/score", text_1=query, text_2=documents).least == 10 * 10 + 101
    assert of("/v1/score", text_1=documents, text_2=documents).least == 2 * 101
    assert of("/v1/score", queries=query, items=documents).least == 10 * 10 + 101


def test_what_would_be_generated_behind_the_requests_back_is_refused() -> None:
    with pytest.raises(BadRequest) as caught:
        of("/v1/responses", input="x", background=True)
    assert caught.value.param == "background"
    assert of("/v1/responses", input="x", background=False).least == 1


def test_routes_without_an_answer_of_a_model_reserve_their_prompt() -> None:
    assert first(of("/v1/embeddings", input="x" * 398)) == (100, 100, 100)
    form = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--x--'
    assert estimate("/v1/audio/transcriptions", peek(form, b"multipart/form-data; boundary=x")) == Estimate(0, 0)


def test_an_image_or_a_sound_counts_as_one_and_not_by_its_bytes() -> None:
    data = base64.b64encode(os.urandom(300_000)).decode()
    content = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
    ]
    least = of(messages=[{"role": "user", "content": content}], max_tokens=1).least
    assert 2 * MEDIA_TOKENS < least < 2 * MEDIA_TOKENS + 100


@given(st.dictionaries(st.sampled_from(["max_tokens", "n", "max_output_tokens"]), st.integers() | st.text()))
def test_whatever_is_asked_for_the_sum_fits_into_the_database(fields: dict[str, object]) -> None:
    guess = of(CHAT, messages=MESSAGES, **fields)
    assert 0 < guess.least <= guess.likely <= 2**40


PROMPTS = ("messages", "tools", "prompt", "input", "system", "instructions", "documents", "text_1", "queries", "items")
CONTENTS = st.none() | st.lists(st.integers(0, 99)) | st.lists(st.fixed_dictionaries({"content": st.text()}))


@given(st.dictionaries(st.sampled_from(PROMPTS), CONTENTS, max_size=3), CONTENTS, st.integers(0, 6_000))
def test_a_plain_chat_counts_as_all_else_does(fields: dict[str, object], messages: object, more: int) -> None:
    for body in ({"messages": messages}, {"messages": [{"content": "x" * more}]}, {"messages": messages, **fields}):
        read = peek(msgspec.json.encode({"model": "m", **body}), b"application/json")
        assert estimate(CHAT, read).prompt == _prompt_tokens(read.fields)
