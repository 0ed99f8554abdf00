"""The routes that generate text: chat, completions, responses, messages, speech."""

import json
import re
import uuid
from http import HTTPStatus
from typing import Any

from tests.engine_simulator import text
from tests.engine_simulator.engine import Engine
from tests.engine_simulator.event_dialects import MessagesDialect, ResponsesDialect
from tests.engine_simulator.generation import Dialect, Generation
from tests.engine_simulator.http import Connection, Request
from tests.engine_simulator.openai_dialects import ChatDialect, TextDialect
from tests.engine_simulator.requests import RequestError, check_model, read_body, token_limit

AUDIO_BYTES_PER_SECOND = 32_000
_FIELD = re.compile(rb'name="([^"]+)"[^\r]*(?:\r\n[^\r]+)*\r\n\r\n(.*?)\r\n--', re.DOTALL)


def chat(engine: Engine, connection: Connection, request: Request) -> None:
    body = read_body(request, "messages")
    prompt = text.render(_messages(body))
    usage = _wants_usage(engine, body)
    start = _Start(engine, connection, body, prompt, body.get("max_completion_tokens") or body.get("max_tokens"))
    dialect = ChatDialect(
        f"chatcmpl-{uuid.uuid4().hex}", engine.served_as(body.get("model")), start.tokens, start.cached, usage=usage
    )
    start.run(dialect)


def completions(engine: Engine, connection: Connection, request: Request) -> None:
    body = read_body(request, "prompt")
    usage = _wants_usage(engine, body)
    # vLLM completes 16 tokens where nothing is asked
    start = _Start(engine, connection, body, text.prompt_bytes(body["prompt"]), body.get("max_tokens", 16))
    dialect = TextDialect(
        f"cmpl-{uuid.uuid4().hex}", engine.served_as(body.get("model")), start.tokens, start.cached, usage=usage
    )
    start.run(dialect)


def responses(engine: Engine, connection: Connection, request: Request) -> None:
    body = read_body(request, "input")
    given = body["input"]
    prompt = given.encode() if isinstance(given, str) else text.render([item for item in given if "role" in item])
    request_id = body.get("request_id") or f"resp_{uuid.uuid4().hex}"
    if body.get("previous_response_id"):
        prompt += json.dumps(_stored(engine, body["previous_response_id"])["output"]).encode()
    start = _Start(engine, connection, body, prompt, body.get("max_output_tokens"))
    dialect = ResponsesDialect(request_id, engine.served_as(body.get("model")), start.tokens, start.cached)
    if body.get("store", True):
        engine.responses[request_id] = dialect.whole(start.words, start.reason)
    start.run(dialect)


def messages(engine: Engine, connection: Connection, request: Request) -> None:
    body = read_body(request, "model", "messages", "max_tokens")
    start = _Start(engine, connection, body, _anthropic_prompt(body), body["max_tokens"])
    start.run(MessagesDialect(f"msg_{uuid.uuid4().hex}", engine.served_as(body.get("model")), start.tokens))


def count_tokens(engine: Engine, connection: Connection, request: Request) -> None:
    body = read_body(request, "model", "messages")
    check_model(engine, body["model"])
    connection.answer_json({"input_tokens": text.token_count(_anthropic_prompt(body))})


def speech(engine: Engine, connection: Connection, request: Request) -> None:
    """Transcriptions and translations: a form with a file, an answer in JSON or as plain text."""
    form = dict(_FIELD.findall(request.body))
    if b"file" not in form:
        raise RequestError(400, "1 validation error:\n  Field required: file", "Bad Request", "body.file")
    model = form.get(b"model", b"").decode()
    body = {"model": model, "stream": form.get(b"stream") == b"true"}
    audio = form[b"file"]
    start = _Start(engine, connection, body, audio[:3000], None)
    seconds = max(1, len(audio) // AUDIO_BYTES_PER_SECOND)
    start.run(_SpeechDialect(engine.served_as(body.get("model")), seconds))


def get_response(engine: Engine, connection: Connection, request: Request) -> None:
    connection.answer_json(_stored(engine, request.path.removeprefix("/v1/responses/")))


def cancel_response(engine: Engine, connection: Connection, request: Request) -> None:
    stored = _stored(engine, request.path.removeprefix("/v1/responses/").removesuffix("/cancel"))
    if stored["status"] == "completed":
        raise RequestError(400, "Cannot cancel a synchronous response.")
    connection.answer_json({**stored, "status": "cancelled"})


class _Start:
    """The way every generation begins: model, faults, length, words, prefix cache."""

    def __init__(
        self, engine: Engine, connection: Connection, body: dict[str, Any], prompt: bytes, asked_tokens: Any
    ) -> None:
        check_model(engine, body.get("model"))
        refuse_if_ordered(engine)
        simulation = engine.simulation
        if simulation.kind == "embed":
            raise RequestError(400, "The model does not support Chat Completions API")
        self.tokens = text.token_count(prompt)
        limit = token_limit(engine, asked_tokens, self.tokens)
        natural = limit if body.get("ignore_eos") else max(simulation.answer_tokens, body.get("min_tokens") or 0)
        seed = engine.seed_of(body.get("model")) ^ (body.get("seed") or 0)
        self.words = text.answer_words(prompt, seed, max(1, min(limit, natural)))
        self.reason = "length" if limit < natural or body.get("ignore_eos") else "stop"
        self._apply_stop(body.get("stop"))
        self.cached = engine.cache.take(prompt, text.BYTES_PER_TOKEN)
        self._engine = engine
        self._connection = connection
        self._prompt = prompt
        self._stream = bool(body.get("stream"))

    def run(self, dialect: Dialect) -> None:
        """Hand the answer to the engine."""
        generation = Generation(
            self._engine,
            self._connection,
            dialect,
            self.words,
            self.reason,
            prompt=self._prompt,
            prompt_tokens=self.tokens,
            cached_tokens=self.cached,
            stream=self._stream,
        )
        self._connection.owner = generation
        if self._stream:
            self._connection.begin_stream()
        self._engine.admit(generation)

    def _apply_stop(self, stop: Any) -> None:
        for mark in [stop] if isinstance(stop, str) else stop or []:
            for count in range(1, len(self.words) + 1):
                if mark in "".join(self.words[:count]):
                    self.words, self.reason = self.words[: max(1, count - 1)], "stop"
                    break


class _SpeechDialect:
    """Transcriptions and translations."""

    done = b"data: [DONE]\n\n"

    def __init__(self, model: str, seconds: int) -> None:
        self._model = model
        self._seconds = seconds

    def head(self) -> bytes:
        return b""

    def token(self, word: str) -> bytes:
        chunk = '{"object":"transcription.chunk","model":"%s","choices":[{"delta":{"content":"%s"}}]}'
        return f"data: {chunk % (self._model, word)}\n\n".encode()

    def tail(self, words: list[str], reason: str) -> bytes:  # noqa: ARG002 - the shape of every dialect
        return b""

    def whole(self, words: list[str], reason: str) -> Any:  # noqa: ARG002 - the shape of every dialect
        return {"text": "".join(words), "usage": {"type": "duration", "seconds": self._seconds}}


def refuse_if_ordered(engine: Engine) -> None:
    """Do what a fault or sleep orders for every request that reaches the model."""
    faults = engine.simulation.faults
    if engine.sleep_level:
        # a real engine dies when a request touches memory that sleep took away
        engine.crash("RuntimeError: CUDA error: an illegal memory access was encountered (the engine is asleep)")
    if faults.error_status is not None:
        phrase = HTTPStatus(faults.error_status).phrase
        raise RequestError(faults.error_status, "simulated failure", f"{phrase.replace(' ', '')}Error")


def _messages(body: dict[str, Any]) -> list[Any]:
    found = body["messages"]
    if not isinstance(found, list) or not found or not all(isinstance(message, dict) for message in found):
        raise RequestError(
            400, "1 validation error:\n  messages: a list of objects is wanted", "Bad Request", "messages"
        )
    return found


def _anthropic_prompt(body: dict[str, Any]) -> bytes:
    system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
    return text.render([*system, *_messages(body)])


def _wants_usage(engine: Engine, body: dict[str, Any]) -> bool:
    options = body.get("stream_options") or {}
    return bool(options.get("include_usage")) or engine.arguments.enable_force_include_usage


def _stored(engine: Engine, response_id: str) -> dict[str, Any]:
    stored = engine.responses.get(response_id)
    if stored is None:
        raise RequestError(404, f"Response with id '{response_id}' not found.", "invalid_request_error")
    return stored
