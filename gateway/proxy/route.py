"""The raw ASGI entry of every inference route: credential, body, model, then the relay. Nothing is rebuilt."""

import asyncio
import io
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import structlog

from gateway.errors import (
    BodyTooLarge,
    ClientGone,
    GatewayError,
    InternalError,
    MethodNotAllowed,
    Stopping,
)
from gateway.logs import RequestLine, RequestLog
from gateway.metrics import Metrics
from gateway.proxy.call import Call
from gateway.proxy.dialects import ANTHROPIC, OPENAI, RESPONSES, Dialect, error_event
from gateway.proxy.peek import peek
from gateway.proxy.relay import Relay, lost_response
from gateway.proxy.splice import with_model, with_usage
from gateway.proxy.upstream import Send
from gateway.proxy.watch import Receive, abandoned_with_client, impatient
from gateway.types import Principal, Scope, Used, Wish

log = structlog.get_logger(__name__)

INFERENCE_ROUTES: dict[str, Dialect] = {
    "/v1/chat/completions": OPENAI,
    "/v1/completions": OPENAI,
    "/v1/embeddings": OPENAI,
    "/v1/responses": RESPONSES,
    "/v1/rerank": OPENAI,
    "/v1/score": OPENAI,
    "/v1/pooling": OPENAI,
    "/v1/classify": OPENAI,
    "/v1/messages": ANTHROPIC,
    "/v1/messages/count_tokens": ANTHROPIC,
    "/tokenize": OPENAI,
    "/detokenize": OPENAI,
    "/v1/audio/transcriptions": OPENAI,
    "/v1/audio/translations": OPENAI,
}
"""Every path that is forwarded, all of them POST. Any other engine route is answered 404 by the router."""

USAGE_OPTION_ROUTES = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Routes whose streams tell their usage only if asked to; those of the others always do."""

ENGINE_PATHS = {"/v1/pooling": "/pooling", "/v1/classify": "/classify"}
"""Where vLLM serves a route under another path than ours."""


class Target(Protocol):
    """What the relay has to know of an endpoint."""

    @property
    def name(self) -> str:
        """Its own name, whatever it was called by."""
        ...


class Gatekeeper(Protocol):
    """Who may do what (`access.keyring.Keyring`)."""

    def authorize(self, headers: Iterable[tuple[bytes, bytes]], scope: Scope) -> Principal:
        """Raise Unauthorized or Forbidden."""
        ...


Resolve = Callable[[str, Callable[[str], bool]], Target]


class InferenceEntry:
    """One ASGI callable for all inference routes."""

    def __init__(
        self,
        gatekeeper: Gatekeeper,
        resolve: Resolve,
        relay: Relay[Any],
        metrics: Metrics,
        request_log: RequestLog,
        record: Callable[[Used], None],
        *,
        max_body_bytes: int,
        body_seconds: float,
    ) -> None:
        self._gatekeeper = gatekeeper
        self._resolve = resolve
        self._relay = relay
        self._metrics = metrics
        self._log = request_log
        self._record = record
        self._max_body_bytes = max_body_bytes
        self._body_seconds = body_seconds

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        call = Call(scope, send, INFERENCE_ROUTES.get(scope["path"], RESPONSES))
        error: GatewayError | None = None
        try:
            await self._answer(call, receive)
        except GatewayError as caught:
            error = caught
        except asyncio.CancelledError:
            # only the server cancels a request, when the drain time is over: it is answered, and that is the end of it
            error = Stopping("The gateway is being stopped: try again in a moment", retry_after=5)
        except Exception:  # the root of a request's task: whatever is not ours to foresee becomes a 500 and a log line
            log.exception("request failed", request_id=call.id.decode())
            error = InternalError(
                f"The gateway failed on this request; its log has the cause under the request id {call.id.decode()}"
            )
        finally:
            self._account(call, error)
        if error is not None and not call.ended:
            await self._refuse(call, error)

    async def _answer(self, call: Call, receive: Receive) -> None:
        principal = self._gatekeeper.authorize(call.headers.items(), Scope.INFERENCE)
        call.key = principal.key_id
        call.path = call.path.rstrip("/")
        if call.path.startswith("/v1/responses/"):
            await self._answer_about_response(call, receive, principal)
            return
        if call.method != "POST":
            raise MethodNotAllowed(f"{call.path} takes POST, not {call.method}")
        call.body = await self._body(call, receive)
        self._read(call, principal)
        call.path = ENGINE_PATHS.get(call.path, call.path)
        async with abandoned_with_client(receive):
            await self._relay.run(call)

    def _read(self, call: Call, principal: Principal) -> None:
        """Fill in what the body asks for, and splice in what the engine must be told otherwise."""
        priority = call.asked_priority()
        kind = call.headers.get(b"content-type", b"")
        asked = peek(call.body, kind)
        call.stream, call.wish = asked.stream, Wish(asked.prefix, priority)
        call.endpoint = self._resolve(asked.model, principal.may_use).name
        call.metered = True
        if asked.stream and call.path in USAGE_OPTION_ROUTES:
            call.body, call.hides_usage = with_usage(call.body, asked)
        if asked.model != call.endpoint:
            call.body = with_model(call.body, kind, call.endpoint)

    async def _answer_about_response(self, call: Call, receive: Receive, principal: Principal) -> None:
        """`GET /v1/responses/{id}` and `POST /v1/responses/{id}/cancel` go to the worker that made it."""
        response_id, _, verb = call.path.removeprefix("/v1/responses/").partition("/")
        allowed = {"": "GET", "cancel": "POST"}.get(verb)
        if allowed is None:
            raise lost_response(response_id)
        if call.method != allowed:
            raise MethodNotAllowed(f"{call.path} takes {allowed}, not {call.method}")
        call.body = await self._body(call, receive)
        async with abandoned_with_client(receive):
            await self._relay.run_about_response(call, response_id, principal.may_use)

    async def _body(self, call: Call, receive: Receive) -> bytes:
        """The whole body. Raises BodyTooLarge before reading one that says so, RequestTimeout, ClientGone."""
        length = call.headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body_bytes:
            raise self._too_large()
        whole: io.BytesIO | None = None
        receive = impatient(receive, self._body_seconds)
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone("The client hung up before its request was whole")
            part: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            if whole is None and not more and len(part) <= self._max_body_bytes:
                return part
            # grows in place and gives its bytes away without a copy: a list of pieces would cost a large body twice
            whole = whole or io.BytesIO()
            if whole.tell() + len(part) > self._max_body_bytes:
                raise self._too_large()
            whole.write(part)
            if not more:
                return whole.getvalue()

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"The body is larger than {self._max_body_bytes // 2**20} MiB (HOSTLER_MAX_BODY_MIB): send less, or ask "
            "the operator to raise it"
        )

    async def _refuse(self, call: Call, error: GatewayError) -> None:
        if isinstance(error, ClientGone):
            return
        if not call.started:
            body = error.body()
            length = (b"content-length", str(len(body)).encode())
            await call.start(error.status, [*error.headers(), length])
            await call.end(body)
        elif call.stream:
            await call.end(error_event(call.dialect, error))
        # else: a status and a length are out; returning with the answer unfinished makes the server cut the connection

    def _account(self, call: Call, error: GatewayError | None) -> None:
        status = call.status if error is None else error.status
        seconds = time.perf_counter() - call.began
        endpoint = call.endpoint or "-"
        self._metrics.requests.count(endpoint, status)
        if call.endpoint:
            self._metrics.requests.observe(endpoint, seconds, call.waited)
        if call.metered:
            self._record(call.used(status, client_gone=isinstance(error, ClientGone)))
        self._log.write(
            RequestLine(
                call.id.decode(),
                call.method,
                call.path,
                status,
                endpoint,
                call.worker or None,
                call.key or None,
                round(seconds * 1000, 1),
                round(call.waited * 1000, 1),
                call.stream,
                error.code if error is not None else None,
            )
        )
