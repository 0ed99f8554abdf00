"""The routes on the manager's socket; they only translate HTTP to calls."""

import asyncio
import re
from typing import Any, TypeVar

import msgspec
import structlog
from litestar import Request, Response, delete, get, post, put
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler

from worker_manager.contract import (
    WORKER_ID_PATTERN,
    Accepted,
    DesiredSet,
    DownloadSpec,
    LogTail,
    Refusal,
    Residency,
)
from worker_manager.downloads import DownloadRefusedError, Downloads
from worker_manager.launchers.base import LauncherError
from worker_manager.observation import Observation
from worker_manager.refusals import Refusals
from worker_manager.supervisor import StaleGenerationError, Supervisor

BODY_LIMIT_BYTES = 4 * 1024 * 1024
GENERATION_STEP = 2**32
"""A desired set may be so much higher than the last one: there is to be a next one, whatever somebody sends."""
BODY_SECONDS = 10.0
"""For a request's whole body to arrive."""
WAIT_MAX_SECONDS = 60.0
LOG_LINES_DEFAULT = 200
LOG_LINES_MAX = 10_000
PATH_MAX = 100
"""Characters of a path, or of an id, that are repeated in a message."""
HARMLESS = frozenset({"unknown_worker", "unknown_download", "not_listed"})
"""Refusals that tell of nothing but two who look at different times, or too early."""

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
        await _first_look(supervisor)
        wait = _number(request, "wait", 0.0, WAIT_MAX_SECONDS)
        after = int(_number(request, "after", -1, float("inf")))
        return _json(await observation.after(after, wait))

    @put("/desired")
    async def desired(request: AnyRequest) -> Response[bytes]:
        """Take a desired set."""
        sent = _decode(await _body(request), DesiredSet)
        ids = [spec.id for spec in sent.workers]
        if len(set(ids)) != len(ids):
            raise RefusedError(400, Refusal(kind="invalid", message="two workers of the desired set have the same id"))
        if Residency.GONE in sent.residencies.values():
            raise RefusedError(400, Refusal(kind="invalid", message="a worker that should be gone is left out instead"))
        if sent.generation > supervisor.generation + GENERATION_STEP:
            raise RefusedError(400, Refusal(kind="invalid", message="the generation is far higher than the last one"))
        try:
            supervisor.take(sent)
        except StaleGenerationError as error:
            hint = "read /observed and send a higher generation"
            raise RefusedError(409, Refusal(kind="stale_generation", message=str(error), hint=hint)) from error
        return _json(Accepted(manager=observation.manager, generation=sent.generation))

    @get("/workers/{worker:str}/log")
    async def log(request: AnyRequest, worker: str) -> Response[bytes]:
        """The last lines of a worker's log."""
        _check_id(worker)
        lines = int(_number(request, "lines", LOG_LINES_DEFAULT, LOG_LINES_MAX))
        found = await supervisor.log(worker, lines)
        if found is None:
            raise RefusedError(404, Refusal(kind="unknown_worker", message=f"there is no worker {worker!r}"))
        return _json(LogTail(worker=worker, lines=found))

    return [livez, observed, desired, log]


async def _first_look(supervisor: Supervisor) -> None:
    """Until it is known what runs here. Raises `RefusedError` where that takes too long."""
    if problem := await supervisor.first_look.taken():
        message = f"what runs on this machine is not known yet: {problem}"
        raise RefusedError(503, Refusal(kind="not_listed", message=message, hint="it is asked again each second"))


def _download_routes(downloads: Downloads) -> list[HTTPRouteHandler]:
    @post("/downloads", status_code=200)
    async def start(request: AnyRequest) -> Response[bytes]:
        """Start a download, or answer the running one."""
        try:
            return _json(await downloads.start(_decode(await _body(request), DownloadSpec)))
        except DownloadRefusedError as error:
            raise RefusedError(409, Refusal(kind=error.kind, message=str(error), hint=error.hint)) from error

    @get("/downloads")
    async def list_all() -> Response[bytes]:
        """All downloads."""
        return _json(downloads.list())

    @delete("/downloads/{job:str}", status_code=200)
    async def cancel(job: str) -> Response[bytes]:
        """Cancel a download, or drop a finished one."""
        _check_id(job)
        download = await downloads.cancel(job)
        if download is None:
            raise RefusedError(404, Refusal(kind="unknown_download", message=f"there is no download {job!r}"))
        return _json(download)

    return [start, list_all, cancel]


class Answers:
    """Every error as `{"error": Refusal}`; what was refused is noted."""

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals

    def __call__(self, request: AnyRequest, error: Exception) -> Response[bytes]:
        """The answer to an error."""
        if isinstance(error, LauncherError):
            logger.warning("request_failed", cause=str(error))
            return _error(503, Refusal(kind="launcher", message=str(error), hint="see the manager's log"))
        if isinstance(error, HTTPException):
            error = RefusedError(error.status_code, Refusal(kind="http", message=error.detail))
        if not isinstance(error, RefusedError):
            logger.error("request_failed", exc_info=error)
            return _error(500, Refusal(kind="internal", message="the manager failed; its log says why"))
        if error.refusal.kind not in HARMLESS:
            what = f"{request.method} {request.url.path}"[:PATH_MAX]
            self._refusals.note(error.refusal.kind, f"{what}: {error.status} {error.refusal.message}")
        return _error(error.status, error.refusal)


async def _body(request: AnyRequest) -> bytes:
    """The whole body. Raises `RefusedError` where it does not come in time."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.body()
    except TimeoutError as error:
        message = f"the body was not whole after {BODY_SECONDS:g} s"
        raise RefusedError(408, Refusal(kind="late", message=message)) from error


def _check_id(text: str) -> None:
    """Raises `RefusedError` for what can be no unit's id."""
    if not re.match(WORKER_ID_PATTERN, text):
        raise RefusedError(404, Refusal(kind="invalid", message=f"{text[:PATH_MAX]!r} is no id of ours"))


def _decode(body: bytes, kind: type[T]) -> T:
    """A JSON body as a struct. Raises `RefusedError`."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
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
