"""The canary: one short generation on a worker that nobody was sent to yet, on the way that requests take.

A change of how an endpoint is served is believed only when a worker has answered one of these through our own sockets
and our own parser; the worker manager's ladder before it has used neither.
"""

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from gateway.proxy.pool import Pool
from gateway.proxy.upstream import UpstreamError

ANSWER_SECONDS = 60.0
"""For a whole answer."""
ANSWER_LIMIT = 1024 * 1024
TOKENS = 8
OK = 200
NOT_THIS_KIND = frozenset({400, 404, 405, 501})
"""How vLLM answers on a route that the model's kind does not serve."""
ROUTES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/completions", {"prompt": "Hello", "max_tokens": TOKENS, "temperature": 0}),
    ("/v1/embeddings", {"input": "Hello"}),
    ("/pooling", {"input": "Hello"}),
    ("/classify", {"input": "Hello"}),
)


async def ask(pool: Pool, socket: Path, model: str) -> str:
    """Ask a worker for one answer of its kind. What was wrong, as half a sentence; empty if it answered."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            for route, body in ROUTES:
                status, answer = await _post(pool, socket, route, {"model": model, **body})
                if status not in NOT_THIS_KIND:
                    return _problem(route, status, answer)
    except TimeoutError:
        return f"no answer within {ANSWER_SECONDS:g} s"
    except (OSError, UpstreamError) as problem:
        return f"the connection broke ({str(problem) or type(problem).__name__})"
    return ""  # a kind that none of these routes serves: the manager has found it ready by its list of models


async def _post(pool: Pool, socket: Path, route: str, body: dict[str, Any]) -> tuple[int, bytes]:
    # not one that was kept: that it has gone meanwhile would say nothing about the engine
    connection = await pool.connect(socket)
    try:
        content = msgspec.json.encode(body)
        head = b"POST %s HTTP/1.1\r\nhost: engine\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        connection.request(head % (route.encode(), len(content)), content)
        await connection.head(ANSWER_SECONDS)
        return connection.status, await connection.read(ANSWER_SECONDS, ANSWER_LIMIT)
    finally:
        pool.release(socket, connection)


def _problem(route: str, status: int, answer: bytes) -> str:
    if status != OK:
        return f"{route} answers {status}: {answer[:500].decode('utf-8', 'replace')}"
    try:
        decoded = msgspec.json.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return f"{route} answers what is no JSON"
    held = isinstance(decoded, dict) and (decoded.get("choices") or decoded.get("data"))
    return "" if held else f"{route} answers without a result"
