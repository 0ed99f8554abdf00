"""`/api/host`, `/api/workers`, `/api/plan`, `/api/downloads`: what the manager sees and does, for admins."""

import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from litestar import Controller, Request, Response, delete, get, post
from litestar.response import Stream

from gateway.audit.store import AuditStore
from gateway.errors import BadRequest, Conflict, NotFound
from gateway.http import needs, read
from gateway.manager import ManagerClient, ManagerRefused
from gateway.scheduling.loop import Scheduler
from gateway.scheduling.planner import plan
from gateway.types import Scope
from worker_manager.contract import WORKER_ID_PATTERN, Download, DownloadSpec, HostFacts

Log = Callable[[], AsyncIterator[bytes]]
"""The decision log, in pieces."""
LOG_LINES = 200
LOG_LINES_LIMIT = 2000
NOT_FOUND = 404


class MachineRoutes(Controller):
    """The machine and what runs on it."""

    guards = [needs(Scope.ADMIN)]

    @get("/api/host", sync_to_thread=False)
    def host(self, scheduler: Scheduler) -> HostFacts:
        """GPUs, memory, disk, engine images."""
        return scheduler.host()

    @get("/api/workers", sync_to_thread=False)
    def workers(self, scheduler: Scheduler) -> list[dict[str, Any]]:
        """Every worker the manager sees, with the requests it is serving."""
        return [
            msgspec.to_builtins(worker) | scheduler.traffic(worker.spec.id)
            for worker in (scheduler.observed.workers if scheduler.observed else ())
        ]

    @get("/api/workers/{worker_id:str}/logs")
    async def logs(self, worker_id: str, manager: ManagerClient, lines: int = LOG_LINES) -> Response[str]:
        """The last lines a worker printed, as text."""
        if not re.fullmatch(WORKER_ID_PATTERN, worker_id):
            raise NotFound(f"There is no worker '{worker_id}': GET /api/workers lists them")
        try:
            tail = await manager.log(worker_id, min(max(lines, 1), LOG_LINES_LIMIT))
        except ManagerRefused as refused:
            raise _translated(refused) from refused
        return Response("".join(f"{line}\n" for line in tail.lines), media_type="text/plain")

    @get("/api/plan", sync_to_thread=False)
    def plan(self, scheduler: Scheduler) -> dict[str, Any]:
        """The planner, run dry on this instant: what it would do, what it did last, and why each worker is there."""
        scheduler.host()
        assert scheduler.observed is not None  # noqa: S101 - host() has just refused otherwise
        situation = scheduler.situation(scheduler.observed)
        return {
            "plan": msgspec.to_builtins(plan(situation)),
            "situation": msgspec.to_builtins(situation),
            "last": msgspec.to_builtins(scheduler.last_plan),
            "workers": msgspec.to_builtins(scheduler.reasons.all()),
        }

    @get("/api/plan/log", sync_to_thread=False)
    def plan_log(self, decisions: Log) -> Stream:
        """What the planner was told and decided lately, a JSON line for each plan: what `scripts/replay` reads."""
        return Stream(decisions(), media_type="application/jsonl")

    @post("/api/downloads", status_code=202)
    async def download(self, request: Request[Any, Any, Any], manager: ManagerClient, audit: AuditStore) -> Download:
        """Start a download, or find the one that is running."""
        spec = await read(request, DownloadSpec)
        if spec.model.startswith("local/"):
            raise BadRequest(
                "A model under local/ is yours already: only hub repositories are downloaded", param="model"
            )
        asked = msgspec.to_builtins(spec)
        await audit.note("download.start", spec.model, after=asked)
        try:
            return await manager.download(spec)
        except ManagerRefused as refused:
            await audit.note("download.refused", spec.model, after=asked | {"message": refused.sentences()})
            raise _translated(refused) from refused

    @get("/api/downloads")
    async def downloads(self, manager: ManagerClient) -> list[Download]:
        """Every download with bytes done and total."""
        return await manager.downloads()

    @delete("/api/downloads/{download_id:str}", status_code=200)
    async def cancel(self, download_id: str, manager: ManagerClient, audit: AuditStore) -> Download:
        """Cancel a download; what was fetched stays, so that a later one goes on from there."""
        found = next((one for one in await manager.downloads() if one.id == download_id), None)
        if found is None:
            raise NotFound(f"There is no download {download_id!r}: GET /api/downloads lists them")
        await audit.note("download.cancel", found.model, before={"id": found.id, "revision": found.revision})
        try:
            return await manager.cancel_download(download_id)
        except ManagerRefused as refused:
            raise _translated(refused) from refused


def _translated(refused: ManagerRefused) -> NotFound | Conflict:
    kind = NotFound if refused.status == NOT_FOUND else Conflict
    return kind(refused.sentences())
