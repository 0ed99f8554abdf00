"""What every Litestar route needs: a body as a struct, a scope as a guard, an error as the one error shape."""

from typing import Any, TypeVar

import msgspec
import structlog
from litestar import Request, Response
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.types import Guard

from gateway.access.keyring import Keyring
from gateway.bodies import decoded
from gateway.errors import (
    BadRequest,
    BodyTooLarge,
    GatewayError,
    InternalError,
    MethodNotAllowed,
    NotFound,
)
from gateway.types import Scope

log = structlog.get_logger(__name__)

Body = TypeVar("Body")


async def read(request: Request[Any, Any, Any], kind: type[Body]) -> Body:
    """The request's JSON body as this type. Raises BadRequest with the field that does not fit."""
    return decoded(msgspec.json.Decoder(kind).decode, await request.body())


def needs(scope: Scope) -> Guard:
    """A guard: the request's key must have this scope."""

    def guard(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
        keyring: Keyring = connection.app.state.keyring
        keyring.authorize(dict(connection.scope["headers"]), scope)

    return guard


def answer(error: GatewayError) -> Response[bytes]:
    """An error as an HTTP answer in the one shape."""
    headers = {name.decode(): value.decode() for name, value in error.headers() if name != b"content-type"}
    return Response(error.body(), status_code=error.status, headers=headers, media_type="application/json")


def on_gateway_error(_request: Request[Any, Any, Any], error: GatewayError) -> Response[bytes]:
    """Litestar's handler for our own exceptions."""
    return answer(error)


def on_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Litestar's handler for its own exceptions: routing and limits."""
    path, method = request.scope["path"], request.scope["method"]
    kinds: dict[int, GatewayError] = {
        404: NotFound(f"There is no route {method} {path}: see docs/api.md for those there are"),
        405: MethodNotAllowed(f"{path} does not take {method}"),
        413: BodyTooLarge("The body is larger than HOSTLER_MAX_BODY_MIB allows"),
    }
    known = kinds.get(error.status_code)
    if known is None and error.status_code < 500:  # noqa: PLR2004 - whatever else Litestar refuses is the caller's doing
        known = BadRequest(error.detail)
    return answer(known) if known is not None else on_bug(request, error)


def on_bug(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The last handler: a bug of ours. The log gets the cause, the caller the request id."""
    request_id = request.scope["state"].get("request_id", "-")
    log.error("request failed", request_id=request_id, path=request.scope["path"], exc_info=error)
    return answer(
        InternalError(f"The gateway failed on this request; its log has the cause under the request id {request_id}")
    )
