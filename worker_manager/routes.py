"""The routes on the manager's socket; they only translate HTTP to calls."""

from typing import Any, TypeVar

import msgspec
import structlog
from litestar import Request, Response, delete, get, post, put
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler

from worker_manager.contract import Accepted, DesiredSet, DownloadSpec, LogTail, Refusal, Residency
from worker_manager.downloads import DownloadRefusedError, Downloads
from worker_manager.launchers.base import LauncherError
from worker_manager.observation import Observation
from worker_manager.supervisor import StaleGenerationError, Supervisor

BODY_LIMIT_BYTES = 4 * 1024 * 1024
WAIT_MAX_SECONDS = 60.0
LOG_LINES_DEFAULT = 200
LOG_LINES_MAX = 10_000

T = TypeVar("T")
AnyRequest = Request[Any, Any, Any]
logger = structlog.get_logger()


class RefusedError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.status = status
        self.refusal = refusal


def handlers(observation: Observation, supervisor: Supervisor, downloads: Downloads) -> list[HTTPRouteHandler]:
    """All routes of `contract`'s docstring."""
    return [*_worker_routes(observation, supervisor), *_download_routes(downloads)]


def _worker_routes(observation: Observation, supervisor: Supervisor) -> list[HTTPRouteHandler]:
    @get("/livez", status_code=204)
    async def livez() -> None:
        """The event loop turns."""

    @get("/observed")
    async def observed(request: AnyRequest) -> Response[bytes]:
        """The observed set, at once or after its next change."""
        await supervisor.settled()
        wait = _number(request, "wait", 0.0, WAIT_MAX_SECONDS)
        after = int(_number(request, "after", -1, float("inf")))
        return _json(await observation.after(after, wait))

    @put("/desired")
    async def desired(request: AnyRequest) -> Response[bytes]:
        """Take a desired set."""
        sent = _decode(await request.body(), DesiredSet)
        ids = [spec.id for spec in sent.workers]
        if len(set(ids)) != len(ids):
            raise RefusedError(400, Refusal(kind="invalid", message="two workers of the desired set have the same id"))
        if Residency.GONE in sent.residencies.values():
            raise RefusedError(400, Refusal(kind="invalid", message="a worker that should be gone is left out instead"))
        try:
            supervisor.take(sent)
        except StaleGenerationError as error:
            hint = "read /observed and send a higher generation"
            raise RefusedError(409, Refusal(kind="stale_generation", message=str(error), hint=hint)) from error
        return _json(Accepted(manager=observation.manager, generation=sent.generation))

    @get("/workers/{worker:str}/log")
    async def log(request: AnyRequest, worker: str) -> Response[bytes]:
        """The last lines of a worker's log."""
        lines = int(_number(request, "lines", LOG_LINES_DEFAULT, LOG_LINES_MAX))
        found = await supervisor.log(worker, lines)
        if found is None:
            raise RefusedError(404, Refusal(kind="unknown_worker", message=f"there is no worker {worker!r}"))
        return _json(LogTail(worker=worker, lines=found))

    return [livez, observed, desired, log]


def _download_routes(downloads: Downloads) -> list[HTTPRouteHandler]:
    @post("/downloads", status_code=200)
    async def start(request: AnyRequest) -> Response[bytes]:
        """Start a download, or answer the running one."""
        try:
            return _json(await downloads.start(_decode(await request.body(), DownloadSpec)))
        except DownloadRefusedError as error:
            raise RefusedError(409, Refusal(kind=error.kind, message=str(error), hint=error.hint)) from error

    @get("/downloads")
    async def list_all() -> Response[bytes]:
        """All downloads."""
        return _json(downloads.list())

    @delete("/downloads/{job:str}", status_code=200)
    async def cancel(job: str) -> Response[bytes]:
        """Cancel a download, or drop a finished one."""
        download = await downloads.cancel(job)
        if download is None:
            raise RefusedError(404, Refusal(kind="unknown_download", message=f"there is no download {job!r}"))
        return _json(download)

    return [start, list_all, cancel]


def answer_error(_request: AnyRequest, error: Exception) -> Response[bytes]:
    """Every error as `{"error": Refusal}`."""
    if isinstance(error, RefusedError):
        return _error(error.status, error.refusal)
    if isinstance(error, HTTPException):
        return _error(error.status_code, Refusal(kind="http", message=error.detail))
    if isinstance(error, LauncherError):
        logger.warning("request_failed", cause=str(error))
        return _error(503, Refusal(kind="launcher", message=str(error), hint="see the manager's log"))
    logger.error("request_failed", exc_info=error)
    return _error(500, Refusal(kind="internal", message="the manager failed; its log says why"))


def _decode(body: bytes, kind: type[T]) -> T:
    """A JSON body as a struct. Raises `RefusedError`."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise RefusedError(400, Refusal(kind="invalid", message=f"the body does not fit: {error}")) from error


def _number(request: AnyRequest, name: str, default: float, highest: float) -> float:
    """A number from the query, at most `highest`. Raises `RefusedError`."""
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not number >= 0 or number == float("inf"):
        raise RefusedError(400, Refusal(kind="invalid", message=f"{name} is {text!r}; it must be a number from 0 on"))
    return min(number, highest)


def _json(value: object) -> Response[bytes]:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _error(status: int, refusal: Refusal) -> Response[bytes]:
    body = msgspec.json.encode({"error": refusal})
    return Response(body, status_code=status, media_type="application/json")
