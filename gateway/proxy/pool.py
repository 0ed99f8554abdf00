"""Idle connections to engines, by socket. A connection is used again only if nothing unasked came on it."""

import time
from collections import deque
from pathlib import Path

from gateway.proxy.repeated import Memory
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
        self._memories: dict[str, Memory] = {}
        """Of the engines' heads."""

    def take(self, socket: Path) -> Connection | None:
        """A connection that was used before, if there is one."""
        idle = self._idle.get(str(socket))
        if idle:
            oldest = time.monotonic() - IDLE_SECONDS
            while idle:
                since, connection = idle.pop()
                if not connection.lost and since >= oldest:
                    return connection
                connection.abort()
        return None

    async def connect(self, socket: Path) -> Connection:
        """A fresh connection. Raises OSError, TimeoutError if the engine takes none."""
        name = str(socket)
        memory = self._memories.setdefault(name, Memory())
        return await connect(name, self._connect_seconds, memory)

    def release(self, socket: Path, connection: Connection) -> None:
        """Take a connection back after a whole answer; anything else is closed."""
        if not connection.done or not connection.reusable or connection.lost:
            connection.abort()
            return
        name = str(socket)
        idle = self._idle.get(name)
        if idle is None:
            idle = self._idle[name] = deque()
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
        self._memories = {name: memory for name, memory in self._memories.items() if name in self._idle}

    def close(self) -> None:
        """Close every idle connection."""
        for idle in self._idle.values():
            for _, connection in idle:
                connection.abort()
        self._idle.clear()
        self._memories.clear()
