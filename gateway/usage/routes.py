"""`/api/usage`: sums of use by key, endpoint or day, for admins."""

import csv
import io
from typing import Any

import msgspec
from litestar import Controller, Request, Response, get

from gateway.errors import BadRequest
from gateway.http import needs, parameters
from gateway.types import Scope
from gateway.usage.gpu_recorder import GpuRecorder
from gateway.usage.gpu_store import GpuStore
from gateway.usage.questions import days, wants_csv
from gateway.usage.recorder import Recorder
from gateway.usage.store import UsageStore
from gateway.usage.types import By, GpuSum, Sum, UsageReport, UsageRow, WantedDays, row

DAYS = 30
"""What is shown where nothing is said: today and the days before it."""
PARAMETERS = ("by", "key", "endpoint", "from", "to", "format")


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
        given = parameters(request, PARAMETERS)
        by = _by(given.get("by"))
        first, last = [day.isoformat() for day in days(given, DAYS)]
        csv_wanted = wants_csv(given.get("format"), request.headers.get("accept", ""))
        await recorder.flush()
        wanted = WantedDays(first, last, given.get("key") or None, given.get("endpoint") or None)
        sums, gpus = await usage.sums(by, wanted), {}
        of_keys = by is By.KEY or wanted.key is not None  # and no key holds a GPU
        if not of_keys:
            await gpu_recorder.flush()
            gpus = await gpu_usage.sums(by, wanted)
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
            total=row("total", total, None if of_keys else all_gpus),
            rows=[
                row(name, sums.get(name, Sum()), None if of_keys else gpus.get(name, GpuSum()))
                for name in sorted(sums.keys() | gpus.keys())
            ],
            unwritten=recorder.unwritten,
        )
        if not csv_wanted:
            return Response(report)
        name = f"usage-by-{by}-{first}-{last}.csv"
        return Response(
            _csv(report),
            media_type="text/csv",
            headers={"content-disposition": f'attachment; filename="{name}"'},
        )


def _by(given: str | None) -> By:
    try:
        return By(given or By.KEY)
    except ValueError:
        raise BadRequest(f"by takes {', '.join(By)}, not {given!r}", param="by") from None


def _csv(report: UsageReport) -> str:
    """The rows and no total: spreadsheets add up themselves."""
    columns = [field for field in UsageRow.__struct_fields__ if field != "name"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([report.by.value, *columns])
    for one in report.rows:
        writer.writerow(["" if value is None else value for value in msgspec.structs.astuple(one)])
    return out.getvalue()
