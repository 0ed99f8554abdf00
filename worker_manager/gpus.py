"""NVML: which GPUs there are, how much of their memory is used, and by whom.

Every reading happens in one thread of its own and is bounded in time: a driver that hangs costs a stale picture, not
the manager.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import structlog

from worker_manager.contract import Gpu, GpuUse, WorkerSpec
from worker_manager.launchers.base import Unit

try:
    import pynvml
except ImportError:  # the CPU image and machines without the package have none
    pynvml = None

READ_SECONDS = 5.0
MIB = 1024 * 1024
CONTROL = Path("/dev/nvidiactl")
"""The driver's own device: there is a driver, whatever NVML says."""

logger = structlog.get_logger()


class GpuInventory:
    """Reads NVML; without its library or a driver there are no GPUs."""

    def __init__(self, library: Any = pynvml, control: Path = CONTROL) -> None:
        self.driver: str | None = None
        self.problem = ""
        """Why nobody can say now which GPUs there are; empty where NVML has told, or there is none."""
        self._library = library
        self._control = control
        self._open = False
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nvml")
        self._last: tuple[Gpu, ...] = ()
        self._pending: asyncio.Future[tuple[Gpu, ...]] | None = None

    async def read(self) -> tuple[Gpu, ...]:
        """All GPUs now; the last picture where NVML does not answer in time."""
        if self._library is None:
            return ()
        if self._pending is None or self._pending.done():
            self._pending = asyncio.get_running_loop().run_in_executor(self._executor, self._read)
        try:
            async with asyncio.timeout(READ_SECONDS):
                self._last = await asyncio.shield(self._pending)
        except TimeoutError:
            self.problem = f"NVML does not answer within {READ_SECONDS:g} s"
            logger.warning("nvml_hangs", seconds=READ_SECONDS)
        return self._last

    def close(self) -> None:
        """Let go of NVML; a thread that hangs in it is not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _read(self) -> tuple[Gpu, ...]:
        nvml = self._library
        try:
            if not self._open:
                nvml.nvmlInit()
                self._open = True
                self.driver = _text(nvml.nvmlSystemGetDriverVersion())
            found = tuple(self._gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
        except nvml.NVMLError as error:
            self.problem = "" if self._is_none(error) else f"NVML fails ({error})"
            if self._open:
                logger.warning("nvml_failed", cause=str(error))
                with contextlib.suppress(nvml.NVMLError):
                    nvml.nvmlShutdown()
            self._open = False
            return ()
        self.problem = ""
        return found

    def _is_none(self, error: Exception) -> bool:
        """Whether there is no NVML at all; images of machines bring its library along to those without GPUs."""
        if isinstance(error, self._library.NVMLError_DriverNotLoaded):
            return not self._control.exists()
        return isinstance(error, self._library.NVMLError_LibraryNotFound)

    def _gpu(self, nvml: Any, index: int) -> Gpu:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        try:
            processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except nvml.NVMLError:
            processes = []
        users = tuple(
            GpuUse(pid=process.pid, memory_mib=process.usedGpuMemory // MIB)
            for process in processes
            if process.usedGpuMemory is not None
        )
        return Gpu(
            index=index,
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            name=_text(nvml.nvmlDeviceGetName(handle)),
            memory_total_mib=memory.total // MIB,
            memory_used_mib=memory.used // MIB,
            users=tuple(sorted(users, key=lambda use: use.pid)),
            energy_mj=_energy_mj(nvml, handle),
        )


def attribute(gpus: tuple[Gpu, ...], units: Mapping[str, Unit]) -> tuple[Gpu, ...]:
    """The same GPUs, with each user's worker and the memory that no worker of ours accounts for."""
    owners = {pid: unit.id for unit in units.values() for pid in unit.pids}
    live = [unit.worker for unit in units.values() if unit.running and unit.worker is not None]
    return tuple(_attributed(gpu, owners, live) for gpu in gpus)


def _attributed(gpu: Gpu, owners: Mapping[int, str], live: list[WorkerSpec]) -> Gpu:
    users = tuple(msgspec.structs.replace(use, worker=owners.get(use.pid)) for use in gpu.users)
    ours = sum(use.memory_mib for use in users if use.worker is not None)
    on_card = [spec for spec in live if gpu.uuid in spec.gpus]
    if on_card and not ours:
        # NVML tells no processes (or not ours, in a container): what ours were promised is the best guess
        ours = sum(spec.gpu_memory_mib or gpu.memory_total_mib for spec in on_card)
    foreign = max(0, gpu.memory_used_mib - ours)
    return msgspec.structs.replace(gpu, users=users, memory_foreign_mib=foreign)


def _energy_mj(nvml: Any, handle: object) -> int | None:
    """Cards before Volta have no counter."""
    try:
        return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    except nvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    """NVML's text; older bindings give bytes."""
    return value.decode() if isinstance(value, bytes) else value
