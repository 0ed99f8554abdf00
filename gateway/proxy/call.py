"""One inference request on its way: what it asks for, and what has been sent to its client."""

import time
from functools import lru_cache
from typing import Any, Protocol

from gateway.errors import BadRequest
from gateway.prices import Price
from gateway.proxy.head import Head, fresh_ids
from gateway.proxy.meter import Meter, tokens
from gateway.proxy.upstream import Sink
from gateway.types import Priority, Sent, Used, Wish

KEPT = 1024 * 1024
"""Bytes of a request, and of its answer, that are captured at most."""
WORKER_LINES = b"\r\nx-hostler-worker: %b\r\nx-hostler-queue-ms: %d\r\nx-hostler-wake-ms: %d\r\nx-hostler-engine-ms: "


class Familiar(Protocol):
    """A head that its connection knows again (`http11.familiar.Head`)."""

    meaning: Any
    """What the proxy has read in it (`Head`), once it has: it says the same for every request that has it."""


class Client(Sink, Protocol):
    """Who sent a request and gets its answer (`http11.exchange.Exchange`)."""

    method: str
    path: str
    query: bytes
    started: bool
    """Whether the client has been sent a status."""
    ended: bool
    """Whether the client has been sent a whole answer."""
    gone: bool

    @property
    def familiar(self) -> Familiar | None:
        """Its head, where its connection knew it again."""
        ...

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Names in lower case and values, in their order."""
        ...

    @property
    def peer(self) -> str | None:
        """The address at the other end of its connection."""
        ...

    async def body(self, limit: int, seconds: float) -> bytes:
        """The request's whole body. Raises BodyTooLarge, RequestTimeout after so many seconds of silence."""
        ...

    def start(
        self, status: int, headers: list[tuple[bytes, bytes]], lines: bytes = b"", *, sized: bool = False
    ) -> None:
        """Set status and headers; they go out with the first piece of the body.

        `lines`: more, as they go out; `sized`: one of them says how long the body is.
        """
        ...

    def end(self, data: bytes = b"") -> None:
        """Take the last piece of the body."""
        ...


class Ticket(Protocol):
    """That a request with limits was let in (`access.gate.Ticket`)."""

    def lines(self) -> bytes:
        """What the answer's head says of the limits."""
        ...

    def settle(self, tokens: int, cost: int = 0) -> None:
        """The request is over, and took so many tokens and billionths of a unit."""
        ...


def worker_lines(worker: str, waited: float, woke: float) -> bytes:
    """What an answer's head says of its worker, behind the request's id and up to what the engine took."""
    return WORKER_LINES % (worker.encode(), round(waited * 1000), round(woke * 1000))


@lru_cache(256)
def lines_at_once(worker: str) -> bytes:
    """The same for a request that need not wait."""
    return worker_lines(worker, 0, 0)


class Call:
    """Everything about one request; only its own task touches it."""

    def __init__(self, client: Client, head: Head) -> None:
        self.head = head
        self.method = head.method
        self.path = head.path
        """As the client has it; once it is known to be one that is forwarded, as engines have it."""
        self.dialect = head.dialect
        self.id = head.given_id or next(fresh_ids)
        self.client = client
        self.body = b""
        self.wish = Wish()
        self.hides_usage = False
        """Whether the stream tells its usage only because we asked for it."""
        self.endpoint = ""
        self.key = ""
        self.worker = ""
        self.stream = False
        self.continues: tuple[str, str] | None = None
        """The response that this one is to continue, and the worker that has it."""
        self.metered = False
        """Whether it is one of those that are recorded: it has a key and an endpoint, and makes an engine work."""
        self.price: Price | None = None
        """What it costs by; None: nothing."""
        self.ticket: Ticket | None = None
        """What its limits let it in with, where it has any; given back when it ends."""
        self.tap: Any = None
        """Keeps the answer (`tap.Tap`) of a key whose requests are captured."""
        self.meter: Meter | None = None
        """Sees the engine's answer, once there is one."""
        self.answered: float | None = None
        """When the engine began its answer; on the clock of `began`."""
        self.status = 0
        self.waited = 0.0
        """Seconds until a worker could have it."""
        self.woke = 0.0
        """How many of them that worker took to start or to wake."""
        self.asked = 0.0
        """When the engine was sent it; on the clock of `began`."""
        self.began = time.perf_counter()

    def upstream_head(self) -> bytes:
        """The request's head as the engine gets it."""
        head = self.head
        return b"%b%b%b%d\r\n\r\n" % (head.before_id, self.id, head.before_length, len(self.body))

    def sent(self, answer: bytearray, status: int) -> Sent:
        """What was asked and answered, for a key whose requests are captured."""
        streamed = self.stream and answer.startswith((b"data:", b"event:", b":"))
        return Sent(
            time.time(),
            self.key,
            self.id.decode(),
            self.endpoint,
            self.path,
            status,
            streamed,
            self.body[:KEPT],
            bytes(answer),
        )

    def own_lines(self) -> bytes:
        """What Hostler adds to every answer's head."""
        limits = b"" if self.ticket is None else self.ticket.lines()
        if not self.worker:
            return b"".join((b"x-request-id: ", self.id, b"\r\n", limits))
        worker = worker_lines(self.worker, self.waited, self.woke) if self.waited else lines_at_once(self.worker)
        return b"".join((b"x-request-id: ", self.id, worker, b"%d\r\n" % self._engine_ms(), limits))

    def _engine_ms(self) -> int:
        """What the engine took to begin its answer; a JSON answer begins when it is generated."""
        return round((self.answered - self.asked) * 1000) if self.answered is not None else 0

    def own_comment(self) -> bytes:
        """The same for a stream whose headers are out already, as an SSE comment."""
        times = (round(self.waited * 1000), round(self.woke * 1000), self._engine_ms())
        return b": worker %s, queue-ms %d, wake-ms %d, engine-ms %d\n\n" % (self.worker.encode(), *times)

    def start(self, status: int, headers: list[tuple[bytes, bytes]], lines: bytes = b"") -> None:
        """Set the status; from here on the request can't be retried. `lines`: all of the engine's, as they go out."""
        self.status = status
        self.client.start(status, headers, lines + self.own_lines(), sized=bool(lines))

    @property
    def may_wait(self) -> bool:
        """Whether its caller has said how long it would wait."""
        return self.head.timeout is not None

    def patience(self, most: float) -> float:
        """Seconds this request may wait in all: `x-hostler-timeout`, at most `most`. Raises BadRequest."""
        seconds = self.head.timeout
        if seconds is None:
            return most
        if seconds < 0:
            raise BadRequest("The header x-hostler-timeout takes a number of seconds, such as 30")
        return min(seconds, most)

    def asked_priority(self) -> Priority:
        """What `x-hostler-priority` asks for; interactive where it is not sent. Raises BadRequest."""
        priority = self.head.priority
        if priority is None:
            raise BadRequest("The header x-hostler-priority takes 'interactive' or 'batch'")
        return priority

    def used(self, now: float, status: int, seconds: float, *, client_gone: bool) -> Used:
        """What it took, now (Unix seconds) that it has ended after so many seconds."""
        took = tokens(self.meter, len(self.wish.prefix))
        price = self.price
        # by place, for names cost 2 us
        return Used._make(
            (
                now,
                self.id.decode(),
                self.key,
                self.endpoint,
                self.worker,
                status,
                int(self.stream),
                int(client_gone),
                int(self.wish.priority),
                took.prompt,
                took.generated,
                took.cached,
                int(took.estimated),
                round(self.waited * 1000) if self.waited else 0,
                None if self.answered is None else round((self.answered - self.began) * 1000),
                round(seconds * 1000),
                0 if price is None else price.of_tokens(took.prompt, took.cached, took.generated),
            )
        )
