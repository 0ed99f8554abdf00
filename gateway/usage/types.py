"""Sums of use: what the table `usage_days` holds and what `GET /api/usage` shows."""

from datetime import UTC, datetime
from enum import StrEnum
from operator import add
from typing import Any, NamedTuple

import msgspec

from gateway.prices import WH_MJ, units
from gateway.types import Used

DAY_SECONDS = 86_400
FAILED = 400
"""The least status that is an error."""


class By(StrEnum):
    """What sums are grouped by."""

    KEY = "key"
    ENDPOINT = "endpoint"
    DAY = "day"


class WantedDays(NamedTuple):
    """Which sums."""

    first: str
    """`2026-11-23`, in UTC."""
    last: str
    """The last day, included."""
    key: str | None = None
    endpoint: str | None = None


class Group(NamedTuple):
    """Whose use a sum is; the key of a row of `usage_days`."""

    day: str
    """`2026-11-23`, in UTC: when the requests ended."""
    key_id: str
    endpoint: str


class Sum(NamedTuple):
    """Requests added up; the columns of `usage_days` in their order."""

    requests: int = 0
    errors: int = 0
    """With a status of 400 or more, but for clients that left."""
    clients_gone: int = 0
    estimated: int = 0
    """Requests whose tokens the engine did not come to tell."""
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    queue_ms: int = 0
    answered: int = 0
    """Requests that have a time to their first byte."""
    first_byte_ms: int = 0
    total_ms: int = 0
    cost: int = 0
    """Billionths of a unit."""

    def plus(self, other: "Sum") -> "Sum":
        """Both together."""
        return Sum(*map(add, self, other))


class GpuSum(NamedTuple):
    """What an endpoint has had of the GPUs; the columns of `gpu_days` in their order, with fractions until written."""

    gpu_ms: float = 0
    """Milliseconds of one whole GPU."""
    gpu_cost: int = 0
    """Billionths of a unit."""
    energy_mj: float | None = None
    """Millijoules; None where no card told."""
    energy_cost: int | None = None
    """Billionths of a unit; None where the energy or its price is not known."""

    def plus(self, other: "GpuSum") -> "GpuSum":
        """Both together; what only one of them knows is what is known."""
        return GpuSum(
            self.gpu_ms + other.gpu_ms,
            self.gpu_cost + other.gpu_cost,
            _known(self.energy_mj, other.energy_mj),
            _whole(_known(self.energy_cost, other.energy_cost)),
        )

    def whole(self) -> tuple[int, int, int | None, int | None]:
        """As it is stored."""
        return round(self.gpu_ms), self.gpu_cost, _whole(self.energy_mj), self.energy_cost


def _known(one: float | None, other: float | None) -> float | None:
    return one if other is None else other if one is None else one + other


def _whole(number: float | None) -> int | None:
    return None if number is None else round(number)


def added_up(records: list[Used]) -> dict[Group, Sum]:
    """Sums of requests by day, key and endpoint."""
    groups: dict[tuple[int, str, str], list[Used]] = {}
    for used in records:
        groups.setdefault((int(used.at // DAY_SECONDS), used.key_id, used.endpoint), []).append(used)
    return {Group(_day(number), key_id, endpoint): _sum(found) for (number, key_id, endpoint), found in groups.items()}


def _day(number: int) -> str:
    """The day that is so many after 1970-01-01."""
    return datetime.fromtimestamp(number * DAY_SECONDS, UTC).strftime("%Y-%m-%d")


def _sum(records: list[Used]) -> Sum:
    # column by column, since sum() of a tuple is all in C: a third less time for each record
    column: dict[str, tuple[Any, ...]] = dict(zip(Used._fields, zip(*records, strict=True), strict=True))
    gone_of_failed = [
        gone for status, gone in zip(column["status"], column["client_gone"], strict=True) if status >= FAILED
    ]
    first_bytes = [ms for ms in column["first_byte_ms"] if ms is not None]
    return Sum(
        requests=len(records),
        errors=gone_of_failed.count(0),
        clients_gone=sum(column["client_gone"]),
        estimated=sum(column["estimated"]),
        tokens_in=sum(column["tokens_in"]),
        tokens_out=sum(column["tokens_out"]),
        tokens_cached=sum(column["tokens_cached"]),
        queue_ms=sum(column["queue_ms"]),
        answered=len(first_bytes),
        first_byte_ms=sum(first_bytes),
        total_ms=sum(column["total_ms"]),
        cost=sum(column["cost"]),
    )


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the answer."""

    name: str
    """The key's id, the endpoint's name, or the day."""
    requests: int
    errors: int
    clients_gone: int
    estimated: int
    tokens_in: int
    tokens_out: int
    tokens_cached: int
    mean_queue_ms: float | None
    mean_first_byte_ms: float | None
    mean_total_ms: float | None
    token_cost: float
    """What the requests cost, in units, each by the price of its time."""
    gpu_seconds: float | None
    """Of one whole GPU, held by its workers while they were awake; None by key: no key holds a GPU."""
    gpu_cost: float | None
    energy_wh: float | None
    """None where no card told, and by key."""
    energy_cost: float | None
    """None where the energy or HOSTLER_KWH_PRICE is not known."""


def row(name: str, total: Sum, gpus: GpuSum | None) -> UsageRow:
    """Sums as they are shown; means are null where there is nothing to take them of."""
    return UsageRow(
        name=name,
        requests=total.requests,
        errors=total.errors,
        clients_gone=total.clients_gone,
        estimated=total.estimated,
        tokens_in=total.tokens_in,
        tokens_out=total.tokens_out,
        tokens_cached=total.tokens_cached,
        mean_queue_ms=_mean(total.queue_ms, total.requests),
        mean_first_byte_ms=_mean(total.first_byte_ms, total.answered),
        mean_total_ms=_mean(total.total_ms, total.requests),
        token_cost=units(total.cost),
        gpu_seconds=None if gpus is None else round(gpus.gpu_ms / 1000, 3),
        gpu_cost=None if gpus is None else units(gpus.gpu_cost),
        energy_wh=None if gpus is None or gpus.energy_mj is None else round(gpus.energy_mj / WH_MJ, 6),
        energy_cost=None if gpus is None or gpus.energy_cost is None else units(gpus.energy_cost),
    )


def _mean(total: int, count: int) -> float | None:
    return round(total / count, 1) if count else None


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer of `GET /api/usage`."""

    by: By
    unit: str
    """What costs are counted in; empty where nobody has said."""
    first_day: str = msgspec.field(name="from")
    last_day: str = msgspec.field(name="to")
    total: UsageRow
    rows: list[UsageRow]
    unwritten: int
    """Requests that ended and are not in these sums yet, because the database takes no writes now."""
