import asyncio
import json
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest

from tests.engine_simulator.command_line import known_flags
from tests.engine_simulator.configuration import Simulation
from tests.support.adapters import adapter_folder
from tests.support.processes import accepts_connections, short_folder
from tests.support.simulated_engine import SimulatedEngine, running_engine
from tests.support.waiting import wait_until
from worker_manager.engine_flags import ENGINE_FLAGS

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Tell me of the sea."}]}
SLOW = Simulation(ttft_seconds=0.0, tokens_per_second=20.0, answer_tokens=2000)


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as made:
        yield made


@pytest.fixture
def engine(folder: Path) -> Iterator[SimulatedEngine]:
    with running_engine(folder, names=("demo", "demo-alias")) as started:
        yield started


@pytest.fixture
def client(engine: SimulatedEngine) -> Iterator[httpx.Client]:
    with engine.client() as made:
        yield made


@pytest.fixture
def openai_client(client: httpx.Client) -> openai.OpenAI:
    return official(client)


@pytest.fixture
async def async_openai_client(engine: SimulatedEngine) -> AsyncIterator[openai.AsyncOpenAI]:
    async with engine.async_client() as http:
        # as in `official`
        yield openai.AsyncOpenAI(
            api_key="none", base_url="http://engine/v1", http_client=cast("Any", http), max_retries=0
        )


def official(client: httpx.Client) -> openai.OpenAI:
    """The openai client over ours; its newer versions take httpx clients too, and are annotated for httpx2 only."""
    return openai.OpenAI(api_key="none", base_url="http://engine/v1", http_client=cast("Any", client), max_retries=0)


def chat(client: httpx.Client, **more: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", json={**CHAT, **more})


def test_the_openai_client_gets_a_chat_completion(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Hello"}], max_tokens=5
    )
    assert answer.usage is not None
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5
    assert len((answer.choices[0].message.content or "").split()) == 5


def test_the_openai_client_gets_a_chat_stream_with_usage(openai_client: openai.OpenAI) -> None:
    stream = openai_client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "Hello"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 16


async def test_the_async_openai_client_gets_a_stream_that_says_what_the_whole_answer_says(
    async_openai_client: openai.AsyncOpenAI,
) -> None:
    asked: Any = {"model": "demo-alias", "messages": [{"role": "user", "content": "Hello"}]}
    whole = await async_openai_client.chat.completions.create(**asked)
    stream = await async_openai_client.chat.completions.create(**asked, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_an_answer_that_is_held_ends_once_it_is_let_go(
    engine: SimulatedEngine, client: httpx.Client, *, stream: bool
) -> None:
    engine.order(Simulation(hold=["of the sea"]))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(chat, client, stream=stream)
        wait_until(lambda: engine.stats()["live"] == 1, "it is on its way")
        with engine.client() as other:
            assert other.post("/v1/completions", json={"model": "demo", "prompt": "of the land"}).status_code == 200
        assert engine.stats()["live"] == 1
        engine.order(Simulation())
        assert answer.result(10).status_code == 200


def test_the_openai_client_gets_completions_and_models(openai_client: openai.OpenAI) -> None:
    answer = openai_client.completions.create(model="demo", prompt="Once", max_tokens=4)
    assert len(answer.choices[0].text.split()) == 4
    pieces = openai_client.completions.create(model="demo", prompt="Once", max_tokens=4, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text
    assert [model.id for model in openai_client.models.list()] == ["demo", "demo-alias"]


def test_the_openai_client_gets_responses_and_finds_them_again(openai_client: openai.OpenAI) -> None:
    answer = openai_client.responses.create(model="demo", input="Hello")
    assert len(answer.output_text.split()) == 16
    assert openai_client.responses.retrieve(answer.id).output_text == answer.output_text
    events = list(openai_client.responses.create(model="demo", input="Hello", stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == answer.output_text


def test_messages_speak_the_dialect_of_anthropic(client: httpx.Client) -> None:
    asked = {"model": "demo", "max_tokens": 3, "messages": [{"role": "user", "content": "Hello"}]}
    whole = client.post("/v1/messages", json=asked).json()
    assert whole["type"] == "message"
    assert whole["stop_reason"] == "max_tokens"
    lines = client.post("/v1/messages", json={**asked, "stream": True}).text.splitlines()
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert names == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    counted = client.post("/v1/messages/count_tokens", json=asked).json()
    assert counted["input_tokens"] == whole["usage"]["input_tokens"]
    refused = client.post("/v1/messages", json={**asked, "model": "other"})
    assert (refused.status_code, refused.json()["type"]) == (404, "error")


def test_text_survives_tokenize_and_detokenize(client: httpx.Client) -> None:
    tokens = client.post("/tokenize", json={"model": "demo", "prompt": "Grüße, world"}).json()["tokens"]
    assert client.post("/detokenize", json={"model": "demo", "tokens": tokens}).json() == {"prompt": "Grüße, world"}


def test_speech_takes_a_form_and_answers_text(openai_client: openai.OpenAI) -> None:
    answer = openai_client.audio.transcriptions.create(model="demo", file=("a.wav", b"RIFF\r\n--\x00" * 50))
    assert len(answer.text.split()) == 16


def test_an_embedding_engine_answers_the_pooling_routes(folder: Path) -> None:
    with running_engine(folder, Simulation(kind="embed", dimensions=4)) as engine, engine.client() as client:
        openai_client = official(client)
        # the client asks for base64 by itself
        vectors = openai_client.embeddings.create(model="demo", input=["one", "two"]).data
        plain = client.post("/v1/embeddings", json={"model": "demo", "input": "one"}).json()["data"][0]["embedding"]
        assert [len(vector.embedding) for vector in vectors] == [4, 4]
        assert vectors[0].embedding == pytest.approx(plain, abs=1e-6)
        ranked = client.post("/v1/rerank", json={"model": "demo", "query": "q", "documents": ["a", "b", "c"]}).json()
        scores = [result["relevance_score"] for result in ranked["results"]]
        assert scores == sorted(scores, reverse=True)
        scored = client.post("/v1/score", json={"model": "demo", "text_1": "q", "text_2": ["a", "b"]}).json()
        assert len(scored["data"]) == 2
        classes = client.post("/classify", json={"model": "demo", "input": ["a"]}).json()["data"]
        assert sum(classes[0]["probs"]) == pytest.approx(1.0)
        assert client.post("/pooling", json={"model": "demo", "input": "a"}).json()["data"][0]["object"] == "pooling"
        assert chat(client).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/v1/chat/completions", b'{"model": "demo", "messages": [', 400),
        ("POST", "/v1/chat/completions", b'{"model": "demo"}', 400),
        ("POST", "/v1/chat/completions", b'{"model": "demo", "messages": "hello"}', 400),
        ("POST", "/v1/chat/completions", b'["no object"]', 400),
        ("POST", "/v1/chat/completions", b'{"model": "x", "messages": [{"role": "user", "content": "a"}]}', 404),
        ("POST", "/v1/completions", b'{"model": "demo", "prompt": "a", "max_tokens": 0}', 400),
        ("POST", "/v1/completions", b'{"model": "demo", "prompt": "a", "max_tokens": 1000000}', 400),
        ("GET", "/v1/chat/completions", b"", 405),
        ("GET", "/no/such/route", b"", 404),
        ("GET", "/v1/responses/resp_none", b"", 404),
        ("POST", "/sleep", b"", 404),
    ],
)
def test_bad_input_gets_the_status_and_error_body_of_vllm(
    client: httpx.Client, method: str, path: str, content: bytes, status: int
) -> None:
    answer = client.request(method, path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == status


def test_an_unknown_model_is_named_with_the_names_that_are_served(client: httpx.Client) -> None:
    error = chat(client, model="nope").json()["error"]
    assert error["message"] == "The model `nope` does not exist. Valid aliases: demo, demo-alias."
    assert error["type"] == "NotFoundError"


def test_the_same_prompt_and_seed_give_the_same_answer_in_another_process(folder: Path) -> None:
    answers = []
    for seed, name in ((1, "a"), (1, "b"), (2, "c")):
        (folder / name).mkdir()
        with running_engine(folder / name, Simulation(seed=seed)) as engine, engine.client() as client:
            answers.append(chat(client).json()["choices"][0]["message"]["content"])
    assert answers[0] == answers[1] != answers[2]


def test_a_prompt_seen_before_hits_the_prefix_cache(engine: SimulatedEngine, client: httpx.Client) -> None:
    prompt = "A long beginning that two prompts share, again and again. " * 20
    first = client.post("/v1/completions", json={"model": "demo", "prompt": f"{prompt}One?"}).json()["usage"]
    second = client.post("/v1/completions", json={"model": "demo", "prompt": f"{prompt}Two?"}).json()["usage"]
    assert first["prompt_tokens_details"] is None
    cached = second["prompt_tokens_details"]["cached_tokens"]
    assert cached % 16 == 0
    assert 0.9 * second["prompt_tokens"] < cached < second["prompt_tokens"]
    assert engine.stats()["prefix_cache_hits"] == cached
    assert f'vllm:prefix_cache_hits_total{{engine="0",model_name="demo"}} {cached}.0' in client.get("/metrics").text


def test_metrics_count_tokens_in_the_names_of_vllm(client: httpx.Client) -> None:
    chat(client, max_tokens=7)
    text = client.get("/metrics").text
    assert 'vllm:generation_tokens_total{engine="0",model_name="demo"} 7.0' in text
    assert 'vllm:time_to_first_token_seconds_count{engine="0",model_name="demo"} 1.0' in text
    assert 'vllm:request_success_total{engine="0",model_name="demo",finished_reason="length"} 1.0' in text


def test_forced_usage_is_sent_to_a_client_that_did_not_ask(folder: Path) -> None:
    with running_engine(folder, flags=["--enable-force-include-usage"]) as engine, engine.client() as client:
        events = [line for line in chat(client, stream=True).text.splitlines() if line]
    assert json.loads(events[-2].removeprefix("data: "))["usage"]["completion_tokens"] == 16
    assert events[-1] == "data: [DONE]"


def test_more_requests_than_sequences_wait_for_their_turn(folder: Path) -> None:
    with running_engine(folder, SLOW, flags=["--max-num-seqs", "1"]) as engine:
        with engine.client() as client, client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}):
            with engine.client() as other, other.stream("POST", "/v1/completions", json=_text_stream()):
                assert (engine.stats()["live"], engine.stats()["waiting"]) == (2, 1)
            wait_until(lambda: engine.stats()["waiting"] == 0, "the waiting one's end")
        wait_until(lambda: engine.stats()["aborted"] == 2, "both counted as aborted")


@pytest.mark.parametrize("stream", ["stream", ""], ids=["stream", "whole"])
def test_a_client_that_leaves_is_counted_as_aborted_within_100_ms(folder: Path, stream: str) -> None:
    with running_engine(folder, SLOW) as engine:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(engine.socket))
        body = json.dumps({**CHAT, "stream": bool(stream)}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        client.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + body)
        wait_until(lambda: engine.stats()["live"] == 1, "the generation's start")
        left = time.time()
        client.close()
        stats = wait_until(lambda: (stats := engine.stats())["aborted"] and stats, "the abort")
    assert stats["abort_times"][0] - left < 0.1
    assert (stats["started"], stats["finished"], stats["live"]) == (1, 0, 0)


def test_tokens_arrive_as_they_are_generated(folder: Path) -> None:
    with (
        running_engine(folder, Simulation(tokens_per_second=50, answer_tokens=20)) as engine,
        engine.client() as client,
        client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer,
    ):
        times = [time.monotonic() for line in answer.iter_lines() if line]
    assert len(times) == 23
    assert times[-1] - times[0] > 0.3


def test_term_without_a_grace_ends_streams_and_exits_with_0(folder: Path) -> None:
    with running_engine(folder, SLOW) as engine, engine.client() as client:
        with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            engine.process.signal(signal.SIGTERM)
            assert '"finish_reason":"abort"' in "".join(lines)
        assert engine.process.wait() == 0


def test_term_with_a_grace_lets_streams_end_and_takes_no_new_ones(folder: Path) -> None:
    simulation = Simulation(tokens_per_second=30, answer_tokens=20)
    with running_engine(folder, simulation, flags=["--shutdown-timeout", "20"]) as engine, engine.client() as client:
        with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            engine.process.signal(signal.SIGTERM)
            engine.process.wait_for_output("Shutting down")
            wait_until(lambda: not accepts_connections(engine.socket), "refusal of new connections")
            assert '"finish_reason":"stop"' in "".join(lines)
        assert engine.process.wait() == 0


def test_an_idle_connection_is_closed_after_the_keep_alive_time(folder: Path) -> None:
    environment = {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "0.1"}
    with running_engine(folder, env=environment) as engine, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(engine.socket))
        client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        assert client.recv(1000) == b""


def test_every_flag_an_endpoint_may_set_is_known() -> None:
    assert set(ENGINE_FLAGS) <= set(known_flags())


async def test_two_hundred_streams_at_once_all_end_with_done(engine: SimulatedEngine) -> None:
    async with engine.async_client() as client:

        async def one(number: int) -> bool:
            answer = await client.post("/v1/completions", json=_text_stream(f"Number {number}"))
            return answer.text.endswith("data: [DONE]\n\n")

        assert all(await asyncio.gather(*(one(number) for number in range(200))))
    assert engine.stats()["finished"] == 200


def _text_stream(prompt: str = "Once") -> dict[str, Any]:
    return {"model": "demo", "prompt": prompt, "stream": True}


LORA_FLAGS = ["--enable-lora", "--max-lora-rank=16", "--max-loras=2", "--max-cpu-loras=4"]
RUNTIME_LORA = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}


def test_adapters_are_loaded_asked_and_unloaded_in_vllms_words(folder: Path) -> None:
    red, broken = adapter_folder(folder / "red"), adapter_folder(folder / "broken", rank=64)
    with running_engine(folder, flags=LORA_FLAGS, env=RUNTIME_LORA) as engine, engine.client() as client:

        def tell(verb: str, **body: str) -> tuple[int, str]:
            answer = client.post(f"/v1/{verb}_lora_adapter", json=body)
            return answer.status_code, answer.text if answer.is_success else answer.json()["error"]["message"]

        def said(model: str) -> Any:
            return client.post("/v1/completions", json={"model": model, "prompt": "a"}).json()

        assert tell("load", lora_name="red", lora_path=str(red)) == (
            200,
            "Success: LoRA adapter 'red' added successfully.",
        )
        assert said("red")["model"] == "red"
        assert said("red")["choices"] != said("demo")["choices"]
        cards = client.get("/v1/models").json()["data"]
        assert [(card["id"], card["root"], card["parent"]) for card in cards[1:]] == [("red", str(red), "demo")]
        assert tell("load", lora_name="red", lora_path=str(red)) == (
            400,
            (
                "The lora adapter 'red' has already been loaded. If you want to load the adapter in place, set"
                " 'load_inplace' to True."
            ),
        )
        assert tell("load", lora_name="demo", lora_path=str(red))[0] == 400
        assert tell("load", lora_name="x", lora_path=str(folder / "no")) == (
            404,
            f"Loading lora x failed: No adapter found for {folder / 'no'}",
        )
        status, words = tell("load", lora_name="x", lora_path=str(broken))
        assert status == 500
        assert "'LoRA rank 64 is greater than max_lora_rank 16.'" in words
        assert tell("unload", lora_name="red") == (200, "Success: LoRA adapter 'red' removed successfully.")
        assert tell("unload", lora_name="red") == (404, "The lora adapter 'red' cannot be found.")
        assert "does not exist" in said("red")["error"]["message"]


def test_without_the_variable_there_are_no_routes_for_adapters(folder: Path) -> None:
    with running_engine(folder, flags=LORA_FLAGS) as engine, engine.client() as client:
        assert client.post("/v1/load_lora_adapter", json={"lora_name": "a", "lora_path": "b"}).status_code == 404
