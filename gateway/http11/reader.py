"""Watches a client that has stopped reading its answer."""

import array
import asyncio
import fcntl
import termios


class StalledReader:
    """From `begin` to `stop`: cuts the connection if the client takes nothing for so many seconds.

    It would hold its worker for ever. A slow one may go on.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._transport = transport
        self._loop = loop
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The client's socket is full."""
        self._timer = self._loop.call_later(self._seconds, self._look, self.untaken())

    def stop(self) -> None:
        """It takes bytes again, or is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def untaken(self) -> int:
        """Bytes written to the client that it has not acknowledged: ours, and those that the kernel holds."""
        in_kernel = array.array("i", [0])
        fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, in_kernel)
        return self._transport.get_write_buffer_size() + in_kernel[0]

    def _look(self, before: int) -> None:
        if self.untaken() >= before:
            self._transport.abort()
        else:
            self.begin()
