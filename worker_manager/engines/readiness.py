"""Whether an engine serves: the ladder /health, /v1/models, one generated token. Every rung is bounded in time.

The last rung is what counts: an engine can be healthy and list its model long before it generates anything. A model
that generates nothing by its kind (embeddings, classification) is asked for what it does instead.
"""

from pathlib import Path
from typing import Any

import httpx
import msgspec

RUNG_SECONDS = 5.0
TOKEN_SECONDS = 120.0
"""The first token may compile kernels first."""
NOT_THIS_KIND = frozenset({400, 404, 405, 501})
"""How vLLM answers on a route that the model's kind does not serve."""


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of one probe; `reason` says which rung is missing."""

    ready: bool
    reason: str


async def probe(socket: Path, served_name: str) -> Readiness:
    """Climb the ladder once. Never raises for what an engine does or does not answer."""
    transport = httpx.AsyncHTTPTransport(uds=str(socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=RUNG_SECONDS) as client:
        try:
            return await _climb(client, served_name)
        except (httpx.HTTPError, OSError, ValueError) as error:
            return Readiness(ready=False, reason=f"the engine does not answer yet ({type(error).__name__})")


async def _climb(client: httpx.AsyncClient, served_name: str) -> Readiness:
    health = await client.get("/health")
    if health.status_code != httpx.codes.OK:
        return Readiness(ready=False, reason=f"/health answers {health.status_code}")
    models = await client.get("/v1/models")
    if models.status_code != httpx.codes.OK or served_name not in _names(models.json()):
        return Readiness(ready=False, reason=f"/v1/models does not list {served_name!r} yet")
    return await _first_token(client, served_name)


async def _first_token(client: httpx.AsyncClient, served_name: str) -> Readiness:
    """One token, or one embedding, or one class; a model that knows none of these routes is ready as listed."""
    attempts: tuple[tuple[str, dict[str, Any]], ...] = (
        ("/v1/completions", {"prompt": "a", "max_tokens": 1, "temperature": 0}),
        ("/v1/embeddings", {"input": "a"}),
        ("/pooling", {"input": "a"}),
        ("/classify", {"input": "a"}),
    )
    for route, body in attempts:
        answer = await client.post(route, json={"model": served_name, **body}, timeout=TOKEN_SECONDS)
        if answer.status_code == httpx.codes.OK:
            return Readiness(ready=True, reason="")
        if answer.status_code not in NOT_THIS_KIND:
            return Readiness(ready=False, reason=f"{route} answers {answer.status_code}")
    return Readiness(ready=True, reason="")


def _names(body: Any) -> set[str]:
    """The served names in an answer of /v1/models; empty where it has another shape."""
    data = body.get("data") if isinstance(body, dict) else None
    return {str(model.get("id")) for model in data if isinstance(model, dict)} if isinstance(data, list) else set()
