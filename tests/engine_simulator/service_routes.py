"""The routes about the engine itself: health, models, metrics, sleep, and the simulator's own figures."""

from typing import Any
from urllib.parse import parse_qs

from tests.engine_simulator.engine import Engine
from tests.engine_simulator.failures import EngineStartError
from tests.engine_simulator.http import Connection, Request
from tests.engine_simulator.requests import RequestError, read_body

METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
DEEPEST_SLEEP = 2


def health(_engine: Engine, connection: Connection, _request: Request) -> None:
    connection.answer(b"")


def version(engine: Engine, connection: Connection, _request: Request) -> None:
    connection.answer_json({"version": engine.simulation.version})


def load(engine: Engine, connection: Connection, _request: Request) -> None:
    connection.answer_json({"server_load": engine.live})


def metrics(engine: Engine, connection: Connection, _request: Request) -> None:
    connection.answer(engine.metrics_text(), content_type=METRICS_TYPE)


def models(engine: Engine, connection: Connection, _request: Request) -> None:
    cards: list[dict[str, Any]] = [
        {
            "id": name,
            "object": "model",
            "created": engine.started_at,
            "owned_by": "vllm",
            "root": str(engine.arguments.model),
            "parent": None,
            "max_model_len": engine.arguments.max_model_len,
            "permission": [],
        }
        for name in engine.arguments.served_names
    ]
    cards += [
        {
            "id": name,
            "object": "model",
            "created": engine.started_at,
            "owned_by": "vllm",
            "root": adapter.path,
            "parent": engine.arguments.served_names[0],
            "max_model_len": None,
            "permission": [],
        }
        for name, adapter in engine.adapters.items()
    ]
    connection.answer_json({"object": "list", "data": cards})


def stats(engine: Engine, connection: Connection, _request: Request) -> None:
    connection.answer_json(engine.stats())


def sleep(engine: Engine, connection: Connection, request: Request) -> None:
    """As vLLM: what runs is aborted; after a while all but a residual of the GPU memory goes back."""
    level = int(_query(request, "level", "1"))
    if level > DEEPEST_SLEEP:
        raise RequestError(400, "level: Input should be less than or equal to 2", "Bad Request", "query.level")
    faults = engine.simulation.faults
    if faults.refuse_sleep:
        raise RequestError(500, "Call to sleep method failed: simulated", "InternalServerError")
    if faults.hang_on_sleep:
        return
    engine.end_all()
    engine.sleep_level = level
    engine.cache.reset()

    def slept() -> None:
        if not faults.memory_not_returned:
            engine.memory.sleep(engine.simulation.residual_mib)
        engine.weights_lost = engine.weights_lost or level == DEEPEST_SLEEP
        _answer_later(connection, {"status": "sleeping", "level": level})

    engine.change(engine.simulation.sleep_seconds, slept)


def wake_up(engine: Engine, connection: Connection, request: Request) -> None:
    """Take the memory again; `tags=weights` alone leaves the engine asleep until `tags=kv_cache`."""
    tags = parse_qs(request.query).get("tags")
    faults = engine.simulation.faults
    if faults.refuse_wake:
        raise RequestError(500, "Call to wake_up method failed: simulated", "InternalServerError")
    if faults.hang_on_wake:
        return
    awake = tags is None or "kv_cache" in tags

    def woken() -> None:
        if awake:
            try:
                engine.memory.wake()
            except EngineStartError as error:
                engine.crash(error.text)
            engine.sleep_level = 0
        engine.weights_lost = engine.weights_lost or faults.bad_wake
        _answer_later(connection, {"status": "awake" if awake else "sleeping", "tags": tags})

    engine.change(engine.simulation.wake_seconds, woken)


def is_sleeping(engine: Engine, connection: Connection, _request: Request) -> None:
    """Answered when a sleep or a wake that is under way is over: vLLM's engine does one thing at a time."""
    engine.change(0.0, lambda: connection.answer_json({"is_sleeping": engine.sleep_level > 0}))


def collective_rpc(engine: Engine, connection: Connection, request: Request) -> None:
    if read_body(request, "method")["method"] == "reload_weights":
        engine.weights_lost = False
    connection.answer_json({"results": [None]})


def reset_prefix_cache(engine: Engine, connection: Connection, _request: Request) -> None:
    engine.cache.reset()
    connection.answer(b"")


def _answer_later(connection: Connection, value: dict[str, Any]) -> None:
    if connection.busy:
        connection.answer_json(value)


def _query(request: Request, name: str, default: str) -> str:
    value = parse_qs(request.query).get(name, [default])[0]
    if not value.isdigit():
        raise RequestError(400, f"{name}: Input should be a valid integer", "Bad Request", f"query.{name}")
    return value
