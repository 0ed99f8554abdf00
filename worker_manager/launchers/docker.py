"""Engines as containers, through the Docker Engine's socket.

Only this module and its siblings `docker_containers` and `docker_events` know the docker SDK.

The SDK is synchronous, so each call runs in a thread; each is bounded twice, by the SDK's own timeout and by ours, so
that a daemon that hangs costs an error and not the loop.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec
import requests
import structlog
from docker import APIClient
from docker.errors import APIError, DockerException, ImageNotFound

from worker_manager import policy, reader_policy
from worker_manager.contract import ADAPTERS_FOLDER, DownloadSpec, WorkerSpec
from worker_manager.disk_use import Writable, trouble
from worker_manager.jobs import sweep
from worker_manager.launchers import docker_containers, host_paths, model_folder
from worker_manager.launchers.base import (
    ImageMissingError,
    LauncherError,
    LauncherUnavailableError,
    Unit,
    UnitEvent,
)
from worker_manager.launchers.docker_client import connect
from worker_manager.launchers.docker_events import Feed
from worker_manager.settings import Settings
from worker_manager.sweeper_policy import sweeper_body

PING_SECONDS = 3
QUICK_SECONDS = 10
"""Limit of a call that only asks."""
SLOW_SECONDS = 60
"""Limit of a call that makes or removes a container."""
MARGIN_SECONDS = 2.0
"""Our own limit comes this much after the SDK's, and holds where the SDK's does not."""
THREADS = 16
SERVER_ERROR = 500
SOCKETS_BYTES_MAX = 16 * policy.MIB
"""Of a folder in which an engine makes one socket."""

T = TypeVar("T")
logger = structlog.get_logger()


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where the manager stands, as the Docker Engine sees it."""

    models: str
    engines: str
    cache: str
    image: str | None
    """The manager's own image; None outside a container."""
    uid: int
    gid: int


async def ping(docker_host: str) -> None:
    """Raises `LauncherUnavailableError` where no Docker Engine answers."""

    def ask() -> None:
        with contextlib.closing(connect(docker_host, PING_SECONDS)) as client:
            client.ping()

    try:
        async with asyncio.timeout(PING_SECONDS + MARGIN_SECONDS):
            await asyncio.to_thread(ask)
    except (DockerException, requests.RequestException, OSError, TimeoutError) as error:
        raise LauncherUnavailableError(f"no Docker Engine answers at {docker_host}: {error}") from error


class DockerLauncher:
    """Units as containers of one Docker Engine, told from others' by the label of this Hostler's instance."""

    def __init__(
        self,
        settings: Settings,
        *,
        device: Callable[[], str],
        gpu_totals: Callable[[], Mapping[str, int]],
        job_command: Callable[[DownloadSpec, str], tuple[str, ...]],
        job_env: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._device = device
        self._gpu_totals = gpu_totals
        self._job_command = job_command
        self._job_env = job_env
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="docker")
        self._clients: dict[int, APIClient] = {}
        self._clients_lock = threading.Lock()
        self._place: Place | None = None
        self._containers = docker_containers.Containers(settings.instance)
        self._feed: Feed | None = None

    async def units(self) -> list[Unit]:
        """Every container of this instance. Raises `LauncherError`."""
        return await self._call(QUICK_SECONDS, self._containers.units)

    async def start_worker(
        self, spec: WorkerSpec, generation: int, *, length: int | None = None, sleep: bool = True
    ) -> None:
        """Create and start the engine's container. Raises `PolicyRefusal`, `LauncherError`."""
        place = await self._where()
        context = self._context(place, sleep=sleep)
        image = policy.image_of(spec, context.images)
        entrypoint = await self._call(QUICK_SECONDS, lambda client: docker_containers.entrypoint(client, image))
        resolved = await model_folder.in_time(lambda: model_folder.resolve(self._settings.models, spec.model))
        body = policy.container_body(
            spec, context, resolved_model=resolved, generation=generation, entrypoint=entrypoint, length=length
        )
        await self._make_folders(spec, image, place)
        name = policy.container_name(self._settings.instance, spec.id)
        await self._call(SLOW_SECONDS, lambda client: self._containers.create_and_start(client, name, body))

    def writable(self, spec: WorkerSpec) -> tuple[Writable, ...]:
        """Its socket folder, but for the adapters in it, and its compile cache."""
        cache = policy.cache_folder(spec.image or self._settings.allowed_images[0], spec.model)
        return (
            Writable(
                folder=self._settings.engines / spec.id,
                bytes_max=SOCKETS_BYTES_MAX,
                name="its socket folder",
                but=ADAPTERS_FOLDER,
            ),
            self._cache(cache),
        )

    def _cache(self, folder: str) -> Writable:
        size = int(self._settings.engine_cache_gib * policy.GIB)
        return Writable(folder=self._settings.cache / folder, bytes_max=size, name="its compile cache")

    def adapters_inside(self, worker: str) -> str:  # noqa: ARG002 - each container sees its own at the same place
        """Where `policy` mounts it."""
        return policy.ADAPTERS_IN_ENGINE

    async def start_download(self, job_id: str, spec: DownloadSpec) -> None:
        """Create and start the job's container, of the manager's own image. Raises `LauncherError`."""
        place = await self._where()
        if place.image is None:
            raise LauncherError("download jobs need the manager's own image: run the manager as a container")
        owner = await model_folder.in_time(self._settings.models.stat)
        context = policy.JobContext(
            instance=self._settings.instance,
            image=place.image,
            models_on_host=place.models,
            uid=owner.st_uid,
            gid=owner.st_gid,
            env={"HOME": "/tmp", "HF_HOME": "/tmp/hub", **self._job_env},  # noqa: S108 - inside the container
            command=("python", *self._job_command(spec, policy.MODELS_IN_ENGINE)),
        )
        body = policy.job_body(job_id, spec, context)
        name = policy.container_name(self._settings.instance, job_id)
        await self._call(SLOW_SECONDS, lambda client: self._containers.create_and_start(client, name, body))

    async def start_reader(self, reader_id: str, model: str, reserve_mib: int) -> None:
        """A container of the manager's own image with the model's folder alone. Raises `LauncherError`."""
        place = await self._where()
        if place.image is None:
            raise LauncherError("weights are read ahead by the manager's own image: run the manager as a container")
        resolved = await model_folder.in_time(lambda: model_folder.resolve(self._settings.models, model))
        context = reader_policy.ReaderContext(
            instance=self._settings.instance,
            image=place.image,
            models_on_host=place.models,
            uid=place.uid,
            gid=place.gid,
            memory_bytes=engine_memory_bytes(self._settings.engine_memory_gib),
        )
        try:
            body = reader_policy.reader_body(reader_id, model, context, resolved=resolved, reserve_mib=reserve_mib)
        except policy.PolicyRefusal as refusal:
            raise LauncherError(refusal.message) from refusal
        name = policy.container_name(self._settings.instance, reader_id)
        await self._call(SLOW_SECONDS, lambda client: self._containers.create_and_start(client, name, body))

    async def stop(self, unit_id: str, grace_seconds: float) -> None:
        """TERM, KILL after the grace, or at once, and proof by inspection. Raises `LauncherError`."""
        await self._call(
            int(grace_seconds) + SLOW_SECONDS, lambda client: self._containers.stop(client, unit_id, grace_seconds)
        )

    async def remove(self, unit_id: str) -> None:
        """Remove container and socket folder; returns when the name is free again. Raises `LauncherError`."""
        await self._call(SLOW_SECONDS, lambda client: self._containers.remove(client, unit_id))
        place = await self._where()
        folder = self._settings.engines / unit_id
        await self._clear(folder, f"{place.engines}/{unit_id}", place)
        with contextlib.suppress(OSError):
            folder.rmdir()

    async def _clear(self, folder: Path, on_host: str, place: Place) -> None:
        """Empty a folder; what an engine has locked is deleted as its own user. Raises `LauncherError`."""
        if await asyncio.to_thread(sweep.empty, folder):
            return
        if place.image is not None:
            body = sweeper_body(on_host, place.image, f"{place.uid}:{place.gid}")
            await self._call(SLOW_SECONDS, lambda client: docker_containers.run_to_its_end(client, body))
        if not await asyncio.to_thread(sweep.empty, folder):
            logger.error("folder_not_emptied", folder=folder.name)

    async def log(self, unit_id: str, lines: int) -> tuple[str, ...]:
        """Stdout and stderr together. Raises `LauncherError`."""
        return await self._call(QUICK_SECONDS, lambda client: self._containers.log(client, unit_id, lines))

    async def events(self) -> AsyncIterator[UnitEvent]:
        """Docker's own feed, subscribed again after each cut."""
        self._feed = Feed(self._settings.docker_host, self._settings.instance)
        try:
            async for event in self._feed.events():
                yield event
        finally:
            self._feed.close()

    async def images(self) -> tuple[str, ...]:
        """Images of the allow-list that are present. Raises `LauncherError`."""
        present = await self._call(QUICK_SECONDS, docker_containers.image_names)
        return tuple(image for image in self._settings.allowed_images if image in present)

    async def engine(self) -> str:
        """The default image's digest. Raises `LauncherError`."""
        image = self._settings.allowed_images[0]
        return await self._call(QUICK_SECONDS, lambda client: docker_containers.image_digest(client, image))

    def program(self) -> str:
        """Images tell what runs."""
        return ""

    async def close(self) -> None:
        """End the feed and the threads; a call that hangs is not waited for."""
        if self._feed is not None:
            self._feed.close()
        for client in self._clients.values():
            client.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    # calls

    async def _call(self, seconds: int, work: Callable[[APIClient], T]) -> T:
        """Run `work` in a thread within `seconds` and a margin. Raises `LauncherError`."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds + MARGIN_SECONDS):
                return await loop.run_in_executor(self._executor, lambda: work(self._client(seconds)))
        except TimeoutError as error:
            raise LauncherUnavailableError(f"Docker Engine did not answer within {seconds:g} s") from error
        except ImageNotFound as error:
            raise ImageMissingError(_sentence(error)) from error
        except APIError as error:
            is_ours = error.response is not None and error.response.status_code < SERVER_ERROR
            raise LauncherError(f"Docker Engine {'refuses' if is_ours else 'fails'}: {_sentence(error)}") from error
        except (DockerException, requests.RequestException, OSError) as error:
            raise LauncherUnavailableError(f"Docker Engine does not answer: {error}") from error

    def _client(self, seconds: int) -> APIClient:
        """One client for each time limit, made at first use: making one already asks the daemon."""
        with self._clients_lock:
            client = self._clients.get(seconds)
        if client is None:
            client = connect(self._settings.docker_host, seconds, connections=THREADS)
            with self._clients_lock:
                client = self._clients.setdefault(seconds, client)
        return client

    # where we are

    async def _where(self) -> Place:
        if self._place is None:
            self._place = await self._call(QUICK_SECONDS, self._find_place)
        return self._place

    def _find_place(self, client: APIClient) -> Place:
        settings = self._settings
        inspected = docker_containers.inspect_self(client)
        if inspected is None:
            uid, gid = (os.geteuid(), os.getegid()) if os.geteuid() else (10001, 10001)
            models = str(settings.models.resolve())
            return Place(
                models=models,
                engines=str(settings.engines.resolve()),
                cache=str(settings.cache.resolve()),
                image=None,
                uid=uid,
                gid=gid,
            )
        mounts = host_paths.own_mounts(inspected)
        return Place(
            models=host_paths.on_host(str(settings.models), mounts),
            engines=host_paths.on_host(str(settings.engines), mounts),
            cache=host_paths.on_host(str(settings.cache), mounts),
            image=str(inspected["Image"]),
            uid=10001,
            gid=10001,
        )

    def _context(self, place: Place, *, sleep: bool) -> policy.PolicyContext:
        settings = self._settings
        return policy.PolicyContext(
            instance=settings.instance,
            images=settings.allowed_images,
            models_on_host=place.models,
            engines_on_host=place.engines,
            cache_on_host=place.cache,
            uid=place.uid,
            gid=place.gid,
            device=self._device(),
            memory_bytes=engine_memory_bytes(settings.engine_memory_gib),
            shm_gib=settings.engine_shm_gib,
            pids=settings.engine_pids,
            cpus=settings.engine_cpus,
            cpu_kv_cache_gib=settings.cpu_kv_cache_gib,
            stop_seconds=settings.stop_seconds,
            engine_env=settings.engine_env,
            gpu_totals_mib=dict(self._gpu_totals()),
            sleep=settings.sleep and sleep,
        )

    async def _make_folders(self, spec: WorkerSpec, image: str, place: Place) -> None:
        """The worker's socket folder, empty, and its cache folder; both open to the engines' group."""
        name = policy.cache_folder(image, spec.model)
        cache = self._cache(name)
        await self._clear(self._settings.engines / spec.id, f"{place.engines}/{spec.id}", place)
        if await asyncio.to_thread(trouble, cache):
            logger.warning("cache_dropped", worker=spec.id, cache=name)
            await self._clear(cache.folder, f"{place.cache}/{name}", place)
        await asyncio.to_thread(self._open_folders, spec, cache.folder, place)

    def _open_folders(self, spec: WorkerSpec, cache: Path, place: Place) -> None:
        sockets = self._settings.engines / spec.id
        adapters = [sockets / ADAPTERS_FOLDER] if spec.lora is not None else []
        try:
            for folder in (sockets, *adapters, cache.parent, cache):
                folder.mkdir(parents=True, exist_ok=True)
                _open_to_group(folder, place)
        except OSError as error:
            raise LauncherError(f"can't make the folders of worker {spec.id!r}: {error}") from error


def engine_memory_bytes(limit_gib: float) -> int:
    """One engine's memory limit; without a setting nine tenths of this machine's memory."""
    if limit_gib:
        return int(limit_gib * policy.GIB)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 9 // 10


def _open_to_group(folder: Path, place: Place) -> None:
    """0770, and the engines' user and group where we may give it away."""
    with contextlib.suppress(PermissionError):
        os.chown(folder, place.uid, place.gid)
    with contextlib.suppress(PermissionError):
        folder.chmod(0o770)


def _sentence(error: APIError) -> str:
    return str(error.explanation or error)
