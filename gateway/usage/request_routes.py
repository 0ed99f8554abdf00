"""`/api/usage/requests`: the record of each request, for admins, for as long as it is kept."""

import csv
import io
import re
from datetime import UTC, date, datetime
from typing import Any

import msgspec
from litestar import Controller, Request, Response, get

from gateway.errors import BadRequest
from gateway.http import needs, number, parameters
from gateway.prices import units
from gateway.types import Priority, Scope, Used
from gateway.usage.questions import days, wants_csv
from gateway.usage.recorder import Recorder
from gateway.usage.request_store import Place, RequestStore, Wanted
from gateway.usage.types import DAY_SECONDS

PAGE, PAGE_LIMIT = 100, 1000
DAYS = 1
"""What is shown where nothing is said: today."""
PLACE = re.compile(r"\d{1,15}(\.\d{1,12})?-\d{1,18}", re.ASCII)
PARAMETERS = ("key", "endpoint", "from", "to", "limit", "before", "format")


class RequestView(msgspec.Struct, frozen=True):
    """One request; its times in milliseconds."""

    at: float
    """When it ended; Unix seconds."""
    request_id: str
    key: str
    endpoint: str
    worker: str
    status: int
    stream: bool
    client_gone: bool
    priority: str
    tokens_in: int
    tokens_out: int
    tokens_cached: int
    estimated: bool
    queue_ms: int
    first_byte_ms: int | None
    total_ms: int
    cost: float
    """In units."""


class RequestsPage(msgspec.Struct, frozen=True):
    """The newest requests first."""

    unit: str
    requests: list[RequestView]
    next: str | None
    """What `before` has to be for the next page; null: there is none."""
    unwritten: int
    """Requests that ended and are not here yet, because the database takes no writes now."""


class RequestRoutes(Controller):
    """Single requests."""

    guards = [needs(Scope.ADMIN)]

    @get("/api/usage/requests")
    async def page(
        self, request: Request[Any, Any, Any], requests: RequestStore, recorder: Recorder, cost_unit: str
    ) -> Response[RequestsPage] | Response[str]:
        """A page of the requests that fit."""
        given = parameters(request, PARAMETERS)
        first, last = days(given, DAYS)
        wanted = Wanted(
            _begin(first),
            min(_place(given.get("before")), Place(_begin(last) + DAY_SECONDS)),
            given.get("key") or None,
            given.get("endpoint") or None,
        )
        most, csv_wanted = (
            min(number(given, "limit") or PAGE, PAGE_LIMIT),
            wants_csv(given.get("format"), request.headers.get("accept", "")),
        )
        await recorder.flush()
        found, place = await requests.page(wanted, most)
        following = f"{place.at!r}-{place.number}" if place is not None else None
        page = RequestsPage(cost_unit, [view(used) for used in found], following, recorder.unwritten)
        if not csv_wanted:
            return Response(page)
        headers = {"content-disposition": f'attachment; filename="requests-{first}-{last}.csv"'}
        if following is not None:
            headers["x-hostler-next"] = following
        return Response(_csv(page), media_type="text/csv", headers=headers)


def view(used: Used) -> RequestView:
    """A record as it is shown."""
    return RequestView(
        used.at,
        used.request_id,
        used.key_id,
        used.endpoint,
        used.worker,
        used.status,
        bool(used.stream),
        bool(used.client_gone),
        Priority(used.priority).name.lower(),
        used.tokens_in,
        used.tokens_out,
        used.tokens_cached,
        bool(used.estimated),
        used.queue_ms,
        used.first_byte_ms,
        used.total_ms,
        units(used.cost),
    )


def _begin(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()


def _csv(page: RequestsPage) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(RequestView.__struct_fields__)
    for one in page.requests:
        writer.writerow(["" if value is None else value for value in msgspec.structs.astuple(one)])
    return out.getvalue()


def _place(text: str | None) -> Place:
    if not text:
        return Place(float("inf"))
    at, _, number = text.rpartition("-")
    if PLACE.fullmatch(text) is None:
        raise BadRequest(f"before takes what `next` said of the page before, not {text!r}", param="before")
    return Place(float(at), int(number))
