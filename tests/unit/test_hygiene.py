"""What a request may not ask of an engine: each field by a rule, each refusal with the field and what to set."""

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.proxy import hygiene
from gateway.proxy.hygiene import Hygiene, Limits
from gateway.proxy.peek import COMMON, ROUTING, WATCHED, Fields, peek
from gateway.types import Allowable

CHAT, RESPONSES, SCORE = "/v1/chat/completions", "/v1/responses", "/v1/score"
JSON_TYPE = b"application/json"
LIMITS = Limits(n=8, logprobs=20, tokens=0, schema_kib=4, depth=64, media=10)
HTTP, DATA = "http://169.254.169.254/latest", "data:image/png;base64,AAAA"
MANY_FRAMES = "data:video/jpeg;base64," + "AAAA," * 100


def check(body: Any, path: str = CHAT, limits: Limits = LIMITS, allow: tuple[Allowable, ...] = ()) -> None:
    text = body if isinstance(body, bytes) else json.dumps({"model": "m", **body}).encode()
    Hygiene(limits).check(peek(text, JSON_TYPE), text, path, allow)


def refusal(body: Any, path: str = CHAT, limits: Limits = LIMITS) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        check(body, path, limits)
    return caught.value


def user(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "before"}, {"role": "user", "content": list(parts)}]}


NEEDS_LEAVE = [
    ("chat_template", {"chat_template": "{{ 1 }}"}, "chat_template"),
    ("chat_template_kwargs.tokenize", {"chat_template_kwargs": {"tokenize": True}}, "chat_template"),
    ("chat_template_kwargs.chat_template", {"chat_template_kwargs": {"chat_template": "x"}}, "chat_template"),
    ("chat_template_kwargs.x", {"chat_template_kwargs": {"x": [1]}}, "chat_template_kwargs"),
    ("chat_template_kwargs.x", {"chat_template_kwargs": {"x": "y" * 2000}}, "chat_template_kwargs"),
    ("prompt_embeds", {"prompt_embeds": "AAAA"}, "embeds"),
    ("mm_processor_kwargs", {"mm_processor_kwargs": {"size": 1}}, "mm_processor_kwargs"),
    ("media_io_kwargs", {"media_io_kwargs": {"video": {"num_frames": -1}}}, "mm_processor_kwargs"),
    ("kv_transfer_params", {"kv_transfer_params": {"remote_host": "h"}}, "transfer_params"),
    ("ec_transfer_params", {"ec_transfer_params": {}}, "transfer_params"),
    ("vllm_xargs", {"vllm_xargs": {"a": 1}}, "vllm_xargs"),
    ("logits_processors", {"logits_processors": ["os.system"]}, "logits_processors"),
    ("lora_path", {"lora_path": "/etc"}, "lora_path"),
    ("lora_request", {"lora_request": {"path": "/etc"}}, "lora_path"),
    ("guided_grammar", {"guided_grammar": "root ::= root"}, "grammar"),
    ("structural_tag", {"structural_tag": "{}"}, "grammar"),
    ("structured_outputs", {"structured_outputs": {"grammar": "root ::= root"}}, "grammar"),
    ("structured_outputs", {"structured_outputs": {"structural_tag": "{}"}}, "grammar"),
    ("response_format", {"response_format": {"type": "structural_tag", "format": {}}}, "grammar"),
    ("prompt_logprobs", {"prompt_logprobs": 1}, "prompt_logprobs"),
    ("echo", {"echo": True, "logprobs": 1}, "prompt_logprobs"),
    ("echo", {"echo": True, "logprobs": True, "top_logprobs": 2}, "prompt_logprobs"),
]
PARTS = [
    ("image_url.url", {"type": "image_url", "image_url": {"url": HTTP}}, "media_urls"),
    ("image_url", {"type": "image_url", "image_url": HTTP}, "media_urls"),
    ("image_url", {"image_url": HTTP, "uuid": "1"}, "media_urls"),
    ("image_url.url", {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "media_urls"),
    ("image_url.url", {"type": "image_url", "image_url": {"url": " data:image/png,"}}, "media_urls"),
    ("audio_url.url", {"type": "audio_url", "audio_url": {"url": HTTP}}, "media_urls"),
    ("video_url.url", {"type": "video_url", "video_url": {"url": HTTP}}, "media_urls"),
    ("image_url", {"type": "input_image", "image_url": HTTP}, "media_urls"),
    ("file_url", {"type": "input_file", "file_url": HTTP}, "media_urls"),
    ("source.url", {"type": "image", "source": {"type": "url", "url": HTTP}}, "media_urls"),
    ("image_embeds", {"type": "image_embeds", "image_embeds": "AAAA"}, "embeds"),
    ("audio_embeds", {"audio_embeds": {"a": "AAAA"}}, "embeds"),
    ("image_embeds", {"type": "prompt_embeds", "data": "AAAA"}, "embeds"),
    (
        "content[0].source.url",
        {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": HTTP}}]},
        "media_urls",
    ),
]


@pytest.mark.parametrize(("param", "fields", "allowable"), NEEDS_LEAVE)
def test_a_field_that_endangers_an_engine_needs_leave(param: str, fields: dict[str, Any], allowable: str) -> None:
    refused = refusal(fields)
    assert refused.param == param
    assert f'"allow": ["{allowable}"]' in refused.message
    assert f"HOSTLER_ALLOW={allowable}" in refused.message
    check(fields, allow=(Allowable(allowable),))
    check(fields, limits=LIMITS._replace(allow=frozenset({Allowable(allowable)})))
    if "." not in param and param != "echo":
        check({param: None})


@pytest.mark.parametrize(("param", "part", "allowable"), PARTS)
def test_content_that_an_engine_would_fetch_or_trust_needs_leave(
    param: str, part: dict[str, Any], allowable: str
) -> None:
    text = {"type": "text", "text": "what is this?"}
    for body, path, where in (
        (user(text, part), CHAT, "messages[1].content[1]"),
        (user(text, text, part), "/tokenize", "messages[1].content[2]"),
        ({"input": user(part)["messages"]}, RESPONSES, "input[1].content[0]"),
        ({"input": [{"type": "function_call_output", "output": [part]}]}, RESPONSES, "input[0].output[0]"),
        ({"data_1": {"content": [part]}}, SCORE, "data_1[0].content[0]"),
        ({"documents": ["text", {"content": [part]}]}, "/v1/rerank", "documents[1].content[0]"),
    ):
        refused = refusal(body, path)
        assert refused.param == f"{where}.{param}"
        assert f"HOSTLER_ALLOW={allowable}" in refused.message
        check(body, path, allow=(Allowable(allowable),))


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": [{"role": "user", "content": "see http://x, `{[` and image_url"}], "max_tokens": 10**6},
        user({"type": "image_url", "image_url": {"url": DATA}}, {"type": "text", "text": HTTP}),
        user(*[{"type": "image_url", "image_url": {"url": DATA}}] * 10),
        user({"type": "image_url", "image_url": {"url": "DATA:image/png,"}}),
        user({"type": "image_url", "image_url": None, "uuid": "1"}),
        user({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
        user({"type": "image", "source": {"type": "base64", "data": "AAAA"}}),
        user({"type": "video_url", "video_url": {"url": "data:video/jpeg;base64,AAAA,BBBB"}}),
        user({"type": "tool_use", "name": "browse", "input": {"image_url": HTTP}}),
        user("text"),
        {"input": "text", "prompt": [1, 2, 3]},
        {"n": 8, "best_of": None, "logprobs": True, "top_logprobs": 20, "max_tokens": "16", "top_k": -1},
        {"logprobs": 5, "echo": False},
        {"echo": True},
        {"chat_template_kwargs": {"enable_thinking": False, "effort": "low"}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"pattern": "^[a-z]{1,64}$"}}}]},
        {"tools": [{"function": {"parameters": {"properties": {"image_url": {"type": "string"}}}}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}},
        {"structured_outputs": {"regex": r"\d{4}-\d{2}-\d{2}", "choice": ["a"]}},
        {"guided_json": '{"type": "object"}'},
        {"stop": ["\n"], "logit_bias": {"1": 1}},
        {"text_1": "a", "text_2": ["b", "c"], "documents": [{"title": "t", "text": "x"}]},
        {"queries": [[1, 2], [3]]},
    ],
)
@pytest.mark.parametrize("path", [CHAT, RESPONSES, "/v1/embeddings", SCORE])
def test_what_everybody_sends_is_taken(fields: dict[str, Any], path: str) -> None:
    check(fields, path)


@pytest.mark.parametrize(
    ("param", "fields", "words"),
    [
        ("n", {"n": 9}, "HOSTLER_MAX_N"),
        ("n", {"n": "9"}, "at most 8"),
        ("n", {"n": 9.0}, "at most 8"),
        ("n", {"n": 10**30}, "at most 8"),
        ("best_of", {"best_of": 100}, "HOSTLER_MAX_N"),
        ("logprobs", {"logprobs": 21}, "HOSTLER_MAX_LOGPROBS"),
        ("top_logprobs", {"logprobs": True, "top_logprobs": -1}, "negative"),
        ("max_tokens", {"max_tokens": 2**31}, "at most"),
        ("top_k", {"top_k": 10**12}, "at most"),
        ("tools", {"tools": [{"description": "x" * 5000}]}, "HOSTLER_MAX_SCHEMA_KIB"),
        ("response_format", {"response_format": {"x": "x" * 5000}}, "4 KiB"),
        ("stop", {"stop": ["x" * 70_000]}, "64 KiB"),
        ("logit_bias", {"logit_bias": {str(one): 1 for one in range(10_000)}}, "64 KiB"),
        ("guided_regex", {"guided_regex": "a{1,2000}"}, "1000"),
        ("structured_outputs", {"structured_outputs": {"regex": "((a{100}){100}){100}"}}, "in each other"),
        ("structured_outputs", {"structured_outputs": {"json": '{"pattern": "a{5000}"}'}}, "1000"),
        ("structured_outputs", {"structured_outputs": {"json": "[" * 70 + "]" * 70}}, "deep"),
        ("guided_json", {"guided_json": '{"pattern": "a{5000}"}'}, "1000"),
        ("tools", {"tools": [{"function": {"parameters": {"p": {"pattern": "a{99999999999999}"}}}}]}, "1000"),
        ("tools", {"tools": [{"patternProperties": {"a{5000}": {}}}]}, "1000"),
        ("tools[0].server_url", {"tools": [{"type": "mcp", "server_url": HTTP}]}, "media_urls"),
        ("messages[1].content[0].video_url.url", user({"video_url": {"url": MANY_FRAMES}}), "64"),
        ("messages", {"messages": [["no", "message"]]}, "objects"),
        ("messages", user(*[{"type": "image_url", "image_url": {"url": DATA}}] * 11), "HOSTLER_MAX_MEDIA"),
        ("messages", {"messages": user(*[{"source": {"data": "AAAA"}}] * 6)["messages"] * 2}, "HOSTLER_MAX_MEDIA"),
        ("messages", user(*[{"type": "input_audio", "input_audio": {"data": "AAAA"}}] * 11), "HOSTLER_MAX_MEDIA"),
        ("documents", {"documents": [{"content": [{"image_url": DATA}]}] * 11}, "HOSTLER_MAX_MEDIA"),
    ],
)
def test_what_is_too_much_is_refused_with_its_limit(param: str, fields: dict[str, Any], words: str) -> None:
    refused = refusal(fields)
    assert words in refused.message
    assert refused.param == (None if words == "deep" else param)


def test_a_limit_on_tokens_counts_whatever_the_field_is_called() -> None:
    limited = LIMITS._replace(tokens=100)
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens"):
        assert "HOSTLER_MAX_TOKENS" in refusal({name: 101}, limits=limited).message
        check({name: 100}, limits=limited)


@pytest.mark.parametrize(
    "body",
    [
        rb'{"model": "m", "chat_templ\u0061te": "x"}',
        rb'{"model": "m", "\u0063hat_template": "x", "messages": []}',
        rb'{"model": "m", "chat_template": null, "chat_template": "x"}',
        rb'{"model": "m", "chat_template": null, "chat_templat\u0065": "x"}',
        rb'{"model": "m", "messages": [], "messages": [{"content": [{"im\u0061ge_url": "http:\/\/x"}]}]}',
        rb'{"model": "m", "messages": [{"content": "a", "content": [{"image_url": {"\u0075rl": "http://x"}}]}]}',
        rb'{"model": "m", "messages": [{"content": [{"type": "prompt\u005fembeds", "data": "x"}]}]}',
        rb'{"model": "m", "messages": [{"content": [{"image_url": "\u0068ttp://x"}]}]}',
        rb'{"model": "m", "tools": [{"server\u005furl": "http://x"}]}',
        rb'{"model": "m", "tools": [{"p\u0061ttern": "a{5000}"}]}',
        rb'{"model": "m", "n": 1, "n": 1e30}',
        rb'{"model": "m", "n": 1e400}',
    ],
)
def test_neither_escapes_nor_a_second_field_of_the_same_name_hide_anything(body: bytes) -> None:
    with pytest.raises(BadRequest):
        check(body)


def test_of_a_field_that_stands_there_twice_the_last_one_counts() -> None:
    check(b'{"model": "m", "chat_template": "x", "chat_template": null}')


def test_every_field_that_is_watched_has_a_rule_and_every_rule_a_field() -> None:
    rules = {*hygiene.REFUSED, *hygiene.COUNTS, *hygiene.SCHEMAS, *hygiene.LISTS, *hygiene.CONTENTS}
    assert rules | {"chat_template_kwargs", "background", "echo", "previous_response_id"} == set(WATCHED)
    assert Fields.__struct_fields__[ROUTING:COMMON] == (
        "max_tokens",
        "max_completion_tokens",
        "n",
        "stop",
        "tools",
        "response_format",
    )


def test_forms_have_the_same_rules() -> None:
    def form(name: str, value: str) -> bytes:
        parts = {"model": "m", name: value}
        return (
            b"".join(
                f'--b\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{text}\r\n'.encode()
                for key, text in parts.items()
            )
            + b"--b--\r\n"
        )

    kind = b"multipart/form-data; boundary=b"
    checker = Hygiene(LIMITS)
    for name, value in (("n", "9"), ("vllm_xargs", '{"a": 1}'), ("vllm_xargs", "not json")):
        body = b"\r\n" + form(name, value)
        with pytest.raises(BadRequest):
            checker.check(peek(body, kind), body, "/v1/audio/transcriptions", ())
    body = b"\r\n" + form("n", "2")
    checker.check(peek(body, kind), body, "/v1/audio/transcriptions", ())


NAMES = st.sampled_from(
    [*WATCHED, "messages", "input", "content", "image_url", "source", "url", "type", "json", "regex"]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(NAMES, ANYTHING, max_size=6), st.sampled_from([CHAT, RESPONSES, SCORE]))
def test_any_body_is_taken_or_refused_and_nothing_else(fields: dict[str, Any], path: str) -> None:
    body = msgspec.json.encode({**fields, "model": "m"})
    with contextlib.suppress(BadRequest):
        Hygiene(LIMITS).check(peek(body, JSON_TYPE), body, path, ())
