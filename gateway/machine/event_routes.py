"""`/api/events`: everything that changes, as server-sent events."""

import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec
from litestar import Controller, Request, get
from litestar.response import Stream

from gateway.access.keyring import Keyring
from gateway.errors import BadRequest, GatewayError, TooManyRequests
from gateway.events import Event, Events, Kind
from gateway.http import needs, parameters
from gateway.types import Scope

HEARTBEAT_SECONDS = 10.0
LISTENERS = 100
RETRY_MS = 2000
AT_ONCE = 100
"""Events in one piece: what is held for a client that reads slowly."""
HEARTBEAT = b": heartbeat\n\n"
MISSED = (
    b'event: missed\ndata: {"message": "some events are no longer kept: read /api/endpoints for how things stand"}\n\n'
)
PARAMETERS = ("kind", "endpoint", "after")


class Wanted(msgspec.Struct, frozen=True):
    """What one listener asked for."""

    kinds: frozenset[Kind]
    endpoint: str | None

    def wants(self, event: Event) -> bool:
        """Whether this event is for it."""
        return event.kind in self.kinds and self.endpoint in (None, event.endpoint)


class EventRoutes(Controller):
    """The stream of events."""

    guards = [needs(Scope.ENDPOINTS)]

    @get("/api/events")
    async def events(self, request: Request[Any, Any, Any], events: Events, keyring: Keyring) -> Stream:
        """Every event from now on, or behind the one that `Last-Event-ID` names."""
        given = parameters(request, PARAMETERS)
        wanted = Wanted(_kinds(given.get("kind", "")), given.get("endpoint"))
        last = request.headers.get("last-event-id") or given.get("after")
        if events.listeners >= LISTENERS:
            raise TooManyRequests(f"{LISTENERS} clients listen to events already: close one", retry_after=30)
        headers = dict(request.scope["headers"])
        return Stream(
            _stream(events, wanted, last, lambda: keyring.authorize(headers, Scope.ENDPOINTS)),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )


async def _stream(
    events: Events, wanted: Wanted, last: str | None, authorize: Callable[[], object]
) -> AsyncGenerator[bytes, None]:
    events.listeners += 1
    try:
        number, lost = _place(events, last)
        yield b"retry: %d\n: hostler\n\n" % RETRY_MS
        written = time.monotonic()
        while not events.closed:
            found, missed = events.after(number)
            if lost or missed:
                lost = False
                yield MISSED
            found = found[:AT_ONCE]
            number = found[-1].number if found else number
            frames = b"".join(_frame(events, event) for event in found if wanted.wants(event))
            if frames or not found or time.monotonic() - written >= HEARTBEAT_SECONDS:
                yield frames or HEARTBEAT  # also to one for whom nothing of all that happens is
                written = time.monotonic()
            await events.wait(number, HEARTBEAT_SECONDS)
            authorize()  # the key may have been revoked, or have expired, meanwhile
    except GatewayError as refused:
        yield b"event: error\ndata: " + refused.body() + b"\n\n"
    finally:
        events.listeners -= 1


def _kinds(given: str) -> frozenset[Kind]:
    try:
        return frozenset(Kind(kind.strip()) for kind in given.split(",")) if given else frozenset(Kind)
    except ValueError:
        raise BadRequest(f"kind takes {', '.join(Kind)}, several with commas between", param="kind") from None


def _place(events: Events, last: str | None) -> tuple[int, bool]:
    """The number behind which to begin, and whether it is another life's: then all that is kept comes."""
    if last is None:
        return events.newest, False
    life, _, number = last.partition("-")
    if life != events.life or not number.isascii() or not number.isdecimal() or int(number) > events.newest:
        return 0, True
    return int(number), False


def _frame(events: Events, event: Event) -> bytes:
    data = msgspec.json.encode({"at": event.at, "endpoint": event.endpoint, **event.what})
    return b"id: %s-%d\nevent: %s\ndata: %s\n\n" % (events.life.encode(), event.number, event.kind.encode(), data)
