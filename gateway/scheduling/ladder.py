"""The residency ladder: what sleeping costs, saves and leaves behind. Pure; MiB and seconds.

    hot, asleep_1 (weights in host memory), asleep_2 (weights dropped; only where an endpoint opts in), gone

What was measured counts; before a first sleep these constants do. Their sources: the times and residues of vLLM's
sleep mode that users report run from 0.1 to 36 s for a sleep (the first of level 1 is the slow one: it pins host memory
for all weights), 0.3 to 3 s for a wake, and 1.1 to 1.4 GiB that stay on each GPU.
"""

from gateway.scheduling.types import KnownWorker, WantedEndpoint
from worker_manager.contract import Residency

RESIDUE_MIB = 1536
"""What a sleeper is taken to keep on each GPU: the CUDA context and the graphs."""
LOAD_SECONDS = 60.0
WAKE_SECONDS = {Residency.ASLEEP_1: 3.0, Residency.ASLEEP_2: 10.0}
FIRST_SLEEP_SECONDS = 20.0
PINNED_COPY_MIB = 12_288
"""MiB a second from a GPU into host memory that is pinned already (PCIe 4.0 x16 carries twice that): what
the second sleep takes, when the measured first one had to pin it."""
REHEARSE_SECONDS = 2.0
"""Idle for so long, one that has never slept falls asleep where not all endpoints fit at once: its first sleep is the
slow one, and nobody waits for it now."""
STOP_SECONDS = 5.0
"""From the order to stop until the memory is back. A sleep that took no longer may stand in a waiter's way."""


def load_seconds(endpoint: WantedEndpoint | None) -> float:
    """How long a start takes."""
    return endpoint.load_seconds or LOAD_SECONDS if endpoint is not None else LOAD_SECONDS


def wake_seconds(worker: KnownWorker, level: Residency) -> float:
    """How long waking takes."""
    measured = worker.sleep.wake_seconds if worker.sleep is not None else None
    return WAKE_SECONDS[level] if measured is None else measured


def sleep_seconds(worker: KnownWorker, endpoint: WantedEndpoint | None) -> float:
    """How long falling asleep takes."""
    measured = worker.sleep.sleep_seconds if worker.sleep is not None else None
    if measured is None:
        return FIRST_SLEEP_SECONDS
    return min(measured, sleeping_host_mib(worker, endpoint) / PINNED_COPY_MIB)


def is_quick(worker: KnownWorker, endpoint: WantedEndpoint | None) -> bool:
    """Whether it is known to fall asleep as quickly as it could be stopped."""
    return sleep_seconds(worker, endpoint) <= STOP_SECONDS


def bring_back_seconds(worker: KnownWorker, endpoint: WantedEndpoint | None, left_as: Residency) -> float:
    """What it costs to have it again if it leaves its card this way."""
    if left_as is Residency.GONE:
        return load_seconds(endpoint)
    return min(load_seconds(endpoint), wake_seconds(worker, left_as))


def residue_mib(worker: KnownWorker, promise: int) -> int:
    """What a worker that is asleep holds on each of its cards.

    The memory that is shown may be that of a moment ago, when it was awake; what came back was proven by the sleep.
    """
    freed = worker.sleep.freed_mib if worker.sleep is not None else None
    if worker.memory_mib is None:
        return min(promise, RESIDUE_MIB) if freed is None else max(0, promise - freed)
    return worker.memory_mib if freed is None else min(worker.memory_mib, max(0, promise - freed))


def expected_residue_mib(worker: KnownWorker, promise: int) -> int:
    """What it will hold once it is asleep: what it holds now less what came back the last time."""
    freed = worker.sleep.freed_mib if worker.sleep is not None else None
    if freed is None:
        return min(promise, RESIDUE_MIB)
    # less than what came back is what was shown while it slept
    awake = worker.memory_mib if worker.memory_mib is not None and worker.memory_mib >= freed else promise
    return max(0, awake - freed)


def sleeping_host_mib(worker: KnownWorker, endpoint: WantedEndpoint | None) -> int:
    """Host memory it takes, or would take, to sleep at level 1: the weights, or more where more was measured.

    Less was measured where the memory had been kept since an earlier sleep.
    """
    measured = worker.sleep.host_mib or 0 if worker.sleep is not None else 0
    if endpoint is not None and endpoint.sleep_host_mib:
        return max(measured, endpoint.sleep_host_mib)
    return measured or (worker.spec.gpu_memory_mib or 0) * len(worker.spec.gpus)


def kept_host_mib(worker: KnownWorker, endpoint: WantedEndpoint | None, asked: Residency) -> int:
    """Host memory it has for sleeping: a level-1 sleeper, and one that was, for the engine keeps it when it wakes."""
    if asked is Residency.ASLEEP_1:
        return sleeping_host_mib(worker, endpoint)
    if worker.sleep is None or asked is Residency.ASLEEP_2:
        return 0
    slept_deep = not worker.sleep.host_mib and endpoint is not None and Residency.ASLEEP_2 in endpoint.sleep
    return 0 if slept_deep else sleeping_host_mib(worker, endpoint)
