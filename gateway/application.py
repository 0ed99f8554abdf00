"""The ASGI application: the life of the gateway, and everything but inference, which the server hands to its entry."""

import contextlib
import gc
import sqlite3
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from gateway.app import Gateway, litestar, running
from gateway.certificate import Certificate
from gateway.database.trouble import trouble_of
from gateway.errors import ManagerUnavailable
from gateway.proxy.head import request_id
from gateway.proxy.paths import INFERENCE_ROUTES
from gateway.proxy.route import InferenceEntry
from gateway.proxy.watch import impatient
from gateway.settings import Settings

log = structlog.get_logger(__name__)


class Application:
    """The ASGI application: everything but inference, which the server hands straight to its entry."""

    def __init__(self, settings: Settings, certificate: Certificate | None = None) -> None:
        self._settings = settings
        self._certificate = certificate
        self._gateway: Gateway | None = None
        self._litestar: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One connection's request, or the life of the process."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if self._gateway is None:
            raise ManagerUnavailable("The gateway is starting", retry_after=1)
        await _named(self._litestar, scope, impatient(receive, self._settings.body_seconds), send)

    def stopping(self) -> None:
        """The server begins to stop."""
        if self._gateway is not None:
            self._gateway.events.close()

    def direct(self, path: str) -> InferenceEntry | None:
        """The handler of inference; None for every other path."""
        if self._gateway is not None and (path in INFERENCE_ROUTES or path.startswith("/v1/responses/")):
            return self._gateway.entry
        return None

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        stack = contextlib.AsyncExitStack()
        try:
            self._gateway = await stack.enter_async_context(running(self._settings, self._certificate))
            self._litestar = litestar(self._gateway)
        except Exception as problem:  # the root of start-up: said in one sentence, then the process ends
            log.exception("gateway cannot start")
            await stack.aclose()
            trouble = trouble_of(problem)
            await send({"type": "lifespan.startup.failed", "message": trouble.sentence() if trouble else str(problem)})
            return
        log.info(
            "gateway started",
            host=self._settings.host,
            port=self._settings.port,
            tls=self._certificate is not None,
            sqlite=sqlite3.sqlite_version,
        )
        # what is there now stays: a full collection would go through all of it, and hold up every request meanwhile
        gc.collect()
        gc.freeze()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await stack.aclose()
        log.info("gateway stopped")
        await send({"type": "lifespan.shutdown.complete"})


async def _named(app: Any, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
    """Run an ASGI app with a request id on its answer and a line in the log."""
    own_id = request_id(dict(scope["headers"]))
    scope["state"]["request_id"] = own_id.decode()
    began = time.perf_counter()
    status = 0

    async def named_send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            message["headers"] = [*message["headers"], (b"x-request-id", own_id)]
        await send(message)

    try:
        if scope["method"] == "HEAD":
            await _without_body(app, scope, receive, named_send)
        else:
            await app(scope, receive, named_send)
    finally:
        if not _is_probe(scope["path"], status):
            log.info(
                "request",
                request_id=own_id.decode(),
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round((time.perf_counter() - began) * 1000, 1),
            )


async def _without_body(app: Any, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
    """Answer HEAD as GET would be, but for the body; a stream, which has no end, ends with its head."""

    async def send_head(message: Any) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b""})

    await app({**scope, "method": "GET"}, receive, send_head)


def _is_probe(path: str, status: int) -> bool:
    """Health checks and scrapes that went well would drown everything else."""
    return path in {"/livez", "/readyz", "/metrics", "/healthz", "/healthcheck"} and status == 200  # noqa: PLR2004
