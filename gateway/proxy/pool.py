"""Idle connections to engines, by socket. A connection is used again only if nothing unasked came on it."""

import time
from collections import deque
from pathlib import Path

from gateway.proxy.upstream import Connection, connect

IDLE_SECONDS = 30.0
"""Engines keep idle connections for 120 s (the manager sets it): ours go first, so no request meets a closing one."""
IDLE_LIMIT = 256
"""Idle connections kept for one engine."""


class Pool:
    """Keep-alive connections to every engine."""

    def __init__(self, connect_seconds: float) -> None:
        self._connect_seconds = connect_seconds
        self._idle: dict[str, deque[tuple[float, Connection]]] = {}

    async def acquire(self, socket: Path, *, fresh: bool = False) -> tuple[Connection, bool]:
        """A connection, and whether it was used before. Raises OSError, TimeoutError if the engine takes none."""
        name = str(socket)
        idle = self._idle.get(name)
        if idle and not fresh:
            oldest = time.monotonic() - IDLE_SECONDS
            while idle:
                since, connection = idle.pop()
                if not connection.lost and since >= oldest:
                    return connection, True
                connection.abort()
        return await connect(name, self._connect_seconds), False

    def release(self, socket: Path, connection: Connection) -> None:
        """Take a connection back after a whole answer; anything else is closed."""
        if not connection.done or not connection.reusable or connection.lost:
            connection.abort()
            return
        idle = self._idle.setdefault(str(socket), deque())
        if len(idle) >= IDLE_LIMIT:
            connection.abort()
            return
        idle.append((time.monotonic(), connection))

    @property
    def idle(self) -> int:
        """How many connections are kept for the next request."""
        return sum(not connection.lost for idle in self._idle.values() for _, connection in idle)

    def sweep(self) -> None:
        """Close what has idled for too long; forget engines nothing is kept for."""
        oldest = time.monotonic() - IDLE_SECONDS
        for name, idle in list(self._idle.items()):
            while idle and (idle[0][0] < oldest or idle[0][1].lost):
                idle.popleft()[1].abort()
            if not idle:
                del self._idle[name]

    def close(self) -> None:
        """Close every idle connection."""
        for idle in self._idle.values():
            for _, connection in idle:
                connection.abort()
        self._idle.clear()
