"""What every Litestar route needs: a body as a struct, a scope as a guard, an error as the one error shape."""

import sqlite3
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec
import structlog
from litestar import Request, Response
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.types import Guard

from gateway.access.keyring import Keyring
from gateway.access.sign_ins import SignIns
from gateway.actor import Actor, acting
from gateway.bodies import decoded
from gateway.database.trouble import trouble_of
from gateway.errors import (
    BadRequest,
    BodyTooLarge,
    DatabaseUnavailable,
    Forbidden,
    GatewayError,
    InternalError,
    MethodNotAllowed,
    NotFound,
    Unauthorized,
)
from gateway.types import Scope

log = structlog.get_logger(__name__)

DATABASE_RETRY_SECONDS = 5.0
LARGEST_BODY_MIB = 4
"""Of requests that manage; those for inference have their own limit."""

Body = TypeVar("Body")


async def read(request: Request[Any, Any, Any], kind: type[Body]) -> Body:
    """The request's JSON body as this type. Raises BadRequest with the field that does not fit."""
    return decoded(msgspec.json.Decoder(kind).decode, await request.body())


def parameters(request: Request[Any, Any, Any], known: Collection[str]) -> dict[str, str]:
    """The query's parameters. Raises BadRequest for one that is not known, or is there more than once."""
    given = dict(request.query_params.items())
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise BadRequest(f"There is no parameter '{unknown[0]}': there are {', '.join(known)}", param=unknown[0])
    twice = [name for name in given if len(request.query_params.getall(name)) > 1]
    if twice:
        raise BadRequest(f"The parameter '{twice[0]}' is there more than once: send it once", param=twice[0])
    return given


def number(given: Mapping[str, str], name: str) -> int | None:
    """A parameter that is a whole number from 1 on, and fits SQLite's. Raises BadRequest."""
    if name not in given:
        return None
    text = given[name]
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) > 0):  # noqa: PLR2004 - fits 64 bits
        raise BadRequest(f"{name} takes a whole number from 1 on, not {text!r}", param=name)
    return int(text)


def needs(scope: Scope) -> Guard:
    """A guard: the request's key must have this scope."""

    # not a plain function: Litestar runs those in threads, where nothing that is set is seen by the handler
    async def guard(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
        state, headers = connection.app.state, connection.scope["headers"]
        keyring: Keyring = state.keyring
        sign_ins: SignIns = state.sign_ins
        principal = await keyring.admit(dict(headers), scope)
        peer = peer_of(connection)
        sign_ins.admit(principal, peer, headers)
        acting.set(
            Actor(
                who=principal.key_id,
                subject=principal.name,
                address=sign_ins.addresses.client(peer, headers),
                request_id=request_id_of(connection),
            )
        )

    return guard


def peer_of(connection: ASGIConnection[Any, Any, Any, Any]) -> str | None:
    """The address at the other end of the connection, a proxy's where there is one."""
    client = connection.scope["client"]
    return client[0] if client else None


def request_id_of(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    """The id that this request's answer and log lines carry."""
    return str(connection.scope["state"].get("request_id", "-"))


def answer(error: GatewayError) -> Response[bytes]:
    """An error as an HTTP answer in the one shape."""
    headers = {name.decode(): value.decode() for name, value in error.headers() if name != b"content-type"}
    return Response(error.body(), status_code=error.status, headers=headers, media_type="application/json")


def on_gateway_error(request: Request[Any, Any, Any], error: GatewayError) -> Response[bytes]:
    """Litestar's handler for our own exceptions."""
    if isinstance(error, Unauthorized):
        sign_ins: SignIns = request.app.state.sign_ins
        error = sign_ins.failed(error, peer_of(request), request.scope["headers"], request_id_of(request))
    elif isinstance(error, Forbidden):
        denials: SignIns = request.app.state.sign_ins
        path = request.scope["path"]
        denials.denied(error, peer_of(request), request.scope["headers"], request_id_of(request), path)
    return answer(error)


def on_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Litestar's handler for its own exceptions: routing and limits."""
    path, method = request.scope["path"], request.scope["method"]
    allowed = _allowed(error)
    kinds: dict[int, GatewayError] = {
        404: NotFound(f"There is no route {method} {path}: see docs/api.md for those there are"),
        405: MethodNotAllowed.but(allowed, method, path),
        413: BodyTooLarge(f"The body is larger than the {LARGEST_BODY_MIB} MiB that this route takes"),
    }
    known = kinds.get(error.status_code)
    if known is None and error.status_code < 500:  # noqa: PLR2004 - whatever else Litestar refuses is the caller's doing
        known = BadRequest(error.detail)
    return answer(known) if known is not None else on_bug(request, error)


def _allowed(error: HTTPException) -> str:
    """The methods of the route, in the words of the header `Allow`; HEAD goes wherever GET does."""
    methods = {name.strip() for name in (error.headers or {}).get("allow", "").split(",") if name.strip()}
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))


def on_database_error(request: Request[Any, Any, Any], error: sqlite3.Error) -> Response[bytes]:
    """A file or a disk that fails is told as such; any other error of SQLite's is a bug of ours."""
    trouble = trouble_of(error)
    if trouble is None:
        return on_bug(request, error)
    message = f"{trouble.sentence()}. Nothing was changed; inference goes on"
    return answer(DatabaseUnavailable(message, retry_after=DATABASE_RETRY_SECONDS))


def on_bug(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The last handler: a bug of ours. The log gets the cause, the caller the request id."""
    request_id = request_id_of(request)
    log.error("request failed", request_id=request_id, path=request.scope["path"], exc_info=error)
    return answer(
        InternalError(f"The gateway failed on this request; its log has the cause under the request id {request_id}")
    )


async def name_all_methods(message: Any, scope: Any) -> None:
    """Have the answer to OPTIONS name every method of the path: Litestar names those of one of its handlers."""
    if scope["type"] != "http" or scope["method"] != "OPTIONS" or message["type"] != "http.response.start":
        return
    routes = [route for route in scope["litestar_app"].routes if route.path == scope["path_template"]]
    methods = {str(method) for route in routes for method in route.methods}
    headers = [pair for pair in message["headers"] if pair[0].lower() != b"allow"]
    named = ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))
    message["headers"] = [*headers, (b"allow", named.encode())]


HANDLERS: Any = {
    GatewayError: on_gateway_error,
    HTTPException: on_http_error,
    sqlite3.Error: on_database_error,
    Exception: on_bug,
}
"""Litestar's exception handlers."""
