"""What is simulated: models, cards and requests. Plain data; seconds and MiB."""

import msgspec

from gateway.scheduling.types import HOST_MEMORY, WantedEndpoint
from worker_manager.contract import Residency, WorkerSpec

GIB = 1024


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint, and how its engine behaves on this machine."""

    name: str
    gpus: int = 1
    promise_mib: int = 60 * GIB
    whole_card: bool = False
    load_seconds: float = 45.0
    stop_seconds: float = 3.0
    """From the order to stop until the memory is back."""
    per_worker: int = 8
    min_workers: int = 0
    max_workers: int = 1
    priority: int = 0
    idle_seconds: float = 900.0
    sleep: tuple[Residency, ...] = ()
    sleep_after_seconds: float = 60.0
    first_sleep_seconds: float = 15.0
    """The first sleep pins host memory for all weights; the next ones find it pinned."""
    sleep_seconds: float = 1.0
    wake_seconds: float = 2.0
    residue_mib: int = 1400
    """What it keeps on each card while it sleeps."""
    host_mib: int = 40 * GIB
    """What it takes of the host's memory to sleep at level 1, and keeps from then on."""

    def wanted(self) -> WantedEndpoint:
        """The endpoint as the planner is told of it, without demand."""
        sized = self.gpus > 0 and not self.whole_card
        return WantedEndpoint(
            name=self.name,
            template=WorkerSpec(
                id="x",
                endpoint=self.name,
                model=f"local/{self.name}",
                served_names=(self.name,),
                gpu_memory_mib=self.promise_mib if sized else None,
            ),
            gpus=self.gpus,
            promise_mib=self.promise_mib,
            whole_card=self.whole_card,
            min_workers=self.min_workers,
            max_workers=self.max_workers,
            per_worker=self.per_worker,
            idle_seconds=self.idle_seconds,
            priority=self.priority,
            sleep=self.sleep,
            sleep_after_seconds=self.sleep_after_seconds,
            sleep_host_mib=self.host_mib,
        )


class Request(msgspec.Struct, frozen=True, order=True):
    """One request: when it comes, for which model, and how long an engine is at it."""

    at: float
    model: str
    seconds: float


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """A machine and the traffic it gets, requests in order of time."""

    name: str
    models: tuple[Model, ...]
    cards: dict[str, int]
    requests: tuple[Request, ...]
    sleep_memory_mib: int = 256 * GIB
    """Host memory that all sleepers together may take."""
    starvation_seconds: float = 60.0
    minimum_residency_seconds: float = 10.0

    def host_promises(self) -> dict[str, int]:
        """MiB of host memory of a worker without GPUs, by model path."""
        return {f"local/{model.name}": model.promise_mib for model in self.models if not model.gpus}


def cards(number: int, mib: int = 80 * GIB, host_mib: int = 512 * GIB) -> dict[str, int]:
    """So many equal cards, and the machine's own memory."""
    return {f"gpu{index}": mib for index in range(number)} | {HOST_MEMORY: host_mib}
