"""`/api/usage`: sums of use by key, endpoint or day, for admins."""

import csv
import io
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
from litestar import Controller, Request, Response, get

from gateway.errors import BadRequest
from gateway.http import needs
from gateway.types import Scope
from gateway.usage.gpu_recorder import GpuRecorder
from gateway.usage.gpu_store import GpuStore
from gateway.usage.recorder import Recorder
from gateway.usage.store import UsageStore
from gateway.usage.types import By, GpuSum, Sum, UsageReport, UsageRow, row

DAYS = 30
"""What is shown where nothing is said: today and the days before it."""
JSON, CSV = "json", "csv"
PARAMETERS = ("by", "from", "to", "format")


class UsageRoutes(Controller):
    """What was used, by whom."""

    guards = [needs(Scope.ADMIN)]

    @get("/api/usage")
    async def sums(
        self,
        request: Request[Any, Any, Any],
        usage: UsageStore,
        recorder: Recorder,
        gpu_usage: GpuStore,
        gpu_recorder: GpuRecorder,
        cost_unit: str,
    ) -> Response[UsageReport] | Response[str]:
        """Sums of every request that has ended."""
        given = _parameters(request)
        by, (first, last) = _by(given.get("by")), _days(given)
        wants_csv = _wants_csv(given.get("format"), request.headers.get("accept", ""))
        await recorder.flush()
        sums = await usage.sums(by, first, last)
        gpus = {}
        if by is not By.KEY:
            await gpu_recorder.flush()
            gpus = await gpu_usage.sums(by, first, last)
        total, all_gpus = Sum(), GpuSum()
        for one in sums.values():
            total = total.plus(one)
        for used in gpus.values():
            all_gpus = all_gpus.plus(used)
        report = UsageReport(
            by=by,
            unit=cost_unit,
            first_day=first,
            last_day=last,
            total=row("total", total, None if by is By.KEY else all_gpus),
            rows=[
                row(name, sums.get(name, Sum()), None if by is By.KEY else gpus.get(name, GpuSum()))
                for name in sorted(sums.keys() | gpus.keys())
            ],
            unwritten=recorder.unwritten,
        )
        if not wants_csv:
            return Response(report)
        name = f"usage-by-{by}-{first}-{last}.csv"
        return Response(
            _csv(report),
            media_type="text/csv",
            headers={"content-disposition": f'attachment; filename="{name}"'},
        )


def _parameters(request: Request[Any, Any, Any]) -> dict[str, str]:
    given = dict(request.query_params.items())
    unknown = sorted(set(given) - set(PARAMETERS))
    if unknown:
        raise BadRequest(f"There is no parameter '{unknown[0]}': there are {', '.join(PARAMETERS)}", param=unknown[0])
    return given


def _by(given: str | None) -> By:
    try:
        return By(given or By.KEY)
    except ValueError:
        raise BadRequest(f"by takes {', '.join(By)}, not {given!r}", param="by") from None


def _days(given: dict[str, str]) -> tuple[str, str]:
    """The first and the last day, as `2026-11-23`."""
    last = _day("to", given.get("to")) or datetime.now(UTC).date()
    first = _day("from", given.get("from")) or last - timedelta(days=min(DAYS - 1, (last - date.min).days))
    if first > last:
        raise BadRequest(
            f"from ({first}) is later than to ({last}): both are days, the last one included", param="from"
        )
    return first.isoformat(), last.isoformat()


def _day(name: str, given: str | None) -> date | None:
    if not given:
        return None
    try:
        return datetime.strptime(given, "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError:
        raise BadRequest(f"{name} takes a day in UTC, such as 2026-11-23, not {given!r}", param=name) from None


def _wants_csv(given: str | None, accept: str) -> bool:
    if given not in {None, "", JSON, CSV}:
        raise BadRequest(f"format takes json or csv, not {given!r}", param="format")
    return given == CSV if given else "text/csv" in accept


def _csv(report: UsageReport) -> str:
    """The rows and no total: spreadsheets add up themselves."""
    columns = [field for field in UsageRow.__struct_fields__ if field != "name"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([report.by.value, *columns])
    for one in report.rows:
        writer.writerow(["" if value is None else value for value in msgspec.structs.astuple(one)])
    return out.getvalue()
