"""What a request's head says to the proxy. All of it follows from the head alone: who sends it again says it again."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from gateway.proxy.dialects import RESPONSES
from gateway.proxy.paths import ENGINE_PATHS, INFERENCE_ROUTES
from gateway.types import Priority

PRIORITIES = {b"": Priority.INTERACTIVE} | {level.name.lower().encode(): level for level in Priority}
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
FORWARDED = (b"accept", b"traceparent", b"tracestate", b"anthropic-version", b"anthropic-beta")
"""Request headers an engine gets. Credentials and cookies stay here."""
JSON = b"application/json"


def _fresh_ids() -> Iterator[bytes]:
    """Random ids of 32 hex digits, some hundred for each question to the kernel."""
    while True:
        digits = os.urandom(16 * 256).hex().encode()
        for at in range(0, len(digits), 32):
            yield digits[at : at + 32]


fresh_ids = _fresh_ids()


def given_id(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The caller's `x-request-id` where it is usable."""
    given = headers.get(b"x-request-id")
    return given if given and REQUEST_ID.fullmatch(given) else None


def request_id(headers: Mapping[bytes, bytes]) -> bytes:
    """The caller's `x-request-id` where it is usable, else a fresh one of 32 hex digits."""
    return given_id(headers) or next(fresh_ids)


class Head:
    """The head of a request; nobody changes it, for further requests may share it."""

    __slots__ = (
        "about_response",
        "before_id",
        "before_length",
        "credential",
        "dialect",
        "engine_path",
        "given_id",
        "headers",
        "kind",
        "method",
        "path",
        "priority",
        "route",
        "timeout",
    )

    def __init__(
        self, method: str, path: str, query: bytes, headers: Mapping[bytes, bytes], credential: Any = None
    ) -> None:
        """`credential`: what the headers sign in with, for who verifies it (`access.credentials.Credential`)."""
        self.method = method
        self.path = path
        self.route = path.rstrip("/")
        self.about_response = self.route.startswith("/v1/responses/")
        self.engine_path = ENGINE_PATHS.get(self.route, self.route)
        self.dialect = INFERENCE_ROUTES.get(path, RESPONSES)
        self.headers = headers
        self.credential = credential
        self.given_id = given_id(headers)
        self.kind = headers.get(b"content-type", b"")
        self.priority = PRIORITIES.get(headers.get(b"x-hostler-priority", b"").strip().lower())
        """What it asks for; None: something that is no priority."""
        self.timeout = _seconds(headers.get(b"x-hostler-timeout"))
        """Seconds it would wait; None: it does not say; negative: something that is no such number."""
        target = self.engine_path.encode("latin-1", "replace") + (b"?" + query if query else b"")
        # whatever a client calls its JSON (curl -d says it is a form), the engine takes it under one name only
        kind = self.kind if self.kind.lower().startswith(b"multipart/") else JSON
        forwarded = b"".join([b"%b: %b\r\n" % (name, headers[name]) for name in FORWARDED if name in headers])
        self.before_id = b"%b %b HTTP/1.1\r\nhost: engine\r\nx-request-id: " % (method.encode(), target)
        """The head as the engine gets it, up to the request's id."""
        self.before_length = b"\r\n%bcontent-type: %b\r\ncontent-length: " % (forwarded, kind)
        """And from there to the body's length."""


def _seconds(given: bytes | None) -> float | None:
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        return -1.0
    return seconds if 0 <= seconds < float("inf") else -1.0
