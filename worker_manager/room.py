"""GPU memory as the manager counts it before it starts or wakes anything. Pure; MiB by GPU UUID throughout."""

from collections.abc import Iterable, Mapping

import msgspec

from worker_manager.contract import Gpu, WorkerSpec, WorkerState
from worker_manager.launchers.base import Unit
from worker_manager.tracked import TURN, Tracked

RESIDUAL_MIB = 1536
"""What an engine that sleeps keeps of a card: its context and CUDA graphs, 1.1 to 1.4 GiB as others measured."""
GPU_MARGIN_MIB = 64
"""What a card may lack of the promise: NVML and the planner round differently."""


def live_specs(tracked: Mapping[str, Tracked], units: Mapping[str, Unit]) -> list[WorkerSpec]:
    """The specs of workers that hold GPU memory, or will in a moment."""
    specs = {unit.id: unit.worker for unit in units.values() if unit.running and unit.worker is not None}
    creating = {id_: known.spec for id_, known in tracked.items() if known.state is WorkerState.CREATING}
    return list((specs | creating).values())


def sleepers(tracked: Mapping[str, Tracked]) -> frozenset[str]:
    """The workers that gave their memory back, so that their promise does not count."""
    return frozenset(id_ for id_, known in tracked.items() if known.state is WorkerState.ASLEEP)


def is_alike(gpus: tuple[Gpu, ...], others: tuple[Gpu, ...]) -> bool:
    """Whether both pictures are the same but for the energy used, which is another one at each look."""
    return _without_energy(gpus) == _without_energy(others)


def _without_energy(gpus: tuple[Gpu, ...]) -> list[Gpu]:
    return [msgspec.structs.replace(gpu, energy_mj=None) for gpu in gpus]


def held(gpus: tuple[Gpu, ...], worker: str) -> dict[str, int]:
    """What a worker's processes hold on each card, as far as NVML tells; cards where it holds nothing are left out."""
    found: dict[str, int] = {}
    for gpu in gpus:
        for use in gpu.users:
            if use.worker == worker:
                found[gpu.uuid] = found.get(gpu.uuid, 0) + use.memory_mib
    return found


def still_held(gpus: tuple[Gpu, ...], worker: str) -> dict[str, int]:
    """What a sleeper holds on each card; where NVML does not tell whose memory it is, what sleepers hold as a rule."""
    return held(gpus, worker) or {gpu.uuid: min(RESIDUAL_MIB, gpu.memory_used_mib) for gpu in gpus}


def free_memory(
    gpus: tuple[Gpu, ...], live: Iterable[WorkerSpec], asleep: frozenset[str] = frozenset()
) -> dict[str, int]:
    """Free on each card: by NVML, and by what live workers were promised, whichever is less.

    Of those `asleep` counts what they still hold.
    """
    promised: dict[str, int] = {}
    for spec in live:
        kept = held(gpus, spec.id) if spec.id in asleep else None
        for uuid in spec.gpus:
            part = (spec.gpu_memory_mib or 0) if kept is None else kept.get(uuid, 0)
            promised[uuid] = promised.get(uuid, 0) + part
    return {
        gpu.uuid: gpu.memory_total_mib - max(gpu.memory_used_mib, gpu.memory_foreign_mib + promised.get(gpu.uuid, 0))
        for gpu in gpus
    }


def lacking(spec: WorkerSpec, free: Mapping[str, int], gpus: tuple[Gpu, ...] = ()) -> str:
    """Which card lacks how much; empty if none does. With `gpus` it counts what the worker, asleep, holds already."""
    kept = still_held(gpus, spec.id)
    for uuid in spec.gpus:
        need = (spec.gpu_memory_mib or 0) - kept.get(uuid, 0)
        if uuid in free and need > free[uuid] + GPU_MARGIN_MIB:
            return f"GPU {uuid} has {max(free[uuid], 0)} MiB free, {need} MiB are needed"
    return ""


def reserve(free: dict[str, int], spec: WorkerSpec, kept: Mapping[str, int] | None = None) -> None:
    """Two starts of one pass never count on the same memory."""
    for uuid in spec.gpus:
        if uuid in free:
            free[uuid] -= max(0, (spec.gpu_memory_mib or 0) - (kept or {}).get(uuid, 0))


def loading(tracked: Mapping[str, Tracked]) -> dict[str, str]:
    """The worker that is being started on each card."""
    return _by_card(tracked, (WorkerState.CREATING, WorkerState.LOADING))


def moving(tracked: Mapping[str, Tracked]) -> dict[str, str]:
    """A worker that falls asleep or wakes on each card."""
    return _by_card(tracked, (WorkerState.SLEEPING, WorkerState.WAKING))


def turn(spec: WorkerSpec, others: Mapping[str, str], what: str) -> str:
    """The reason to wait for one of the others on this worker's cards; empty if there is none."""
    ahead = next((others[card] for card in spec.gpus if others.get(card, spec.id) != spec.id), None)
    return f"{TURN}: {ahead} {what} on the same GPU" if ahead is not None else ""


def _by_card(tracked: Mapping[str, Tracked], states: tuple[WorkerState, ...]) -> dict[str, str]:
    return {card: id_ for id_, known in tracked.items() if known.state in states for card in known.spec.gpus}
