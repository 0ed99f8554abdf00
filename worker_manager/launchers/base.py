"""The launcher's interface: what the supervisor may ask of Docker Engine or of the operating system.

A *unit* is one container or one process group that Hostler started: a worker or a job. Every call is bounded in time
and raises a `LauncherError` when its time is up; a launcher never waits for ever.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Protocol

import msgspec

from worker_manager.contract import DownloadSpec, WorkerSpec
from worker_manager.disk_use import Writable


class LauncherError(Exception):
    """The launcher could not do it; the message says what and why, fit to be shown to the operator.

    LauncherError
    ├── LauncherUnavailableError
    └── ImageMissingError
    """


class LauncherUnavailableError(LauncherError):
    """The launcher itself does not answer (Docker Engine gone or hung); the unit is not to blame."""


@contextlib.asynccontextmanager
async def in_time(seconds: float) -> AsyncIterator[None]:
    """A limit for several calls together. Raises `LauncherUnavailableError`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise LauncherUnavailableError(f"not done within {seconds:g} s") from error


class ImageMissingError(LauncherError):
    """The image, or the engine's program, is not on this machine."""


class UnitKind(StrEnum):
    """What a unit is for."""

    WORKER = "worker"
    JOB = "job"
    READER = "reader"
    """Reads a model's weights into the page cache."""


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """One container or process as it is found, running or exited, read back from its labels alone."""

    id: str
    kind: UnitKind
    running: bool
    created_at: float
    """Unix time, seconds."""
    exit_code: int | None = None
    out_of_memory: bool = False
    """The kernel killed it for the memory limit of its container."""
    never_started: bool = False
    """Created only: whoever was starting it ended between the two steps."""
    worker: WorkerSpec | None = None
    download: DownloadSpec | None = None
    length: int | None = None
    """The context length that its engine was started with instead of the spec's."""
    model: str = ""
    """What a reader reads, relative to the models folder."""
    generation: int = 0
    image: str = ""
    """The image's digest; empty for a process."""
    pids: tuple[int, ...] = ()
    """Host process ids, where the launcher can tell cheaply; to match NVML's list of users."""


class UnitEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something happened to a unit; `id` is empty where everything should be listed again (the feed was cut)."""

    id: str
    what: str


class Launcher(Protocol):
    """Starts, watches and ends units. Implemented by `docker.DockerLauncher` and `process.ProcessLauncher`."""

    async def units(self) -> list[Unit]:
        """Every unit of ours, running or exited; never one that another program started."""
        ...

    async def start_worker(
        self, spec: WorkerSpec, generation: int, *, length: int | None = None, sleep: bool = True
    ) -> None:
        """Make the worker's socket folder, create and start its unit. Raises `LauncherError`, `PolicyRefusal`.

        `length`: the context length that the engine gets instead of the spec's; the unit remembers both.
        `sleep`: it may be started with sleep mode, where nothing else speaks against that.
        """
        ...

    def adapters_inside(self, worker: str) -> str:
        """The folder of a worker's LoRA adapters as its engine sees it; here it is `<engines>/<worker>/adapters`."""
        ...

    def writable(self, spec: WorkerSpec) -> tuple[Writable, ...]:
        """The folders on the machine's disk that a worker's engine may write to, where they can be bounded."""
        ...

    async def start_download(self, job_id: str, spec: DownloadSpec) -> None:
        """Create and start the download job's unit."""
        ...

    async def start_reader(self, reader_id: str, model: str, reserve_mib: int) -> None:
        """Create and start the unit that reads a model's weights, and leaves so much of the memory alone.

        Raises `LauncherError`.
        """
        ...

    async def stop(self, unit_id: str, grace_seconds: float) -> None:
        """TERM, then KILL after the grace; returns when it is proven to be gone. The log stays until `remove`.

        Without a grace it is killed at once: an engine that can't be trusted would answer a TERM by ending its requests
        with empty answers, which clients take for good ones.
        """
        ...

    async def remove(self, unit_id: str) -> None:
        """Forget the unit: container and log, socket folder. A unit that is gone already is no error."""
        ...

    async def log(self, unit_id: str, lines: int) -> tuple[str, ...]:
        """The last lines the unit printed, oldest first; empty if it is gone."""
        ...

    def events(self) -> AsyncIterator[UnitEvent]:
        """What happens to units, as it happens; never ends, and comes back by itself after a cut."""
        ...

    async def images(self) -> tuple[str, ...]:
        """Engine images on the allow-list that are present; the engine's command for the process launcher."""
        ...

    async def engine(self) -> str:
        """What a worker without an image of its own runs, as a text that another version differs in; "" if unknown."""
        ...

    def program(self) -> str:
        """The engine's program where there are no images, as a text that another installation differs in; else ""."""
        ...

    async def close(self) -> None:
        """Let go of the launcher. Units live on."""
        ...
