"""Whether an engine serves: the ladder /health, /v1/models, one generated token. Every rung is bounded in time.

The last rung is what counts: an engine can be healthy and list its model long before it generates anything. A model
that generates nothing by its kind (embeddings, classification) is asked for what it does instead.
"""

import os
from pathlib import Path
from typing import Any

import httpx
import msgspec

from worker_manager.engines.questions import NOT_THIS_KIND, ROUTES, question

RUNG_SECONDS = 5.0
TOKEN_SECONDS = 120.0
"""The first token may compile kernels first."""


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of one probe; `reason` says which rung is missing."""

    ready: bool
    reason: str
    asleep: bool = False
    """It was found asleep, so that nothing was asked of its model: that would kill it."""
    busy: bool = False
    """It did not answer in time and was seen to work meanwhile."""
    route: str = ""
    """Where the last rung was answered; empty if its kind has no route that we know."""


class EngineTransport(httpx.AsyncBaseTransport):
    """HTTP to the engine behind a socket, never through a link in its place.

    The folder is the engine's own: a link there could name another engine's socket, or Docker's, and the manager may
    open those. The socket is held from the first request on, so that nothing is put in its place afterwards.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._held: int | None = None
        self._inner: httpx.AsyncHTTPTransport | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As httpx asks for it. Raises httpx.ConnectError where there is no socket, or a link."""
        if self._inner is None:
            try:
                self._held = os.open(self._socket, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError as error:
                raise httpx.ConnectError(str(error), request=request) from error
            self._inner = httpx.AsyncHTTPTransport(uds=f"/proc/self/fd/{self._held}")
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        """Ends its connections."""
        if self._inner is not None:
            await self._inner.aclose()
        if self._held is not None:
            os.close(self._held)
        self._inner = self._held = None


def open_client(socket: Path, seconds: float) -> httpx.AsyncClient:
    """A client of the engine behind a socket; each of its requests is bounded by so many seconds."""
    return httpx.AsyncClient(transport=EngineTransport(socket), base_url="http://engine", timeout=seconds)


async def probe(socket: Path, served_name: str, *, may_sleep: bool = False) -> Readiness:
    """Climb the ladder once. Never raises for what an engine does or does not answer.

    `may_sleep`: it may be found asleep, so that is asked first.
    """
    async with open_client(socket, RUNG_SECONDS) as client:
        try:
            if may_sleep and await is_asleep(client):
                return Readiness(ready=False, reason="it sleeps", asleep=True)
            return await _climb(client, served_name)
        except (httpx.HTTPError, OSError, ValueError) as error:
            return Readiness(ready=False, reason=f"the engine does not answer yet ({type(error).__name__})")


async def is_asleep(client: httpx.AsyncClient) -> bool | None:
    """Whether the engine sleeps; None where it was not started so that it could. Raises httpx.HTTPError, ValueError."""
    answer = await client.get("/is_sleeping")
    if answer.status_code in NOT_THIS_KIND:
        return None
    return bool(answer.raise_for_status().json().get("is_sleeping"))


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
    for route in ROUTES:
        answer = await client.post(route, json=question(route, served_name, "a"), timeout=TOKEN_SECONDS)
        if answer.status_code == httpx.codes.OK:
            return Readiness(ready=True, reason="", route=route)
        if answer.status_code not in NOT_THIS_KIND:
            return Readiness(ready=False, reason=f"{route} answers {answer.status_code}")
    return Readiness(ready=True, reason="")


def _names(body: Any) -> set[str]:
    """The served names in an answer of /v1/models; empty where it has another shape."""
    data = body.get("data") if isinstance(body, dict) else None
    return {str(model.get("id")) for model in data if isinstance(model, dict)} if isinstance(data, list) else set()
