"""Probes: a worker that took no connection is asked for its health until it answers; no request is tried on it.

One task for each such worker, on a connection of its own, every call bounded; the pauses double. It ends when the
worker answers 200, has started anew (the manager says so) or is gone.
"""

import asyncio
from pathlib import Path
from typing import Protocol

import structlog

from gateway.proxy.upstream import UpstreamError, connect

log = structlog.get_logger(__name__)

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
PROBE_SECONDS = 2.0
"""For a connection, and again for an answer."""
HEALTHY = 200
REQUEST = b"GET /health HTTP/1.1\r\nhost: engine\r\nconnection: close\r\n\r\n"


class Worker(Protocol):
    """The worker to be probed."""

    id: str
    socket: Path


class Rotation(Protocol):
    """Whom requests may be sent to (`scheduling.demand.Demand`)."""

    def is_unreachable(self, worker_id: str) -> bool:
        """Whether it is there and out of the rotation."""
        ...

    def mark_reachable(self, worker_id: str) -> None:
        """Take it back into the rotation."""
        ...


class Prober:
    """The probes that run."""

    def __init__(self, rotation: Rotation) -> None:
        self._rotation = rotation
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def watch(self, worker: Worker) -> None:
        """Probe a worker that has just left the rotation; one that is being probed is left alone."""
        if worker.id not in self._tasks:
            task = asyncio.create_task(self._probe(worker), name=f"probe {worker.id}")
            self._tasks[worker.id] = task
            task.add_done_callback(lambda _: self._tasks.pop(worker.id, None))

    async def close(self) -> None:
        """End all probes."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _probe(self, worker: Worker) -> None:
        log.warning("worker out of rotation", worker=worker.id, reason="it took no connection")
        pause = FIRST_PAUSE_SECONDS
        while True:
            await asyncio.sleep(pause)
            if not self._rotation.is_unreachable(worker.id):
                return
            if await _answers(worker.socket):
                self._rotation.mark_reachable(worker.id)
                log.info("worker back in rotation", worker=worker.id)
                return
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


async def _answers(socket: Path) -> bool:
    """Whether the engine on this socket says that it is healthy."""
    try:
        connection = await connect(str(socket), PROBE_SECONDS)
    except (OSError, TimeoutError):
        return False
    try:
        connection.request(REQUEST, b"")
        await connection.head(PROBE_SECONDS)
    except UpstreamError:
        return False
    finally:
        connection.abort()
    return connection.status == HEALTHY
