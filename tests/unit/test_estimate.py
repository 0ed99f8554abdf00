"""What a request may take, guessed from its body."""

import base64
import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.estimate import MEDIA_TOKENS, OUTPUT_TOKENS, estimate
from gateway.types import Estimate

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "x" * 400}]
PROMPT = -(-len(msgspec.json.encode(MESSAGES)) // 4)


def of(path: str = CHAT, **fields: object) -> Estimate:
    return estimate(path, msgspec.json.encode({"model": "m", **fields}), b"application/json")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"max_tokens": 50}),
        (CHAT, {"max_completion_tokens": 50, "max_tokens": 9}),
        (CHAT, {"max_tokens": 10, "n": 5}),
        ("/v1/messages", {"max_tokens": 50}),
        ("/v1/responses", {"max_output_tokens": 50}),
    ],
)
def test_a_request_that_says_how_much_it_asks_for_reserves_that(path: str, fields: dict[str, object]) -> None:
    assert of(path, messages=MESSAGES, **fields) == Estimate(PROMPT + 50, PROMPT + 50, PROMPT)


@pytest.mark.parametrize("most", [None, "50", -1, 0, 1.5, [], {}])
def test_one_that_does_not_reserves_the_usual_output(most: object) -> None:
    assert of(messages=MESSAGES, max_tokens=most) == Estimate(PROMPT, PROMPT + OUTPUT_TOKENS, PROMPT)
    assert of(messages=MESSAGES, max_tokens=most, n=2) == Estimate(PROMPT, PROMPT + 2 * OUTPUT_TOKENS, PROMPT)


def test_routes_without_an_answer_of_a_model_reserve_their_prompt() -> None:
    assert of("/v1/embeddings", input="x" * 398) == Estimate(100, 100, 100)
    assert estimate("/v1/audio/transcriptions", b"--x--", b"multipart/form-data; boundary=x") == Estimate(0, 0)


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
