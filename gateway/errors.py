"""The gateway's exception tree. Each error knows its HTTP status and its OpenAI body.

GatewayError
├── BadRequest              400  malformed JSON, missing field, value out of range
├── Unauthorized            401  no credential, or one that is not known
│   └── TokenUnverified     401  a sign-in token that nobody has looked at yet; never answered
├── Forbidden               403  a known key without the scope or the endpoint
├── NotFound                404  no such path or thing
│   └── UnknownModel        404  with near names
├── MethodNotAllowed        405
├── RequestTimeout          408  a request that was begun and never finished
├── Conflict                409  a name that is taken, a change that collides
├── BodyTooLarge            413
├── TooManyRequests         429  full queue
│   ├── LimitReached        429  a limit of the key or the endpoint
│   └── BudgetSpent         429  the key's budget
├── HeaderTooLarge          431
├── ClientGone              499  in the log only
├── InternalError           500  our bug
├── EngineBroke             502  the engine died or broke off before the first byte
├── NoWorker                503  no worker in time
│   └── EndpointFailed      503  its workers fail; the message says why
├── Stopping                503  the gateway is being stopped
├── IssuerUnavailable       503  nobody can say whether a sign-in token is good
├── ManagerUnavailable      503  the worker manager does not answer
├── DatabaseUnavailable     503  the database's file or disk fails; the message says how
├── DiskUnavailable         503  the models folder's disk does not answer
├── BackupFailed            503  no backup could be made
└── EngineTooSlow           504
"""

from typing import Any, ClassVar

import msgspec

from gateway.types import Principal


class GatewayError(Exception):
    """The root: everything the gateway answers on purpose. `message` is for the caller and says what to do."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "api_error"
    code: ClassVar[str] = "internal_error"
    closes: ClassVar[bool] = False
    """Whether the connection can't be used on: the rest of the request has not been read."""

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.more_headers: list[tuple[bytes, bytes]] = []
        """What else the answer says of it."""

    def body(self) -> bytes:
        """`{"error": {"message", "type", "param", "code"}}` as JSON bytes."""
        return error_body(self.message, self.type, self.code, self.param)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Content type; where the error passes by itself, `Retry-After` in whole seconds; `Connection` at its end."""
        headers = [(b"content-type", b"application/json"), *self.more_headers]
        if self.retry_after is not None:
            headers.append((b"retry-after", str(max(1, round(self.retry_after))).encode()))
        if self.closes:
            headers.append((b"connection", b"close"))
        return headers


class BadRequest(GatewayError):
    """The request cannot be understood or names an impossible value."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class Unauthorized(GatewayError):
    """No credential, or one that nobody knows."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"

    def headers(self) -> list[tuple[bytes, bytes]]:
        """With what a 401 must have (RFC 9110, 15.5.2); Basic, which is taken too, would make browsers ask people."""
        return [*super().headers(), (b"www-authenticate", b'Bearer realm="hostler"')]


class TokenUnverified(Unauthorized):
    """A person's sign-in token that has to be verified first, which takes waiting: `Keyring.sign_in` does it."""


class Forbidden(GatewayError):
    """The key is known and may not do this."""

    status = 403
    type = "permission_error"
    code = "forbidden"
    scope = ""
    """What it would have needed."""
    who: Principal | None = None


class NotFound(GatewayError):
    """There is no such path or thing."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class UnknownModel(NotFound):
    """No endpoint of this name, or none this key may see."""

    code = "model_not_found"


class MethodNotAllowed(GatewayError):
    """The path exists, the method does not."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    allowed = "POST"
    """The methods there are, with commas between."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """With what a 405 must have (RFC 9110, 15.5.6)."""
        return [*super().headers(), (b"allow", self.allowed.encode())]

    @classmethod
    def but(cls, allowed: str, method: str, path: str) -> "MethodNotAllowed":
        """What a path answers that takes others."""
        error = cls(f"{path} takes {allowed}, not {method}")
        error.allowed = allowed
        return error


class RequestTimeout(GatewayError):
    """A request was begun and not finished in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"
    closes = True


class Conflict(GatewayError):
    """The name is taken, or the change collides with what is there."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class BodyTooLarge(GatewayError):
    """The request body is over the limit."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"
    closes = True


class TooManyRequests(GatewayError):
    """A limit or a full queue; `Retry-After` is always set."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class LimitReached(TooManyRequests):
    """The key or the endpoint has used up what it may take in a minute, or at once."""


class BudgetSpent(TooManyRequests):
    """What is left of the key's budget is too little for this request."""

    code = "insufficient_quota"


class HeaderTooLarge(GatewayError):
    """The request header is over the limit."""

    status = 431
    type = "invalid_request_error"
    code = "header_too_large"


class ClientGone(GatewayError):
    """The client hung up before its answer; nobody reads this but the log."""

    status = 499
    type = "client_error"
    code = "client_gone"


class InternalError(GatewayError):
    """A bug of ours. The caller gets the request id, the log gets the cause."""


class EngineBroke(GatewayError):
    """The engine died, refused or broke off before the first byte of its answer."""

    status = 502
    code = "engine_broke"


class NoWorker(GatewayError):
    """No worker became ready in the time the request could wait; `Retry-After` is always set."""

    status = 503
    type = "service_unavailable_error"
    code = "no_worker"


class EndpointFailed(NoWorker):
    """The endpoint's workers fail to start; waiting would not help."""

    code = "endpoint_failed"


class IssuerUnavailable(GatewayError):
    """The issuer of sign-in tokens does not tell its keys."""

    status = 503
    type = "service_unavailable_error"
    code = "issuer_unavailable"


class ManagerUnavailable(GatewayError):
    """The worker manager does not answer, and this request needs it."""

    status = 503
    type = "service_unavailable_error"
    code = "manager_unavailable"


class DatabaseUnavailable(GatewayError):
    """The database's file or its disk fails, and this request needs it. Nothing was changed."""

    status = 503
    type = "service_unavailable_error"
    code = "database_unavailable"


class DiskUnavailable(GatewayError):
    """The models folder's disk does not answer, and this request needs it. Nothing was changed."""

    status = 503
    type = "service_unavailable_error"
    code = "disk_unavailable"


class BackupFailed(GatewayError):
    """No backup could be made; the ones that are there stay."""

    status = 503
    type = "service_unavailable_error"
    code = "backup_failed"


class Stopping(GatewayError):
    """The gateway's drain time is over, and this request with it."""

    status = 503
    type = "service_unavailable_error"
    code = "stopping"


class EngineTooSlow(GatewayError):
    """The engine accepted the request and did not answer in time."""

    status = 504
    type = "timeout_error"
    code = "engine_too_slow"


def error_body(message: str, kind: str, code: str, param: str | None = None) -> bytes:
    """The one error shape, as JSON bytes."""
    body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return msgspec.json.encode(body)


def sentences(message: str, hint: str) -> str:
    """What happened and what to do, each as a sentence of its own; an empty one is left out."""
    parts = (part.strip().rstrip(".") for part in (message, hint))
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in parts if part)
