"""Download jobs as the gateway sees them: started through the launcher, read from what they print.

Nothing is kept on disk: a job's unit and its log are the memory, so a manager that comes back finds them all.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import structlog

from worker_manager.contract import Download, DownloadSpec, DownloadState, Failure, FailureKind
from worker_manager.launchers.base import Launcher, LauncherError, Unit, UnitKind

POLL_SECONDS = 1.0
STOP_SECONDS = 10.0
LOG_LINES = 60
RUNNING_MAX = 16
"""How many jobs run at once; each is a container, with a network and with the models folder."""
FINISHED_KEPT = 32
"""How many finished jobs are listed; older ones are removed with their units."""
KINDS = {
    "model_gated": FailureKind.MODEL_GATED,
    "model_missing": FailureKind.MODEL_MISSING,
    "offline": FailureKind.OFFLINE,
    "disk_full": FailureKind.DISK_FULL,
}

logger = structlog.get_logger()


class DownloadRefusedError(Exception):
    """A download that can't be started; `kind` and `hint` go into the answer."""

    def __init__(self, kind: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.hint = hint


class Downloads:
    """All download jobs of this manager. All methods belong to one event loop."""

    def __init__(self, launcher: Launcher, *, offline: bool, on_change: Callable[[], None]) -> None:
        self._launcher = launcher
        self._offline = offline
        self._on_change = on_change
        self._downloads: dict[str, Download] = {}
        self._units: dict[str, Unit] = {}
        self._wake = asyncio.Event()
        self._locks: dict[str, asyncio.Lock] = {}
        self._starting: set[str] = set()

    async def run(self) -> None:
        """Until cancelled: read the running jobs' output each second."""
        while True:
            self._wake.clear()
            for unit in [unit for unit in self._units.values() if self._needs_reading(unit)]:
                await self._read_safely(unit)
            try:
                async with asyncio.timeout(POLL_SECONDS if self._running() else None):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def observe(self, units: Iterable[Unit]) -> None:
        """Take a listing of the launcher; jobs found after a restart are adopted."""
        jobs = {unit.id: unit for unit in units if unit.kind is UnitKind.JOB and unit.download is not None}
        if jobs == self._units:
            return
        self._units = jobs
        self._wake.set()

    def list(self) -> tuple[Download, ...]:
        """Every download known, the newest last."""
        return tuple(sorted(self._downloads.values(), key=lambda download: (download.since, download.id)))

    async def start(self, spec: DownloadSpec) -> Download:
        """Start a job, or answer the running one. Raises `DownloadRefusedError`, `LauncherError`."""
        if self._offline:
            raise DownloadRefusedError(
                "offline",
                "downloads are switched off on this machine",
                "unset HOSTLER_OFFLINE, or put the model below models/local/ yourself",
            )
        job_id = job_id_of(spec)
        running = {known.id for known in self.list() if known.state is DownloadState.RUNNING} | self._starting
        if job_id not in running and len(running) >= RUNNING_MAX:
            raise DownloadRefusedError(
                "busy", f"{RUNNING_MAX} downloads run already", "wait until one has ended, or cancel one"
            )
        self._starting.add(job_id)
        try:
            return await self._start(job_id, spec)
        finally:
            self._starting.discard(job_id)

    async def _start(self, job_id: str, spec: DownloadSpec) -> Download:
        async with self._lock(job_id):
            known = self._downloads.get(job_id)
            if known is not None and known.state is DownloadState.RUNNING:
                return known
            await self._launcher.remove(job_id)
            await self._launcher.start_download(job_id, spec)
            download = Download(
                id=job_id,
                model=spec.model,
                revision=spec.revision,
                state=DownloadState.RUNNING,
                since=time.time(),
            )
            logger.info("download_started", download=job_id, model=spec.model, revision=spec.revision)
            self._units[job_id] = Unit(
                id=job_id, kind=UnitKind.JOB, running=True, created_at=download.since, download=spec
            )
            self._set(download)
            self._wake.set()
            return download

    async def cancel(self, job_id: str) -> Download | None:
        """Stop a running job, or drop a finished one from the list; partial files stay. None if unknown."""
        if job_id not in self._downloads:
            return None  # without a lock: anybody can ask for anything
        async with self._lock(job_id):
            known = self._downloads.get(job_id)
            if known is None:
                return None
            await self._launcher.stop(job_id, STOP_SECONDS)
            await self._launcher.remove(job_id)
            self._units.pop(job_id, None)
            if known.state is not DownloadState.RUNNING:
                del self._downloads[job_id]
                self._on_change()
                return known
            cancelled = msgspec.structs.replace(known, state=DownloadState.CANCELLED, since=time.time())
            logger.info("download_cancelled", download=job_id)
            self._set(cancelled)
            return cancelled

    def _running(self) -> bool:
        return any(self._needs_reading(unit) for unit in self._units.values())

    def _needs_reading(self, unit: Unit) -> bool:
        known = self._downloads.get(unit.id)
        return known is None or known.state is DownloadState.RUNNING

    async def _read_safely(self, unit: Unit) -> None:
        try:
            async with self._lock(unit.id):
                if self._units.get(unit.id) == unit and unit.download is not None:
                    lines = await self._launcher.log(unit.id, LOG_LINES)
                    self._set(read_progress(unit, unit.download, lines, self._downloads.get(unit.id)))
        except LauncherError as error:
            logger.warning("download_unreadable", download=unit.id, cause=str(error))
        await self._drop_oldest()

    async def _drop_oldest(self) -> None:
        """Finished jobs do not gather for ever."""
        finished = [download for download in self.list() if download.state is not DownloadState.RUNNING]
        for download in finished[:-FINISHED_KEPT]:
            await self.cancel(download.id)
            self._locks.pop(download.id, None)

    def _lock(self, job_id: str) -> asyncio.Lock:
        return self._locks.setdefault(job_id, asyncio.Lock())

    def _set(self, download: Download) -> None:
        before = self._downloads.get(download.id)
        if before == download:
            return
        self._downloads[download.id] = download
        if before is not None and before.state is not download.state:
            logger.info("download_state", download=download.id, state=download.state)
        self._on_change()


def job_id_of(spec: DownloadSpec) -> str:
    """The same job for the same repository and revision; fit for a container's name."""
    digest = hashlib.sha256(f"{spec.model}@{spec.revision}".encode()).hexdigest()[:12]
    return f"download-{digest}"


def read_progress(unit: Unit, spec: DownloadSpec, lines: Iterable[str], before: Download | None) -> Download:
    """A job's unit and printed lines as a `Download`. Pure, but for the time of a failure not known before."""
    download = before or Download(
        id=unit.id, model=spec.model, revision=spec.revision, state=DownloadState.RUNNING, since=unit.created_at
    )
    ended = False
    for event in (event for line in lines if (event := _event(line)) is not None):
        ended = event["event"] in ("done", "failed")
        download = _after(download, event)
    if unit.running or ended:
        return download
    failure = Failure(
        kind=FailureKind.UNKNOWN if not unit.out_of_memory else FailureKind.OUT_OF_MEMORY_AT_RUN,
        message=f"the download job ended with exit code {unit.exit_code} and said nothing",
        hint="start it again; it goes on where it stopped",
        log_tail=tuple(lines),
        at=time.time(),
    )
    return msgspec.structs.replace(download, state=DownloadState.FAILED, failure=failure, since=failure.at)


def _event(line: str) -> dict[str, Any] | None:
    """A line of the job's protocol; everything else it prints is its log."""
    if not line.startswith("{"):
        return None
    try:
        event = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _after(download: Download, event: dict[str, Any]) -> Download:
    """The download after one event."""
    done, total = event.get("bytes_done", download.bytes_done), event.get("bytes_total", download.bytes_total)
    change: dict[str, Any] = {
        "bytes_done": done if isinstance(done, int) else download.bytes_done,
        "bytes_total": total if isinstance(total, int) else download.bytes_total,
    }
    now = download.since if download.state is not DownloadState.RUNNING else time.time()
    if event["event"] == "done":
        change |= {"state": DownloadState.DONE, "path": str(event.get("path", "")), "since": now}
    elif event["event"] == "failed" and event.get("kind") == "cancelled":
        change |= {"state": DownloadState.CANCELLED, "since": now}
    elif event["event"] == "failed":
        failure = Failure(
            kind=KINDS.get(str(event.get("kind")), FailureKind.UNKNOWN),
            message=str(event.get("message", "the download failed")),
            hint=str(event.get("hint", "")),
            at=now,
        )
        change |= {"state": DownloadState.FAILED, "failure": failure, "since": now}
    return msgspec.structs.replace(download, **change)
