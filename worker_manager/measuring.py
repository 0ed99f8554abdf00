"""What the running engines have shown of their memory: read once, when a worker becomes READY."""

import msgspec
import structlog

from worker_manager.contract import Gpu, MeasuredMemory
from worker_manager.engines.start_log import measured
from worker_manager.launchers.base import Launcher, LauncherError

LOG_LINES = 2000
"""A start prints some hundreds."""

logger = structlog.get_logger()


class Measurements:
    """One for each worker that is READY and whose start could be read."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._found: dict[str, MeasuredMemory] = {}

    def of(self, worker: str) -> MeasuredMemory | None:
        """What this worker has shown; None where that is not known."""
        return self._found.get(worker)

    def forget(self, worker: str) -> None:
        """It serves no longer; its next start is another one."""
        self._found.pop(worker, None)

    async def read(self, worker: str, image: str, gpus: tuple[Gpu, ...]) -> bool:
        """Read a worker's log and its use of `gpus`; whether there was anything to learn."""
        try:
            lines = await self._launcher.log(worker, LOG_LINES)
        except LauncherError as error:
            logger.warning("start_log_unread", worker=worker, cause=str(error))  # an estimate has to do
            return False
        found = measured(lines, image)
        if found is None:
            return False
        used = used_mib(worker, gpus)
        self._found[worker] = msgspec.structs.replace(found, used_mib=used)
        logger.info("worker_measured", worker=worker, weights_mib=found.weights_mib, kv_cache_mib=found.kv_cache_mib)
        return True


def used_mib(worker: str, gpus: tuple[Gpu, ...]) -> int | None:
    """MiB that a worker's processes hold by NVML, on the card where they hold most; None where it does not tell."""
    on_each = [sum(use.memory_mib for use in gpu.users if use.worker == worker) for gpu in gpus]
    return max(on_each, default=0) or None
