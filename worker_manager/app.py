"""The composition root: makes every part from the settings, and serves them on the Unix socket."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Mapping

import structlog
import uvicorn
from litestar import Litestar

from worker_manager import host, logs, routes
from worker_manager.connections import config_of
from worker_manager.contract import Gpu, HostFacts
from worker_manager.deadlines import Limits
from worker_manager.disk_watch import DiskWatch
from worker_manager.downloads import Downloads
from worker_manager.engines.canary import Rhythm
from worker_manager.gpus import GpuInventory, attribute
from worker_manager.launchers.base import Launcher, LauncherError, LauncherUnavailableError, Unit
from worker_manager.launchers.choice import LauncherName, choose, make_launcher
from worker_manager.launchers.model_folder import in_time
from worker_manager.listener import check_lengths, listen
from worker_manager.observation import Observation
from worker_manager.prefetch import Prefetch
from worker_manager.proofs import Proofs
from worker_manager.refusals import Refusals
from worker_manager.settings import Settings
from worker_manager.sleeper import Sleeper
from worker_manager.supervisor import Supervisor

STOP_SECONDS = 2
HOST_SECONDS = 10.0
IMAGES_SECONDS = 5.0

logger = structlog.get_logger()


class Manager:
    """All parts of one running manager."""

    def __init__(self, settings: Settings, environ: Mapping[str, str], kind: LauncherName) -> None:
        self.settings = settings
        self.inventory = GpuInventory()
        self.kind = kind
        self.device = settings.device
        self.images: tuple[str, ...] = ()
        self.engine = self.program = ""
        self.disk_free_mib = 0
        self.refusals = Refusals(self._changed)
        self.launcher: Launcher = make_launcher(
            kind,
            settings,
            environ=environ,
            device=lambda: self.device,
            gpu_totals=lambda: {gpu.uuid: gpu.memory_total_mib for gpu in self.supervisor.gpus},
        )
        self.downloads = Downloads(self.launcher, offline=settings.offline, on_change=self._changed)
        sleeper = Sleeper(
            engines=settings.engines,
            proofs=Proofs(settings.manager_socket.parent / "proofs"),
            enabled=settings.sleep,
            env=settings.engine_env,
            sleep_seconds=settings.sleep_seconds,
            wake_seconds=settings.wake_seconds,
            image=settings.engine_image if kind == "docker" else "",
            held=self._held,
            used=self._used,
            host_free_mib=lambda: host.memory_mib()[1],
        )
        self.supervisor = Supervisor(
            self.launcher,
            engines=settings.engines,
            models=settings.models,
            limits=Limits(
                load_seconds=settings.load_seconds,
                sleep_seconds=settings.sleep_seconds,
                wake_seconds=settings.wake_seconds,
                stop_seconds=settings.stop_seconds,
            ),
            canary=Rhythm(
                interval=settings.canary_seconds,
                timeout=settings.canary_timeout_seconds,
                tries=settings.canary_tries,
            ),
            sleeper=sleeper,
            gpus=self._gpus,
            refusals=self.refusals,
            on_units=self._listed,
            on_change=self._changed,
        )
        self.disk_watch = DiskWatch(self.supervisor.running, self.launcher.writable, self.supervisor.end, self.refusals)
        self.prefetch = Prefetch(
            self.launcher,
            models=settings.models,
            enabled=settings.prefetch,
            reserve_mib=round(settings.prefetch_reserve_gib * 1024),
            look_again=self.supervisor.wake,
        )
        self.observation = Observation(
            generation=lambda: self.supervisor.generation,
            workers=self.supervisor.observed,
            downloads=self.downloads.list,
            host=self.host_facts,
            refusals=self.refusals.sums,
        )

    def host_facts(self) -> HostFacts:
        """Facts about this machine as it is."""
        total, available = host.memory_mib()
        return HostFacts(
            launcher=self.kind,
            device="cuda" if self.device == "cuda" else "cpu",
            gpus=self.supervisor.gpus if self.device == "cuda" else (),
            driver=self.inventory.driver,
            memory_total_mib=total,
            memory_available_mib=available,
            models_disk_free_mib=self.disk_free_mib,
            images=self.images,
            engine=self.engine,
            program=self.program,
            cpu_kv_cache_mib=max(1, round(self.settings.cpu_kv_cache_gib)) * 1024,
        )

    @contextlib.asynccontextmanager
    async def running(self, _app: Litestar) -> AsyncIterator[None]:
        """The loops run while the server does. Workers outlive both."""
        await self._find_device()
        await self._find_images()  # before the first worker starts: what is known of an engine is known by its image
        tasks = [
            asyncio.create_task(self.supervisor.run(), name="supervisor"),
            asyncio.create_task(self.downloads.run(), name="downloads"),
            asyncio.create_task(self._watch_images(), name="images"),
            asyncio.create_task(self.disk_watch.run(), name="disk"),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(ended, Exception):
                    logger.error("loop_ended", cause=repr(ended))
            await self.prefetch.close()
            await self.launcher.close()
            self.inventory.close()

    def _changed(self) -> None:
        self.observation.changed()

    def _listed(self, units: list[Unit]) -> None:
        self.downloads.observe(units)
        if self.supervisor.generation:  # before that nobody knows what is wanted
            self.prefetch.look(units, self.supervisor.coming())

    async def _gpus(self, units: dict[str, Unit]) -> tuple[Gpu, ...]:
        gpus = await self.inventory.read()
        self._settle_device(gpus)
        return attribute(gpus, units)

    async def _held(self, worker: str) -> dict[str, int]:
        return await self.supervisor.held(worker)

    async def _used(self) -> dict[str, int]:
        return {gpu.uuid: gpu.memory_used_mib for gpu in await self.inventory.read()}

    async def _find_device(self) -> None:
        gpus = await self.inventory.read()
        try:
            self._settle_device(gpus)
        except LauncherUnavailableError as error:
            logger.error("device_unknown", cause=str(error))  # noqa: TRY400 - the sentence is the cause
        logger.info("manager_starts", launcher=self.kind, device=self.device, gpus=len(gpus))

    def _settle_device(self, gpus: tuple[Gpu, ...]) -> None:
        """What engines compute on, once and for all: as set, else the GPUs if there are any.

        Raises LauncherUnavailableError while nobody can say. Then nothing is started and nothing told of this machine:
        one moment of NVML's must not make it a machine without GPUs.
        """
        if self.device != "auto":
            return
        if self.inventory.problem:
            raise LauncherUnavailableError(
                f"{self.inventory.problem}, so nobody can say whether there are GPUs: see what nvidia-smi says, or set "
                "HOSTLER_DEVICE"
            )
        self.device = "cuda" if gpus else "cpu"
        logger.info("device_found", device=self.device, gpus=len(gpus))

    async def _watch_images(self) -> None:
        """Images and room on the disk come and go slowly; asked now and then, beside the loop."""
        while True:
            await self._find_disk()
            await asyncio.sleep(HOST_SECONDS)
            await self._find_images()

    async def _find_disk(self) -> None:
        try:
            self.disk_free_mib = await in_time(lambda: host.disk_free_mib(self.settings.models))
        except LauncherError as error:
            logger.warning("disk_unknown", cause=str(error))

    async def _find_images(self) -> None:
        try:
            async with asyncio.timeout(IMAGES_SECONDS):
                found = await self.launcher.images(), await self.launcher.engine(), self.launcher.program()
        except Exception as error:  # noqa: BLE001 - a task root: facts about the host are not worth a manager
            logger.warning("images_unknown", cause=repr(error))
            return
        if found != (self.images, self.engine, self.program):
            self.images, self.engine, self.program = found
            self._changed()


def make_app(manager: Manager) -> Litestar:
    """The HTTP application of a manager."""
    return Litestar(
        route_handlers=routes.handlers(manager.observation, manager.supervisor, manager.downloads),
        exception_handlers={Exception: routes.Answers(manager.refusals)},
        lifespan=[manager.running],
        request_max_body_size=routes.BODY_LIMIT_BYTES,
        openapi_config=None,
        logging_config=None,
    )


def serve(settings: Settings, environ: Mapping[str, str]) -> None:
    """Listen and serve until TERM or INT. Raises `ListenError`."""
    logs.configure(settings.log_level, settings.log_format)
    check_lengths(settings.manager_socket, settings.engines)
    listener = listen(settings.manager_socket)
    try:
        asyncio.run(_serve(settings, environ, listener))
    finally:
        settings.manager_socket.unlink(missing_ok=True)


async def _serve(settings: Settings, environ: Mapping[str, str], listener: socket.socket) -> None:
    manager = Manager(settings, environ, await choose(settings))
    config = config_of(
        make_app(manager),
        manager.refusals,
        loop="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=120,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again once it has stopped; by then all is done, and the process ends with 0
        signal.signal(number, lambda *_: None)
    await uvicorn.Server(config).serve(sockets=[listener])


async def stop_workers(settings: Settings, environ: Mapping[str, str]) -> int:
    """Stop and remove every unit of this Hostler, workers and jobs; returns how many there were."""
    manager = Manager(settings, environ, await choose(settings))
    launcher = manager.launcher

    async def end(unit: Unit) -> None:
        await launcher.stop(unit.id, settings.stop_seconds)
        await launcher.remove(unit.id)

    try:
        units = await launcher.units()
        await asyncio.gather(*(end(unit) for unit in units))
    finally:
        await launcher.close()
        manager.inventory.close()
    return len(units)
