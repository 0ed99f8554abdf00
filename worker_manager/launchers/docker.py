"""Engines as containers, through the Docker Engine's socket: the only module that knows the docker SDK.

The SDK is synchronous, so each call runs in a thread; each is bounded twice, by the SDK's own timeout and by ours, so
that a daemon that hangs costs an error and not the loop.
"""

import asyncio
import contextlib
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import requests
import structlog
from docker import APIClient
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from worker_manager import policy
from worker_manager.contract import DownloadSpec, WorkerSpec
from worker_manager.launchers import host_paths, model_folder
from worker_manager.launchers.base import (
    ImageMissingError,
    LauncherError,
    LauncherUnavailableError,
    Unit,
    UnitEvent,
    UnitKind,
)
from worker_manager.settings import Settings

QUICK_SECONDS = 10
"""Limit of a call that only asks."""
SLOW_SECONDS = 60
"""Limit of a call that makes or removes a container."""
MARGIN_SECONDS = 2.0
"""Our own limit comes this much after the SDK's, and holds where the SDK's does not."""
GONE_SECONDS = 10.0
THREADS = 16
EVENT_BACKOFF_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0)
PIDS_SECONDS = 10.0
HTTP_CONFLICT = 409
SERVER_ERROR = 500
WATCHED = ("die", "oom", "destroy", "start", "stop", "kill")

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
        client = APIClient(base_url=docker_host, timeout=3)
        with contextlib.closing(client):
            client.ping()

    try:
        async with asyncio.timeout(3 + MARGIN_SECONDS):
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
        self._pids: dict[str, tuple[float, tuple[int, ...]]] = {}
        self._feed: Feed | None = None

    async def units(self) -> list[Unit]:
        """Every container of this instance. Raises `LauncherError`."""
        return await self._call(QUICK_SECONDS, self._list)

    async def start_worker(self, spec: WorkerSpec, generation: int) -> None:
        """Create and start the engine's container. Raises `PolicyRefusal`, `LauncherError`."""
        place = await self._where()
        context = self._context(place)
        image = policy.image_of(spec, context.images)
        entrypoint = await self._call(QUICK_SECONDS, lambda client: _entrypoint(client, image))
        resolved = await asyncio.to_thread(model_folder.resolve, self._settings.models, spec.model)
        body = policy.container_body(
            spec, context, resolved_model=resolved, generation=generation, entrypoint=entrypoint
        )
        await asyncio.to_thread(self._make_folders, spec.id, image, place)
        name = policy.container_name(self._settings.instance, spec.id)
        await self._call(SLOW_SECONDS, lambda client: self._create_and_start(client, name, body))

    async def start_download(self, job_id: str, spec: DownloadSpec) -> None:
        """Create and start the job's container, of the manager's own image. Raises `LauncherError`."""
        place = await self._where()
        if place.image is None:
            raise LauncherError("download jobs need the manager's own image: run the manager as a container")
        owner = await asyncio.to_thread(self._settings.models.stat)
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
        await self._call(SLOW_SECONDS, lambda client: self._create_and_start(client, name, body))

    async def stop(self, unit_id: str, grace_seconds: float) -> None:
        """TERM, KILL after the grace, and proof by inspection. Raises `LauncherError`."""
        await self._call(int(grace_seconds) + SLOW_SECONDS, lambda client: self._stop(client, unit_id, grace_seconds))

    async def remove(self, unit_id: str) -> None:
        """Remove container and socket folder; returns when the name is free again. Raises `LauncherError`."""
        await self._call(SLOW_SECONDS, lambda client: self._remove(client, unit_id))
        self._pids.pop(unit_id, None)

    async def log(self, unit_id: str, lines: int) -> tuple[str, ...]:
        """Stdout and stderr together. Raises `LauncherError`."""
        return await self._call(QUICK_SECONDS, lambda client: self._log(client, unit_id, lines))

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
        present = await self._call(QUICK_SECONDS, _image_names)
        return tuple(image for image in self._settings.allowed_images if image in present)

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
            client = APIClient(base_url=self._settings.docker_host, timeout=seconds, max_pool_size=THREADS)
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
        inspected = _inspect_self(client)
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

    def _context(self, place: Place) -> policy.PolicyContext:
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
        )

    def _make_folders(self, worker: str, image: str, place: Place) -> None:
        """The worker's socket folder, empty, and the image's cache folder; both open to the engines' group."""
        sockets = self._settings.engines / worker
        cache = self._settings.cache / policy.cache_folder(image)
        try:
            shutil.rmtree(sockets, ignore_errors=True)
            for folder in (sockets, cache):
                folder.mkdir(parents=True, exist_ok=True)
                _open_to_group(folder, place)
        except OSError as error:
            raise LauncherError(f"can't make the folders of worker {worker!r}: {error}") from error

    # work in threads

    def _list(self, client: APIClient) -> list[Unit]:
        label = f"{policy.LABEL_INSTANCE}={self._settings.instance}"
        units = []
        for summary in client.containers(all=True, filters={"label": [label]}):
            with contextlib.suppress(NotFound):  # removed since it was listed
                units.append(self._unit(client, summary))
        return units

    def _unit(self, client: APIClient, summary: dict[str, Any]) -> Unit:
        labels, state = summary.get("Labels") or {}, summary.get("State")
        unit = read_labels(labels, fallback_id=self._id_from_name(summary), created_at=float(summary["Created"]))
        if state in ("running", "paused"):
            pids = self._pids_of(client, unit) if unit.worker is not None and unit.worker.gpus else ()
            return msgspec.structs.replace(unit, running=True, pids=pids)
        facts = client.inspect_container(summary["Id"])["State"]
        return msgspec.structs.replace(
            unit,
            exit_code=facts.get("ExitCode"),
            out_of_memory=bool(facts.get("OOMKilled")),
            never_started=state == "created",
        )

    def _id_from_name(self, summary: dict[str, Any]) -> str:
        name = str((summary.get("Names") or ["/"])[0]).lstrip("/")
        return name.removeprefix(f"{self._settings.instance}-")

    def _pids_of(self, client: APIClient, unit: Unit) -> tuple[int, ...]:
        """The container's processes as the host numbers them; asked again now and then."""
        known = self._pids.get(unit.id)
        if known is not None and time.monotonic() - known[0] < PIDS_SECONDS:
            return known[1]
        try:
            top = client.top(policy.container_name(self._settings.instance, unit.id))
            column = top["Titles"].index("PID")
            pids = tuple(sorted(int(row[column]) for row in top["Processes"] or ()))
        except (APIError, KeyError, ValueError):
            pids = ()
        self._pids[unit.id] = (time.monotonic(), pids)
        return pids

    def _find(self, client: APIClient, name: str) -> dict[str, Any] | None:
        """The inspected container of this name if it is ours."""
        try:
            found: dict[str, Any] = client.inspect_container(name)
        except NotFound:
            return None
        labels = found["Config"].get("Labels") or {}
        return found if labels.get(policy.LABEL_INSTANCE) == self._settings.instance else None

    def _find_unit(self, client: APIClient, unit_id: str) -> dict[str, Any] | None:
        return self._find(client, policy.container_name(self._settings.instance, unit_id))

    def _create_and_start(self, client: APIClient, name: str, body: dict[str, Any]) -> None:
        """Started at the end, or nothing is left."""
        try:
            created = _create(client, name, body)
        except APIError as error:
            if error.response is None or error.response.status_code != HTTP_CONFLICT:
                raise
            if self._same_runs(client, name, body):
                return
            created = _create(client, name, body)
        try:
            client.start(created)
        except DockerException:
            with contextlib.suppress(APIError):
                client.remove_container(created, force=True, v=True)
            raise

    def _same_runs(self, client: APIClient, name: str, body: dict[str, Any]) -> bool:
        """After a conflict of names: whether the same unit runs already; else ours is removed, and others' is not."""
        found = self._find(client, name)
        if found is None:
            raise LauncherError(f"a container named {name!r} exists that is not Hostler's: rename or remove it")
        same = found["Config"]["Labels"].get(policy.LABEL_SPEC) == body["Labels"][policy.LABEL_SPEC]
        if same and found["State"]["Running"]:
            return True
        _remove_and_wait(client, found["Id"])
        return False

    def _stop(self, client: APIClient, unit_id: str, grace_seconds: float) -> None:
        found = self._find_unit(client, unit_id)
        if found is None or not found["State"]["Running"]:
            return
        with contextlib.suppress(NotFound):
            client.stop(found["Id"], timeout=int(grace_seconds))
        for running in _until_gone(client, found["Id"]):
            if not running:
                return
            with contextlib.suppress(APIError):  # it may end by itself between the question and the signal
                client.kill(found["Id"])
        raise LauncherError(f"container of {unit_id!r} still runs after it was stopped and killed")

    def _remove(self, client: APIClient, unit_id: str) -> None:
        found = self._find_unit(client, unit_id)
        if found is not None:
            _remove_and_wait(client, found["Id"])
        shutil.rmtree(self._settings.engines / unit_id, ignore_errors=True)

    def _log(self, client: APIClient, unit_id: str, lines: int) -> tuple[str, ...]:
        found = self._find_unit(client, unit_id)
        if found is None or lines <= 0:
            return ()
        try:
            text: bytes = client.logs(found["Id"], stdout=True, stderr=True, tail=lines)
        except NotFound:
            return ()
        return tuple(line.rstrip() for line in text.decode(errors="replace").splitlines())


class Feed:
    """Docker's events in a thread of their own, brought into the event loop."""

    def __init__(self, docker_host: str, instance: str) -> None:
        self._docker_host = docker_host
        self._label = f"{policy.LABEL_INSTANCE}={instance}"
        self._closed = threading.Event()
        self._stream: Any = None

    async def events(self) -> AsyncIterator[UnitEvent]:
        """Never ends by itself; after each cut comes one event without an id."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[UnitEvent] = asyncio.Queue()

        def put(event: UnitEvent) -> None:
            if not self._closed.is_set():
                with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                    loop.call_soon_threadsafe(queue.put_nowait, event)

        threading.Thread(target=self._follow, args=(put,), name="docker-events", daemon=True).start()
        while True:
            yield await queue.get()

    def close(self) -> None:
        """End the thread as soon as its read returns."""
        self._closed.set()
        if self._stream is not None:
            with contextlib.suppress(OSError, DockerException):
                self._stream.close()

    def _follow(self, put: Callable[[UnitEvent], None]) -> None:
        failures = 0
        while not self._closed.is_set():
            try:
                failures = self._read_once(put, failures)
            except (DockerException, requests.RequestException, OSError, ValueError, AttributeError) as error:
                # AttributeError: urllib3's answer to a stream that another thread closed
                logger.debug("event_feed_cut", cause=str(error))
            put(UnitEvent(id="", what="feed cut"))
            self._closed.wait(EVENT_BACKOFF_SECONDS[min(failures, len(EVENT_BACKOFF_SECONDS) - 1)])
            failures += 1

    def _read_once(self, put: Callable[[UnitEvent], None], failures: int) -> int:
        """Read one subscription to its end; the count of failures starts anew once it stands."""
        client = APIClient(base_url=self._docker_host, timeout=QUICK_SECONDS)
        with contextlib.closing(client):
            self._stream = client.events(decode=True, filters={"type": "container", "label": [self._label]})
            put(UnitEvent(id="", what="subscribed"))
            for event in self._stream:
                failures = 0
                what = str(event.get("Action", ""))
                if what.split(":", maxsplit=1)[0] in WATCHED:
                    attributes = event.get("Actor", {}).get("Attributes", {})
                    put(UnitEvent(id=str(attributes.get(policy.LABEL_ID, "")), what=what))
        return failures


def read_labels(labels: Mapping[str, str], *, fallback_id: str, created_at: float) -> Unit:
    """A container's labels as a unit; one whose labels can't be read has no description, and harms no other."""
    kind = UnitKind.JOB if labels.get(policy.LABEL_KIND) == UnitKind.JOB else UnitKind.WORKER
    worker: WorkerSpec | None = None
    download: DownloadSpec | None = None
    spec = labels.get(policy.LABEL_SPEC, "")
    try:
        if kind is UnitKind.WORKER:
            worker = msgspec.json.decode(spec, type=WorkerSpec)
        else:
            download = msgspec.json.decode(spec, type=DownloadSpec)
        generation = int(labels.get(policy.LABEL_GENERATION, "0"))
    except (msgspec.DecodeError, ValueError) as error:
        logger.warning("labels_unreadable", unit=fallback_id, cause=str(error))
        worker, download, generation = None, None, 0
    return Unit(
        id=worker.id if worker is not None else fallback_id,
        kind=kind,
        running=False,
        created_at=created_at,
        worker=worker,
        download=download,
        generation=generation,
    )


def engine_memory_bytes(limit_gib: float) -> int:
    """One engine's memory limit; without a setting nine tenths of this machine's memory."""
    if limit_gib:
        return int(limit_gib * policy.GIB)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 9 // 10


def _create(client: Any, name: str, body: dict[str, Any]) -> str:
    """The new container's id. `Any`: the SDK's stubs leave these two calls untyped."""
    return str(client.create_container_from_config(body, name)["Id"])


def _entrypoint(client: Any, image: str) -> tuple[str, ...]:
    """The image's own entry point."""
    return tuple(client.inspect_image(image)["Config"].get("Entrypoint") or ())


def _inspect_self(client: APIClient) -> dict[str, Any] | None:
    """The manager's own container; None where this Docker Engine has none such, so that our paths are its host's."""
    for own_id in host_paths.own_ids():
        with contextlib.suppress(NotFound):
            inspected: dict[str, Any] = client.inspect_container(own_id)
            return inspected
    return None


def _image_names(client: APIClient) -> set[str]:
    names: set[str] = set()
    for image in client.images():
        names.update(image.get("RepoTags") or ())
        names.update(image.get("RepoDigests") or ())
    return names


def _remove_and_wait(client: APIClient, container: str) -> None:
    """Returns when its name is free again; a removal that is under way already is waited for."""
    try:
        client.remove_container(container, force=True, v=True)
    except NotFound:
        return
    except APIError as error:
        if error.response is None or error.response.status_code != HTTP_CONFLICT:
            raise
    for _ in _until_gone(client, container):
        continue
    with contextlib.suppress(NotFound):
        client.inspect_container(container)
        raise LauncherError(f"container {container[:12]} is still there after it was removed")


def _until_gone(client: APIClient, container: str) -> Iterator[bool]:
    """Whether the container still runs, asked until it is removed or the time is up."""
    deadline = time.monotonic() + GONE_SECONDS
    while time.monotonic() < deadline:
        try:
            yield bool(client.inspect_container(container)["State"]["Running"])
        except NotFound:
            return
        time.sleep(0.05)


def _open_to_group(folder: Path, place: Place) -> None:
    """0770, and the engines' user and group where we may give it away."""
    with contextlib.suppress(PermissionError):
        os.chown(folder, place.uid, place.gid)
    with contextlib.suppress(PermissionError):
        folder.chmod(0o770)


def _sentence(error: APIError) -> str:
    return str(error.explanation or error)
