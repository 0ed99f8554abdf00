"""What a request's head says to the proxy, and what engines get of it."""

import pytest

from gateway.proxy.dialects import ANTHROPIC, OPENAI, RESPONSES, Dialect
from gateway.proxy.head import Head, request_id
from gateway.types import Priority


def head_of(path: str = "/v1/completions", query: bytes = b"", **headers: bytes) -> Head:
    return Head("POST", path, query, {name.replace("_", "-").encode(): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("path", "route", "engine_path", "dialect", "about_response"),
    [
        ("/v1/completions", "/v1/completions", "/v1/completions", OPENAI, False),
        ("/v1/pooling", "/v1/pooling", "/pooling", OPENAI, False),
        ("/v1/messages", "/v1/messages", "/v1/messages", ANTHROPIC, False),
        ("/v1/responses", "/v1/responses", "/v1/responses", RESPONSES, False),
        ("/v1/responses/", "/v1/responses", "/v1/responses", RESPONSES, False),
        ("/v1/responses/a/cancel/", "/v1/responses/a/cancel", "/v1/responses/a/cancel", RESPONSES, True),
    ],
)
def test_a_path_tells_dialect_and_route(
    path: str, route: str, engine_path: str, dialect: Dialect, *, about_response: bool
) -> None:
    head = head_of(path)
    said = head.path, head.route, head.engine_path, head.dialect, head.about_response
    assert said == (path, route, engine_path, dialect, about_response)


def test_engines_get_what_concerns_them_and_no_credentials() -> None:
    plain = head_of(authorization=b"Bearer hst_x", cookie=b"c", content_type=b"application/x-www-form-urlencoded")
    assert plain.before_id == b"POST /v1/completions HTTP/1.1\r\nhost: engine\r\nx-request-id: "
    assert plain.before_length == b"\r\ncontent-type: application/json\r\ncontent-length: "
    form = head_of(
        "/v1/pooling", b"a=b", tracestate=b"t", accept=b"*/*", content_type=b"Multipart/form-data; boundary=x"
    )
    assert form.before_id == b"POST /pooling?a=b HTTP/1.1\r\nhost: engine\r\nx-request-id: "
    assert form.before_length == (
        b"\r\naccept: */*\r\ntracestate: t\r\ncontent-type: Multipart/form-data; boundary=x\r\ncontent-length: "
    )


@pytest.mark.parametrize("given", [b"", b"a b", b"x" * 129, "ä".encode()])
def test_an_id_that_is_not_usable_is_none(given: bytes) -> None:
    assert head_of(x_request_id=given).given_id is None
    assert len(request_id({b"x-request-id": given})) == 32
    assert request_id({}) != request_id({})
    assert head_of(x_request_id=b"mine").given_id == request_id({b"x-request-id": b"mine"}) == b"mine"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (None, Priority.INTERACTIVE),
        (b"", Priority.INTERACTIVE),
        (b" Batch ", Priority.BATCH),
        (b"interactive", Priority.INTERACTIVE),
        (b"soon", None),
    ],
)
def test_a_priority_is_one_of_two_or_wrong(given: bytes | None, meant: Priority | None) -> None:
    assert (head_of() if given is None else head_of(x_hostler_priority=given)).priority == meant


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (None, None),
        (b"0", 0.0),
        (b"1.5", 1.5),
        (b"-1", -1.0),
        (b"nan", -1.0),
        (b"inf", -1.0),
        (b"", -1.0),
        (b"x", -1.0),
    ],
)
def test_a_timeout_is_seconds_or_wrong(given: bytes | None, meant: float | None) -> None:
    assert (head_of() if given is None else head_of(x_hostler_timeout=given)).timeout == meant
