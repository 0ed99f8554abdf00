"""Dangerous requests never reach an engine, and what an operator allows does."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from gateway.proxy.bulk import LARGE, TEXTS
from tests.support.stack import Stack, chat, running_stack

URL = "http://169.254.169.254/latest/meta-data"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack({"HOSTLER_ALLOW": "vllm_xargs", "HOSTLER_MAX_TOKENS": "1000"}) as started:
        started.endpoint("careful", aliases=["also-careful"])
        started.endpoint("untouched", aliases=["also-untouched"])
        started.endpoint("trusting", allow=["chat_template"])
        yield started


def ask(stack: Stack, name: str, **fields: Any) -> httpx.Response:
    return stack.client.post("/v1/chat/completions", json={**chat(name), **fields})


def test_what_endangers_an_engine_is_refused_before_one_is_even_started(stack: Stack) -> None:
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": URL}}]}
    refused: dict[str, dict[str, Any]] = {
        "chat_template": {"chat_template": "{{ 1 }}"},
        "messages[0].content[0].image_url.url": {"messages": [image]},
        "max_tokens": {"max_tokens": 1001},
        "n": {"n": 1_000_000},
    }
    for name in ("untouched", "also-untouched"):
        for param, fields in refused.items():
            for stream in (False, True):
                answer = ask(stack, name, stream=stream, **fields)
                error = answer.json()["error"]
                assert (answer.status_code, error["param"]) == (400, param), error
                assert "HOSTLER_" in error["message"]
    deep = f'{{"model": "untouched", "messages": {"[" * 100}{"]" * 100}}}'
    answer = stack.client.post("/v1/chat/completions", content=deep)
    assert (answer.status_code, "HOSTLER_MAX_JSON_DEPTH" in answer.text) == (400, True)
    assert stack.status("untouched")["workers"] == []


def test_what_is_allowed_for_one_endpoint_or_for_all_reaches_the_engine(stack: Stack) -> None:
    assert ask(stack, "trusting", chat_template="{{ 1 }}").status_code == 200
    assert ask(stack, "careful", vllm_xargs={"a": 1}).status_code == 200
    assert ask(stack, "careful", chat_template="{{ 1 }}").status_code == 400
    changed = stack.client.patch("/api/endpoints/trusting", json={"allow": []})
    assert changed.status_code == 200, changed.text
    worker = stack.status("trusting")["workers"][0]["id"]
    assert ask(stack, "trusting", chat_template="{{ 1 }}").status_code == 400
    assert ask(stack, "trusting").status_code == 200
    assert stack.status("trusting")["workers"][0]["id"] == worker, "such a change needs no other worker"
    refused = stack.client.patch("/api/endpoints/trusting", json={"allow": ["everything"]})
    assert (refused.status_code, "everything" in refused.text) == (400, True)


def test_an_ordinary_client_notices_nothing(stack: Stack) -> None:
    with openai.OpenAI(base_url=f"{stack.address}/v1", api_key=stack.key, max_retries=0, timeout=30) as client:
        answer = client.chat.completions.create(
            model="careful",
            messages=[{"role": "user", "content": [{"type": "text", "text": f"what is at {URL}?"}]}],
            max_tokens=8,
            temperature=0.5,
            stop=["\n\n"],
            tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            extra_body={"chat_template_kwargs": {"enable_thinking": False}},
        )
        assert answer.choices[0].message.content
        with pytest.raises(openai.BadRequestError, match="HOSTLER_ALLOW=chat_template"):
            client.chat.completions.create(
                model="careful", messages=[{"role": "user", "content": "a"}], extra_body={"chat_template": "x"}
            )


def test_a_large_body_is_read_like_any_other_and_one_of_too_many_texts_is_refused(stack: Stack) -> None:
    made = stack.client.post("/api/keys", json={"name": "large", "limits": {"tokens_per_minute": 10_000_000}}).json()
    headers = {"authorization": f"Bearer {made['key']}"}
    question = chat("also-careful", stream=True) | {"metadata": {"large": "a" * LARGE}}
    answer = stack.client.post("/v1/chat/completions", json=question, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.text.rstrip().endswith("[DONE]")
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 10_000_000
    question["messages"] = [{"role": "user", "content": ["a"] * (2 * TEXTS)}]
    answer = stack.client.post("/v1/chat/completions", json=question, headers=headers)
    assert (answer.status_code, f"more than {TEXTS} texts" in answer.text) == (400, True)
    answer = stack.client.post("/v1/chat/completions", json=question | {"model": "a" * LARGE, "messages": []})
    assert answer.status_code == 404
