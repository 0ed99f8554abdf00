"""The entry of every inference route: credential, body, model, then the relay. Nothing is rebuilt."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, cast

import structlog

from gateway.bodies import built
from gateway.errors import (
    ClientGone,
    Forbidden,
    GatewayError,
    InternalError,
    MethodNotAllowed,
    Stopping,
    TokenUnverified,
    Unauthorized,
)
from gateway.logs import whereabouts
from gateway.prices import Price
from gateway.proxy.bulk import LARGE, check_bulk
from gateway.proxy.call import Call, Client, Ticket
from gateway.proxy.dialects import RESPONSES, error_event
from gateway.proxy.endings import Endings
from gateway.proxy.estimate import estimate
from gateway.proxy.form import is_form
from gateway.proxy.head import Head
from gateway.proxy.heartbeats import with_heartbeats
from gateway.proxy.hygiene import Hygiene
from gateway.proxy.paths import USAGE_OPTION_ROUTES
from gateway.proxy.peek import ABSENT, Peek, peek
from gateway.proxy.relay import Relay, lost_response
from gateway.proxy.splice import with_model, with_usage
from gateway.proxy.tap import Tap
from gateway.types import Allowable, Estimate, Principal, Scope, Sent, Wish

log = structlog.get_logger(__name__)

WAITS = b": waiting for the limits of this key or endpoint\n\n"
"""What a stream is told meanwhile."""


class Target(Protocol):
    """What the relay has to know of an endpoint."""

    @property
    def name(self) -> str:
        """Its own name, whatever it was called by."""
        ...

    @property
    def allow(self) -> tuple[Allowable, ...]:
        """What its requests may ask of an engine although it endangers one."""
        ...

    @property
    def price(self) -> Price | None:
        """What requests for it cost by."""
        ...

    @property
    def adapter(self) -> str:
        """The LoRA adapter it was called by, which its engines know under that name; mostly empty."""
        ...


class Gatekeeper(Protocol):
    """Who may do what (`access.keyring.Keyring`)."""

    def credential(self, headers: Mapping[bytes, bytes]) -> Any:
        """What these headers sign in with, and all that follows from them alone: the same each time."""
        ...

    def verify(self, credential: Any, scope: Scope) -> Principal:
        """Raise Unauthorized or Forbidden; TokenUnverified where `sign_in` has to look first."""
        ...

    async def sign_in(self, headers: Mapping[bytes, bytes], scope: Scope) -> Principal:
        """Raise Unauthorized, Forbidden, IssuerUnavailable."""
        ...


class SignIns(Protocol):
    """Who fails too often (`access.sign_ins.SignIns`)."""

    @property
    def limited(self) -> bool:
        """Whether anybody does: only then `admit` has anything to say."""
        ...

    def admit(self, principal: Principal, peer: str | None, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raise TooManyRequests."""
        ...

    def failed(
        self, error: Unauthorized, peer: str | None, headers: Iterable[tuple[bytes, bytes]], request_id: str
    ) -> GatewayError:
        """Count a failure; what to answer."""
        ...

    def denied(
        self,
        error: Forbidden,
        peer: str | None,
        headers: Iterable[tuple[bytes, bytes]],
        request_id: str,
        path: str,
    ) -> None:
        """Count a request of a known key that lacks the scope."""
        ...


QuotasT = TypeVar("QuotasT")
T = TypeVar("T")


class Gate(Protocol[QuotasT]):
    """Where requests with limits are let in (`access.gate.Gate`)."""

    def quotas(self, key_id: str, endpoint: str) -> QuotasT | None:
        """What limits a request of this key for this endpoint; None: nothing does."""
        ...

    def try_enter(self, quotas: QuotasT, estimate: Estimate) -> Ticket | None:
        """Let a request in if it can go on at once; None where `enter` has to wait or to say why not."""
        ...

    def enter(self, quotas: QuotasT, estimate: Estimate, patience: float) -> Coroutine[Any, Any, Ticket]:
        """Let a request in, after waiting at most so many seconds. Raises LimitReached, BudgetSpent."""
        ...


Resolve = Callable[[str, Callable[[str], bool]], Target]


class InferenceEntry:
    """One handler for all inference routes."""

    def __init__(
        self,
        gatekeeper: Gatekeeper,
        sign_ins: SignIns,
        gate: Gate[Any],
        resolve: Resolve,
        relay: Relay[Any],
        endings: Endings,
        *,
        hygiene: Hygiene,
        captured: set[str],
        capture: Callable[[Sent], None],
        max_body_bytes: int,
        body_seconds: float,
        queue_seconds: float,
        stream_grace_seconds: float,
        heartbeat_seconds: float,
    ) -> None:
        self._gatekeeper = gatekeeper
        self._sign_ins = sign_ins
        self._gate = gate
        self._resolve = resolve
        self._relay = relay
        self._endings = endings
        self._hygiene = hygiene
        # its own, since others of a process may wait for a disk that hangs; one, so that memory is taken once
        self._large_reader = ThreadPoolExecutor(1, "large-bodies")
        self._captured = captured
        self._capture = capture
        self._max_body_bytes = max_body_bytes
        self._body_seconds = body_seconds
        self._queue_seconds = queue_seconds
        self._stream_grace_seconds = stream_grace_seconds
        self._heartbeat_seconds = heartbeat_seconds

    async def __call__(self, client: Client) -> None:
        """Answer one request, whatever happens."""
        familiar = client.familiar
        head: Head | None = familiar.meaning if familiar is not None else None
        call = Call(client, head or self._read_head(client))
        error: GatewayError | None = None
        try:
            await self._answer(call)
        except Unauthorized as caught:
            error = self._sign_ins.failed(caught, client.peer, client.headers, call.id.decode())
        except Forbidden as caught:
            self._sign_ins.denied(caught, client.peer, client.headers, call.id.decode(), call.path)
            error = caught
        except GatewayError as caught:
            error = caught
        except asyncio.CancelledError:
            if client.gone:
                error = ClientGone("The client hung up before its answer was whole")
            else:  # the drain time is over: the request is answered, and that is the end of it
                error = Stopping("The gateway is being stopped: try again in a moment", retry_after=5)
        except Exception as bug:  # noqa: BLE001 - the root of a request's task: what nobody foresaw is a 500, and logged
            # an exception's words may be a prompt's: the log has where it was
            log.error("request failed", request_id=call.id.decode(), problem=whereabouts(bug))  # noqa: TRY400
            error = InternalError(
                f"The gateway failed on this request; its log has the cause under the request id {call.id.decode()}"
            )
        finally:
            self._endings.note(call, error)
        if error is not None and not client.ended:
            self._refuse(call, error)
        if call.tap is not None:
            self._capture(call.sent(call.tap.kept, call.status if error is None else error.status))

    def _read_head(self, client: Client) -> Head:
        """What the client's head says; kept where its connection will know the same head again."""
        headers = dict(client.headers)
        head = Head(client.method, client.path, client.query, headers, self._gatekeeper.credential(headers))
        if client.familiar is not None:
            client.familiar.meaning = head
        return head

    async def _answer(self, call: Call) -> None:
        head = call.head
        try:
            principal = self._gatekeeper.verify(head.credential, Scope.INFERENCE)
        except TokenUnverified:
            principal = await self._gatekeeper.sign_in(head.headers, Scope.INFERENCE)
        if self._sign_ins.limited:
            self._sign_ins.admit(principal, call.client.peer, call.client.headers)
        call.key = principal.key_id
        if call.key in self._captured:
            call.tap = Tap(call.client)
            call.client = cast("Client", call.tap)
        call.path = head.route
        if head.about_response:
            await self._answer_about_response(call, principal)
            return
        if head.method != "POST":
            raise MethodNotAllowed.but("POST", head.method, head.route)
        call.body = await call.client.body(self._max_body_bytes, self._body_seconds)
        large = len(call.body) > LARGE
        asked = await self._read_large(call, principal) if large else self._read(call, principal)
        quotas = self._gate.quotas(call.key, call.endpoint)
        if quotas is not None:
            asks = (call.path, asked, call.price)
            guess = await self._aside(estimate, *asks) if large else estimate(*asks)
            # nearly all have room, and say nothing of waiting, which would have to be read
            call.ticket = None if call.may_wait else self._gate.try_enter(quotas, guess)
            if call.ticket is None:
                await self._enter(call, quotas, guess)
        call.path = head.engine_path
        if call.continues is not None:
            await self._relay.run_about_response(call, *call.continues)
        else:
            await self._relay.run(call)

    def _read(self, call: Call, principal: Principal) -> Peek:
        """What the body asks for, filled in; what the engine must be told otherwise is spliced in."""
        # a key may ask for less than it may have, never for more
        priority = max(call.asked_priority(), principal.priority)
        kind = call.head.kind
        asked = peek(call.body, kind)
        target = self._resolve(asked.model, principal.may_use)
        call.stream, call.endpoint, call.price = asked.stream, target.name, target.price
        call.wish = Wish(asked.prefix, priority, target.adapter)
        self._hygiene.check(asked, call.body, call.path, target.allow)
        call.metered = True
        if asked.fields.previous_response_id is not ABSENT and call.dialect is RESPONSES:
            self._continue(call, built(asked.fields.previous_response_id), principal)
        if asked.stream and call.path in USAGE_OPTION_ROUTES:
            call.body, call.hides_usage = with_usage(call.body, asked)
        if asked.model != (target.adapter or target.name):  # engines know no aliases
            call.body = with_model(call.body, kind, call.endpoint)
        return asked

    async def _read_large(self, call: Call, principal: Principal) -> Peek:
        """The same beside the event loop."""
        if not is_form(call.head.kind):
            await self._aside(check_bulk, call.body)
        return await self._aside(self._read, call, principal)

    async def _aside(self, step: Callable[..., T], *given: Any) -> T:
        """One step of reading a large body, in a thread: others have their turn meanwhile, but for its longest call."""
        return await asyncio.get_running_loop().run_in_executor(self._large_reader, step, *given)

    def _continue(self, call: Call, response_id: object, principal: Principal) -> None:
        """A response that continues another one is made where that one is, and for the same key."""
        if not isinstance(response_id, str):
            return  # null, or the engine's to refuse
        made = self._relay.made(response_id, call.key, principal.may_use)
        if made.endpoint != call.endpoint:
            raise lost_response(response_id)
        call.continues = response_id, made.worker

    async def _enter(self, call: Call, quotas: Any, guess: Estimate) -> None:
        """Let a request with limits in; it waits for them only where its caller has said how long."""
        patience = call.patience(self._queue_seconds) if call.may_wait else 0.0
        arrived = time.perf_counter()
        entering = self._gate.enter(quotas, guess, patience)
        if call.stream and patience > 0:
            call.ticket = await with_heartbeats(
                call,
                entering,
                lambda: WAITS,
                undo=lambda ticket: ticket.settle(0),
                grace=self._stream_grace_seconds,
                pause=self._heartbeat_seconds,
            )
        else:
            call.ticket = await entering
        if patience > 0:
            call.waited = time.perf_counter() - arrived

    async def _answer_about_response(self, call: Call, principal: Principal) -> None:
        """`GET /v1/responses/{id}` and `POST /v1/responses/{id}/cancel` go to the worker that made it."""
        response_id, _, verb = call.path.removeprefix("/v1/responses/").partition("/")
        allowed = {"": "GET", "cancel": "POST"}.get(verb)
        if allowed is None:
            raise lost_response(response_id)
        if call.method != allowed:
            raise MethodNotAllowed.but(allowed, call.method, call.path)
        call.body = await call.client.body(self._max_body_bytes, self._body_seconds)
        made = self._relay.made(response_id, call.key, principal.may_use)
        call.endpoint = made.endpoint
        quotas = self._gate.quotas(call.key, call.endpoint)
        if quotas is not None:  # it is a request like any other; its tokens were counted when they were made
            await self._enter(call, quotas, Estimate(0, 0))
        await self._relay.run_about_response(call, response_id, made.worker)

    def _refuse(self, call: Call, error: GatewayError) -> None:
        if isinstance(error, ClientGone):
            return
        if not call.client.started:
            body = error.body()
            length = (b"content-length", str(len(body)).encode())
            call.start(error.status, [*error.headers(), length])
            call.client.end(body)
        elif call.stream:
            call.client.end(error_event(call.dialect, error))
        # else: a status and a length are out; returning with the answer unfinished makes the server cut the connection
