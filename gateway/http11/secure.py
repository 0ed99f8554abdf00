"""A client's connection through TLS: what differs from a plain one is how it ends, and what stands in its buffers.

uvloop does the handshake and the encryption. Its transport knows no end of one side alone: closing sends what is left,
says goodbye (close_notify) and waits for the client's. Few clients say theirs, so the wait ends as soon as everything
that was sent has been acknowledged.
"""

import asyncio
import socket
import struct

from gateway.http11.connection import LINGER_SECONDS, ClientConnection
from gateway.http11.reader import StalledReader

CLOSE_SECONDS = 0.05
"""Between two looks at a connection that is being closed; two alike are the end."""
AHEAD_BYTES = 64 * 1024
"""Not yet encrypted: from here a client counts as slow, as on a plain connection. uvloop would take 512 KiB."""
BYTES_ACKNOWLEDGED = struct.Struct("=120xQ")
"""`tcpi_bytes_acked` in Linux's struct tcp_info."""


class SecureReader(StalledReader):
    """Bytes lie in one buffer more, which cannot be asked: what was acknowledged tells whether any were taken."""

    def untaken(self) -> int:
        """Falls with each byte that is taken; 0 or less: nothing is known to wait."""
        return super().untaken() - self.acknowledged()

    def waiting(self) -> int:
        """Bytes that are known to wait: encrypted ones between TLS and the kernel are not."""
        return super().untaken()

    def acknowledged(self) -> int:
        """Bytes that the client's kernel has taken since the connection began; 0 where ours does not tell."""
        told = self._transport.get_extra_info("socket").getsockopt(
            socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_ACKNOWLEDGED.size
        )
        acknowledged: int = BYTES_ACKNOWLEDGED.unpack(told)[0] if len(told) == BYTES_ACKNOWLEDGED.size else 0
        return acknowledged


class SecureConnection(ClientConnection):
    """One client connection behind a handshake that succeeded."""

    _reader: SecureReader

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is over."""
        super().connection_made(transport)
        self._reader = SecureReader(self.transport, self.loop, self.client_stall_seconds)
        self.transport.set_write_buffer_limits(AHEAD_BYTES)

    def hang_up(self) -> None:
        """Close, and do not wait for the client's goodbye once all is sent."""
        self._end(CLOSE_SECONDS)

    def _close(self, *, whole: bool) -> None:
        """What the client still sends is read and thrown away while it has time to take the answer."""
        self._end(CLOSE_SECONDS if whole else LINGER_SECONDS)

    def _end(self, seconds: float) -> None:
        if not self.transport.is_closing():
            self.transport.close()
            self.loop.call_later(seconds, self._look_whether_sent)

    def _look_whether_sent(self, before: int | None = None) -> None:
        """End the connection where nothing waits and nothing has been taken since the last look.

        Bytes that hide between TLS and the kernel would have gone out meanwhile: the kernel had room.
        """
        if self._parser is None:  # it has ended
            return
        acknowledged = self._reader.acknowledged()
        if not self._reader.waiting() and acknowledged == before:
            self.transport.abort()
        else:
            self.loop.call_later(CLOSE_SECONDS, self._look_whether_sent, acknowledged)
