"""The routes that answer at once, with numbers: embeddings, scores, classes, tokens."""

import base64
import struct
import time
import uuid
from collections.abc import Callable
from typing import Any

from tests.engine_simulator import text
from tests.engine_simulator.engine import Engine
from tests.engine_simulator.generating_routes import refuse_if_ordered
from tests.engine_simulator.http import Connection, Request
from tests.engine_simulator.requests import RequestError, check_model, read_body

CLASSES = ("LABEL_0", "LABEL_1")


class Pooled:
    """An answer that is due after its prefill."""

    def __init__(self, engine: Engine, connection: Connection, value: dict[str, Any], tokens: int) -> None:
        self.tokens = tokens
        self._engine = engine
        self._connection = connection
        self._value = value
        self._over = False

    def begin(self, now: float) -> None:
        simulation = self._engine.simulation
        faults = simulation.faults
        if faults.crash_after_requests is not None and self._engine.started > faults.crash_after_requests:
            self._engine.crash("RuntimeError: CUDA error: an illegal memory access was encountered")
        if not faults.hang_with_green_health:
            delay = simulation.ttft_seconds + self.tokens / simulation.prefill_tokens_per_second
            self._engine.pacer.add(self, now + delay)

    def step(self, now: float) -> None:  # noqa: ARG002 - the shape of everything paced
        if self._over:
            return
        self._release("stop")
        if self._engine.simulation.faults.garbage_answer:
            self._connection.answer(b"\x00\xff<html>not what you asked for</html>")
        else:
            self._connection.answer_json(self._value)

    def end(self, reason: str) -> None:
        if not self._over:
            self._release(reason)
            self._connection.answer_json(self._value)

    def client_gone(self) -> None:
        self._release("abort")

    def _release(self, reason: str) -> None:
        self._over = True
        if reason != "abort":
            self._engine.metrics.prompt_tokens += self.tokens
        self._engine.release(self, reason)


def embeddings(engine: Engine, connection: Connection, request: Request) -> None:
    body = read_body(request, "input")
    dimensions = body.get("dimensions") or engine.simulation.dimensions

    def answer(inputs: list[bytes]) -> dict[str, Any]:
        vectors = [text.numbers(item, engine.seed, dimensions) for item in inputs]
        if body.get("encoding_format") == "base64":
            coded: list[Any] = [
                base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode() for vector in vectors
            ]
        else:
            coded = list(vectors)
        data = [{"index": index, "object": "embedding", "embedding": item} for index, item in enumerate(coded)]
        return {"id": f"embd-{uuid.uuid4().hex}", "object": "list", "data": data}

    _pool(engine, connection, body, _inputs(body["input"]), answer)


def score(engine: Engine, connection: Connection, request: Request) -> None:
    body = read_body(request)
    queries = _inputs(body.get("text_1") or body.get("queries") or "")
    documents = _inputs(body.get("text_2") or body.get("documents") or "")

    def answer(pairs: list[bytes]) -> dict[str, Any]:
        data = [{"index": index, "object": "score", "score": _score(pair, engine)} for index, pair in enumerate(pairs)]
        return {"id": f"score-{uuid.uuid4().hex}", "object": "list", "data": data}

    if len(queries) == 1:
        queries *= len(documents)
    _pool(engine, connection, body, [a + b"\0" + b for a, b in zip(queries, documents, strict=False)], answer)


def rerank(engine: Engine, connection: Connection, request: Request) -> None:
    body = read_body(request, "query", "documents")
    documents = body["documents"]

    def answer(pairs: list[bytes]) -> dict[str, Any]:
        results: list[dict[str, Any]] = [
            {
                "index": index,
                "document": {"text": document, "multi_modal": None},
                "relevance_score": _score(pair, engine),
            }
            for index, (document, pair) in enumerate(zip(documents, pairs, strict=True))
        ]
        results.sort(key=lambda result: -result["relevance_score"])
        return {"id": f"rerank-{uuid.uuid4().hex}", "results": results[: body.get("top_n") or None]}

    query = text.prompt_bytes(body["query"])
    _pool(engine, connection, body, [query + b"\0" + text.prompt_bytes(item) for item in documents], answer)


def pooling(engine: Engine, connection: Connection, request: Request) -> None:
    body = read_body(request, "input")

    def answer(inputs: list[bytes]) -> dict[str, Any]:
        vectors = [text.numbers(item, engine.seed, engine.simulation.dimensions) for item in inputs]
        data = [{"index": index, "object": "pooling", "data": vector} for index, vector in enumerate(vectors)]
        return {"id": f"pool-{uuid.uuid4().hex}", "object": "list", "data": data}

    _pool(engine, connection, body, _inputs(body["input"]), answer)


def classify(engine: Engine, connection: Connection, request: Request) -> None:
    body = read_body(request, "input")

    def answer(inputs: list[bytes]) -> dict[str, Any]:
        data = []
        for index, item in enumerate(inputs):
            first = _score(item, engine)
            label = CLASSES[0] if first >= 0.5 else CLASSES[1]
            probs = [first, round(1 - first, 6)]
            data.append({"index": index, "label": label, "probs": probs, "num_classes": len(CLASSES)})
        return {"id": f"classify-{uuid.uuid4().hex}", "object": "list", "data": data}

    _pool(engine, connection, body, _inputs(body["input"]), answer)


def tokenize(engine: Engine, connection: Connection, request: Request) -> None:
    body = read_body(request)
    check_model(engine, body.get("model"))
    prompt = text.render(body["messages"]) if "messages" in body else text.prompt_bytes(body.get("prompt", ""))
    tokens = text.encode(prompt)
    answer = {
        "count": len(tokens),
        "max_model_len": engine.arguments.max_model_len,
        "tokens": tokens,
        "token_strs": None,
    }
    connection.answer_json(answer)


def detokenize(engine: Engine, connection: Connection, request: Request) -> None:
    body = read_body(request, "tokens")
    check_model(engine, body.get("model"))
    connection.answer_json({"prompt": text.decode(body["tokens"]).decode(errors="replace")})


def _pool(
    engine: Engine,
    connection: Connection,
    body: dict[str, Any],
    inputs: list[bytes],
    answer: Callable[[list[bytes]], dict[str, Any]],
) -> None:
    check_model(engine, body.get("model"))
    refuse_if_ordered(engine)
    if engine.simulation.kind != "embed":
        raise RequestError(400, "The model does not support Embeddings API")
    tokens = sum(map(text.token_count, inputs))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    fixed = {"created": int(time.time()), "model": engine.arguments.served_names[0], "usage": usage}
    pooled = Pooled(engine, connection, answer(inputs) | fixed, tokens)
    connection.owner = pooled
    engine.admit(pooled)


def _inputs(given: Any) -> list[bytes]:
    if isinstance(given, list) and given and not isinstance(given[0], int):
        return [text.prompt_bytes(item) for item in given]
    return [text.prompt_bytes(given)]


def _score(pair: bytes, engine: Engine) -> float:
    return round((text.numbers(pair, engine.seed, 1)[0] + 1) / 2, 6)
