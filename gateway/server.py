"""uvicorn as Hostler runs it: uvloop, our own protocol, TLS, signals, drain."""

import asyncio
import functools
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

import structlog
import uvicorn
from uvicorn.config import STARTUP_FAILURE

from gateway.certificate import Certificate
from gateway.http11.connection import ClientConnection, Direct
from gateway.http11.door import Hall, MistakenConnection
from gateway.http11.secure import SecureConnection
from gateway.settings import Settings

log = structlog.get_logger(__name__)

OPEN_FILES = 65_536
"""Enough for 32,000 requests at once, each with a connection to its client and one to its engine."""


def allow_open_files(wanted: int = OPEN_FILES) -> None:
    """Raise this process's soft limit of open files, as far as its hard limit lets it.

    Shells and service managers still give 1,024, for the sake of programs that use select(2): 500 streams would use
    them up.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def no_direct(_path: str) -> None:
    """For applications that speak ASGI only."""


class Server(uvicorn.Server):
    """uvicorn's, which says when it begins to stop: answers without an end have to end then."""

    def __init__(
        self, config: uvicorn.Config, settings: Settings, stopping: Callable[[], None], certificate: Certificate | None
    ) -> None:
        super().__init__(config)
        self._settings = settings
        self._stopping = stopping
        self._certificate = certificate

    async def startup(self, sockets: Any = None) -> None:
        """Start the application and listen; with TLS by ourselves, for uvicorn's has no bound for a handshake."""
        if self._certificate is None:
            await super().startup(sockets)
            return
        await super().startup(sockets=[])  # everything but listening
        made: Any = self.config.http_protocol_class
        needs = (self.config, self.server_state, self.lifespan.state)
        hall = Hall(
            self._certificate.context,
            functools.partial(made, *needs),
            functools.partial(MistakenConnection, *needs),
            handshake_seconds=self._settings.header_seconds,
            shutdown_seconds=self._settings.client_stall_seconds,
        )
        try:
            server = await asyncio.get_running_loop().create_server(
                hall.door, self.config.host, self.config.port, backlog=self.config.backlog
            )
        except OSError as problem:
            log.error("the gateway cannot listen", problem=str(problem))  # noqa: TRY400 - the sentence is the cause
            await self.lifespan.shutdown()
            sys.exit(STARTUP_FAILURE)
        self.servers.append(server)

    async def shutdown(self, sockets: Any = None) -> None:
        """Say so, then stop as uvicorn does."""
        self._stopping()
        await super().shutdown(sockets)


def nothing() -> None:
    """For applications whose answers all end by themselves."""


def guarded(settings: Settings, direct: Direct = no_direct, *, secure: bool = False) -> type[ClientConnection]:
    """The connection with these limits, whose requests for some paths go to `direct`."""
    limits = {
        "header_bytes": settings.max_header_kib * 1024,
        "header_seconds": settings.header_seconds,
        "client_stall_seconds": settings.client_stall_seconds,
        "idle_seconds": settings.keep_alive_seconds,
        "direct": staticmethod(direct),
    }
    return type("LimitedConnection", (SecureConnection if secure else ClientConnection,), limits)


def serve(
    app: Any,
    settings: Settings,
    direct: Direct = no_direct,
    stopping: Callable[[], None] = nothing,
    certificate: Certificate | None = None,
) -> None:
    """Run until SIGTERM or SIGINT: then no new connection, running requests up to the drain bound, and out.

    With a certificate all connections are TLS's. `stopping` is called when the end begins. A stop that was asked for is
    no failure: the process then ends with status 0.
    """
    allow_open_files()
    # uvicorn raises the signal again when it has finished, and ours is the handler it finds then
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=guarded(settings, direct, secure=certificate is not None),
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=2048,
        timeout_graceful_shutdown=round(settings.drain_seconds),
    )
    Server(config, settings, stopping, certificate).run()
