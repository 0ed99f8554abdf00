"""One inference call from its lease to its last byte: wait for a worker, forward, pump, mend what breaks."""

import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import structlog

from gateway.errors import EngineBroke, EngineTooSlow, GatewayError, NotFound, Unauthorized
from gateway.proxy.call import Call
from gateway.proxy.completion_stream import CompletionStream
from gateway.proxy.dialects import OPENAI, RESPONSES, StreamEnd, error_event, heartbeat
from gateway.proxy.heartbeats import STREAM_HEADERS, with_heartbeats
from gateway.proxy.meter import BodyMeter
from gateway.proxy.pool import Pool
from gateway.proxy.repeated import forwarded
from gateway.proxy.responses import Made, ResponseIds
from gateway.proxy.upstream import (
    ChunkWatcher,
    Connection,
    UpstreamClosed,
    UpstreamError,
    UpstreamMalformed,
    UpstreamSilent,
)
from gateway.settings import Settings
from gateway.types import Wish

log = structlog.get_logger(__name__)

ERROR_BODY_LIMIT = 64 * 1024
"""Bytes of an engine's error that are passed on inside a stream that has begun."""
ATTEMPTS = 2
NOBODY: frozenset[str] = frozenset()
OURS_IN_STREAMS = frozenset({b"cache-control", b"content-length"})
"""What a stream's head says in our words: an error event, or usage that nobody asked for, changes its length."""


class Worker(Protocol):
    """The worker a lease is for."""

    id: str
    incarnation: str
    """Another one after each restart, which keeps the id."""
    endpoint: str
    socket: Path


class Lease(Protocol):
    """The right to send one request to one worker."""

    @property
    def slot(self) -> Worker:
        """The worker."""
        ...

    @property
    def waited(self) -> float:
        """Seconds the request waited for it."""
        ...

    @property
    def woke(self) -> float:
        """How many of them the worker was not ready yet."""
        ...


LeaseT = TypeVar("LeaseT", bound=Lease)


class Leases(Protocol[LeaseT]):
    """Where workers come from (`scheduling.demand.Demand`)."""

    def try_acquire(self, endpoint: str, avoid: frozenset[str], wish: Wish) -> LeaseT | None:
        """A lease, if a worker is free this instant."""
        ...

    def acquire(self, endpoint: str, seconds: float, avoid: frozenset[str], wish: Wish) -> Coroutine[Any, Any, LeaseT]:
        """A lease, after waiting."""
        ...

    def acquire_worker(self, worker_id: str) -> LeaseT | None:
        """A lease on this very worker, if it is ready."""
        ...

    def release(self, lease: LeaseT) -> None:
        """Give it back."""
        ...

    def mark_unreachable(self, worker_id: str) -> None:
        """The worker took no connection."""
        ...

    def eta_seconds(self, endpoint: str) -> float | None:
        """Seconds until a worker should be ready."""
        ...


class TryAnother(Exception):
    """The chosen worker can't answer, and the client has not seen a byte: another one may."""

    def __init__(self, error: GatewayError) -> None:
        super().__init__(error.message)
        self.error = error


class Relay(Generic[LeaseT]):
    """Carries calls to workers and answers back."""

    def __init__(
        self, leases: Leases[LeaseT], pool: Pool, limits: Settings, opens: Callable[[str], bool] = lambda _: True
    ) -> None:
        """`opens`: whether a key, by its id, still opens; asked for requests that had to wait."""
        self._opens = opens
        self._leases = leases
        self._pool = pool
        self._limits = limits
        self.response_ids = ResponseIds()

    async def run(self, call: Call) -> None:
        """Carry one call. Raises GatewayError; if the client has seen a status the error is for the log only."""
        patience = call.patience(self._limits.queue_seconds)
        if call.waited:  # for its limits
            patience = max(0.0, patience - call.waited)
        avoid = NOBODY
        for attempt in range(1, ATTEMPTS + 1):
            lease = self._leases.try_acquire(call.endpoint, avoid, call.wish) or await self._wait(call, patience, avoid)
            slot = lease.slot
            call.worker = slot.id
            if lease.waited:
                call.waited, call.woke = call.waited + lease.waited, call.woke + lease.woke
            try:
                await self._attempt(call, slot.socket)
            except TryAnother as failed:
                log.warning("worker did not answer", worker=call.worker, attempt=attempt, problem=failed.error.message)
                avoid |= {slot.incarnation}
                if attempt == ATTEMPTS:
                    raise failed.error from failed
            else:
                return
            finally:
                self._leases.release(lease)

    def made(self, response_id: str, key: str, allowed: Callable[[str], bool]) -> Made:
        """Who has made a response for this key. Raises NotFound if nobody has, or it may use the endpoint no more."""
        made = self.response_ids.find(response_id, key)
        if made is None or not allowed(made.endpoint):
            raise lost_response(response_id)
        return made

    async def run_about_response(self, call: Call, response_id: str, worker: str) -> None:
        """Carry a call about a response to the worker that made it. Raises NotFound if that is gone."""
        lease = self._leases.acquire_worker(worker)
        if lease is None:
            raise lost_response(response_id)
        try:
            call.worker = lease.slot.id
            await self._attempt(call, lease.slot.socket)
        except TryAnother as failed:
            raise failed.error from failed
        finally:
            self._leases.release(lease)

    # waiting for a worker

    async def _wait(self, call: Call, patience: float, avoid: frozenset[str]) -> LeaseT:
        coming = self._leases.acquire(call.endpoint, patience, avoid, call.wish)
        if call.stream:
            lease = await with_heartbeats(
                call,
                coming,
                lambda: heartbeat(call.endpoint, self._leases.eta_seconds(call.endpoint)),
                undo=self._leases.release,
                grace=self._limits.stream_grace_seconds,
                pause=self._limits.heartbeat_seconds,
            )
        else:
            lease = await coming
        if not self._opens(call.key):
            self._leases.release(lease)
            raise Unauthorized("This API key was revoked, or has expired, while its request waited for a worker")
        return lease

    # one attempt

    async def _attempt(self, call: Call, socket: Path) -> None:
        connection = await self._open(call, socket)
        try:
            if connection.lines and not call.client.started:
                self._answer_at_once(call, connection)
            else:
                await self._answer(call, connection)
        finally:
            self._pool.release(socket, connection)

    async def _open(self, call: Call, socket: Path) -> Connection:
        """A connection whose answer has begun. Raises TryAnother, EngineTooSlow."""
        reused = self._pool.take(socket)
        while True:
            connection = reused or await self._connect(call, socket)
            try:
                call.asked = time.perf_counter()
                connection.request(call.upstream_head(), call.body)
                await connection.head(self._limits.first_byte_seconds)
            except UpstreamClosed as closed:
                connection.abort()
                if connection.answered:
                    raise EngineBroke(broke(call, "closed the connection inside its answer's header")) from closed
                if reused is not None:
                    reused = None  # the engine closed an idle connection as we took it: not one byte was answered
                    continue
                raise TryAnother(EngineBroke(broke(call, "closed the connection before its answer"))) from closed
            except UpstreamMalformed as malformed:
                connection.abort()
                raise EngineBroke(broke(call, f"sent what is not HTTP ({malformed})")) from malformed
            except UpstreamSilent as silent:
                connection.abort()
                raise EngineTooSlow(
                    f"The worker of '{call.endpoint}' did not begin its answer within "
                    f"{self._limits.first_byte_seconds:g} s (HOSTLER_FIRST_BYTE_SECONDS)"
                ) from silent
            except BaseException:
                connection.abort()
                raise
            return connection

    async def _connect(self, call: Call, socket: Path) -> Connection:
        try:
            return await self._pool.connect(socket)
        except (OSError, TimeoutError) as problem:
            self._leases.mark_unreachable(call.worker)
            raise TryAnother(EngineBroke(broke(call, "takes no connection"))) from problem

    def _answer_at_once(self, call: Call, connection: Connection) -> None:
        """Give an answer on that was recognised: it is there, and no stream."""
        call.answered = time.perf_counter()
        call.start(connection.status, [], connection.lines)
        call.client.end(self._metered(call).feed(connection.take()))

    async def _answer(self, call: Call, connection: Connection) -> None:
        call.answered = time.perf_counter()
        streams, headers = forwarded(connection.headers)
        if call.client.started and not streams:
            await self._error_into_stream(call, connection)
            return
        if not call.client.started:
            if streams:
                headers = [header for header in headers if header[0] not in OURS_IN_STREAMS] + STREAM_HEADERS
            call.start(connection.status, headers)
        elif not call.client.blocked:
            call.client.write(call.own_comment())  # the headers went out before any of this was known
        if streams:
            await self._pump_stream(call, connection)
        else:
            await self._pump_body(call, connection)

    async def _pump_body(self, call: Call, connection: Connection) -> None:
        try:
            last = await connection.pump(call.client, self._limits.stall_seconds, self._metered(call))
        except UpstreamError as problem:
            # a status and a length are out already: only a cut connection tells the client that this is not all
            raise EngineBroke(broke(call, f"broke off in the middle of its answer: {problem}")) from problem
        call.client.end(last)

    def _metered(self, call: Call) -> ChunkWatcher:
        """What is to see the body of an answer that is no stream."""
        call.meter = meter = BodyMeter()
        return self.response_ids.watcher(made_by(call), meter) if call.dialect is RESPONSES else meter

    async def _pump_stream(self, call: Call, connection: Connection) -> None:
        completes = call.dialect is OPENAI
        end = CompletionStream(hides_usage=call.hides_usage) if completes else StreamEnd(call.dialect)
        call.meter = end
        watcher = self.response_ids.watcher(made_by(call), end) if call.dialect is RESPONSES else end
        problem: UpstreamError | None = None
        last = b""
        try:
            last = await connection.pump(call.client, self._limits.stall_seconds, watcher)
        except UpstreamError as caught:
            problem = caught
        # what is held back when a stream breaks off is half an event: the error event reads better without it
        rest = end.rest()
        if end.seen:  # nothing that follows the last event could matter to the client
            call.client.end(last + rest)
            return
        how = "stalled" if isinstance(problem, UpstreamSilent) else "ended"
        error = EngineBroke(broke(call, f"{how} in the middle of the stream"))
        call.client.end(last + error_event(call.dialect, error))
        raise error from problem

    async def _error_into_stream(self, call: Call, connection: Connection) -> None:
        """The stream has begun with heartbeats, and the engine answers with an error: it becomes an event."""
        try:
            body = await connection.read(self._limits.stall_seconds, ERROR_BODY_LIMIT)
        except UpstreamError:
            body = b""
        detail = body.decode("utf-8", "replace")
        error = EngineBroke(f"The engine of '{call.endpoint}' refused with status {connection.status}: {detail}")
        call.client.end(error_event(call.dialect, error))
        raise error


def made_by(call: Call) -> Made:
    """Whose response it is that a call's answer tells."""
    return Made(call.worker, call.endpoint, call.key)


def broke(call: Call, what: str) -> str:
    """The sentence for an engine that failed a call."""
    name = call.endpoint
    return f"The worker of '{name}' {what}: try again; GET /api/endpoints/{name} tells how its workers do"


def lost_response(response_id: str) -> NotFound:
    """The refusal of a response id that no living worker made."""
    return NotFound(
        f"No worker that runs now has made the response '{response_id}' for this key: it is gone with its worker, or "
        "never was"
    )
