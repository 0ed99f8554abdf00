"""What is before a handshake: tells TLS from HTTP by the first byte, and keeps crowds of handshakes in a queue.

A handshake takes 0.8 ms of the one thread, and uvloop would do all that have come in one turn while streams wait. A
client that speaks HTTP to this port would be cut off without a word. Once a handshake is done nothing of this is left:
the connection is what it would be without.
"""

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any

from gateway.errors import BadRequest
from gateway.http11.connection import ClientConnection

HANDSHAKE = 0x16
"""The first byte of whatever begins with TLS (RFC 8446, 5.1)."""
AT_ONCE = 8
"""Handshakes that are begun in one turn of the loop."""


class MistakenConnection(ClientConnection):
    """One that speaks HTTP where TLS is spoken: it is told so, and that is all."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Answer at once; what else it sends is read and thrown away while it takes the answer."""
        super().connection_made(transport)
        self._refuse(
            BadRequest("The plain HTTP request was sent to HTTPS port: write https:// in the address, not http://")
        )


class Hall:
    """Where those wait whose handshake has not begun; oldest first."""

    def __init__(
        self,
        context: ssl.SSLContext,
        welcome: Callable[[], asyncio.Protocol],
        mistaken: Callable[[], asyncio.Protocol],
        *,
        handshake_seconds: float,
        shutdown_seconds: float,
    ) -> None:
        self.mistaken = mistaken
        self.handshake_seconds = handshake_seconds
        """From the connection's first moment to the handshake's end."""
        self._context = context
        self._welcome = welcome
        self._shutdown_seconds = shutdown_seconds
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Door, bytes]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    def door(self) -> "Door":
        """For a new connection."""
        return Door(self, self._loop)

    def queue(self, door: "Door", hello: bytes) -> None:
        """Have this handshake's turn come."""
        self._waiting.append((door, hello))
        if len(self._waiting) == 1:
            self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        for _ in range(min(AT_ONCE, len(self._waiting))):
            door, hello = self._waiting.popleft()
            task = self._loop.create_task(self._shake_hands(door))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            # what was read already comes after TLS has taken the transport, and before anything new is read: the
            # task's first step asks for both in the turn between
            self._loop.call_soon(self._loop.call_soon, pass_on, door.transport, hello)
        if self._waiting:
            self._loop.call_soon(self._begin)

    async def _shake_hands(self, door: "Door") -> None:
        if door.transport.is_closing():
            return
        with contextlib.suppress(OSError):  # the handshake failed, or its client is gone: nobody is left to be told
            secure = await self._loop.start_tls(
                door.transport,
                door,
                self._context,
                server_side=True,
                ssl_handshake_timeout=self.handshake_seconds,
                # the time for what is left of an answer as well; the wait for a goodbye is SecureConnection's
                ssl_shutdown_timeout=self._shutdown_seconds,
            )
            door.leave()
            if secure is not None and not secure.is_closing():
                connection = self._welcome()
                secure.set_protocol(connection)
                connection.connection_made(secure)


def pass_on(transport: asyncio.Transport, data: bytes) -> None:
    """Give bytes to the transport's protocol as if they had just been read."""
    protocol: Any = transport.get_protocol()
    if not transport.is_closing():
        protocol.get_buffer(len(data))[: len(data)] = data
        protocol.buffer_updated(len(data))


class Door(asyncio.Protocol):
    """One connection up to the end of its handshake."""

    transport: asyncio.Transport

    def __init__(self, hall: Hall, loop: asyncio.AbstractEventLoop) -> None:
        self._hall = hall
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first byte."""
        self.transport = transport  # type: ignore[assignment]  # a stream's transport, by construction
        self._timer = self._loop.call_later(self._hall.handshake_seconds, transport.abort)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """The first bytes; nothing more is read until somebody else has the transport."""
        if data[0] == HANDSHAKE:
            self.transport.pause_reading()
            self._hall.queue(self, data)
        else:
            self.leave()
            mistaken = self._hall.mistaken()
            self.transport.set_protocol(mistaken)
            mistaken.connection_made(self.transport)

    def connection_lost(self, _problem: Exception | None) -> None:
        """It ended before its handshake did."""
        self.leave()

    def leave(self) -> None:
        """The time for a handshake no longer matters."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
