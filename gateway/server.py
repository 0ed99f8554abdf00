"""uvicorn as Hostler runs it: uvloop, our own protocol, signals, drain."""

import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

import uvicorn

from gateway.http11.connection import ClientConnection, Direct
from gateway.settings import Settings

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

    def __init__(self, config: uvicorn.Config, stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self._stopping = stopping

    async def shutdown(self, sockets: Any = None) -> None:
        """Say so, then stop as uvicorn does."""
        self._stopping()
        await super().shutdown(sockets)


def nothing() -> None:
    """For applications whose answers all end by themselves."""


def guarded(settings: Settings, direct: Direct = no_direct) -> type[ClientConnection]:
    """The connection with these limits, whose requests for some paths go to `direct`."""
    limits = {
        "header_bytes": settings.max_header_kib * 1024,
        "header_seconds": settings.header_seconds,
        "client_stall_seconds": settings.client_stall_seconds,
        "idle_seconds": settings.keep_alive_seconds,
        "direct": staticmethod(direct),
    }
    return type("LimitedConnection", (ClientConnection,), limits)


def serve(app: Any, settings: Settings, direct: Direct = no_direct, stopping: Callable[[], None] = nothing) -> None:
    """Run until SIGTERM or SIGINT: then no new connection, running requests up to the drain bound, and out.

    `stopping` is called when that begins. A stop that was asked for is no failure: the process then ends with status 0.
    """
    allow_open_files()
    # uvicorn raises the signal again when it has finished, and ours is the handler it finds then
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=guarded(settings, direct),
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
    Server(config, stopping).run()
