"""One connection to the manager's socket: bounded in its number, its size and its time, whoever is at the other end.

The gateway is the only one who may connect, and somebody may have taken it over. What he sends costs this process no
more than some memory for some seconds, and what is no request of ours is noted.
"""

import asyncio
import functools
from typing import Any, cast

import h11
import msgspec
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from worker_manager.contract import Refusal
from worker_manager.refusals import Refusals

CONNECTIONS_MAX = 64
HEAD_BYTES_MAX = 16 * 1024
HEAD_SECONDS = 10.0
"""From a request's first byte, or a connection's beginning, to the end of the request's header."""


class Connection(H11Protocol):
    """uvicorn's own, which has no limit of time and none of number that counts before a request is whole."""

    def __init__(self, refusals: Refusals, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refusals = refusals
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Taken, unless there are too many."""
        if len(self.connections) >= CONNECTIONS_MAX:
            self.transport = transport
            self._refusals.note("crowded", f"a connection beyond {CONNECTIONS_MAX}")
            transport.abort()
            return
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """The clock runs until the header of the next request is whole."""
        before = self.cycle
        if self._deadline is None and (before is None or before.response_complete):
            self._expect_head()
        super().data_received(data)
        if self.cycle is not before:
            self._forget_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left of it."""
        self._forget_deadline()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """A body that still comes after its answer has nobody who would read it."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or has too long a header."""
        self._refusals.note("malformed", "a message that is no HTTP request, or has too long a header")
        body = msgspec.json.encode({"error": Refusal(kind="malformed", message=msg)})
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._late)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        self._refusals.note("late", f"a connection without a whole header after {HEAD_SECONDS:g} s")
        self.transport.abort()


def config_of(app: Any, refusals: Refusals, **others: Any) -> Config:
    """A server's configuration with such connections."""
    return Config(
        app,
        http=cast("type[asyncio.Protocol]", functools.partial(Connection, refusals)),
        ws="none",
        h11_max_incomplete_event_size=HEAD_BYTES_MAX,
        **others,
    )
