"""What to do next: `reconcile(desired, tracked, units, ...) -> actions`. Pure: no clock, no randomness, no I/O.

The supervisor owns the state (`Tracked`, one per worker), asks here what follows from it, and does it. One worker has
at most one action under way; while it has, nothing is decided for it.

    WAITING ──▶ CREATING ──▶ LOADING ──▶ READY ──▶ STOPPING ──▶ gone
       ▲ │                      │          │
       │ └──▶ FAILED ◀──────────┴────┬─────┘ died
       └──────── BACKOFF ◀───────────┘
"""

import hashlib
from collections.abc import Iterable, Mapping

import msgspec

from worker_manager.contract import (
    DesiredSet,
    Failure,
    FailureKind,
    Gpu,
    WorkerSpec,
    WorkerState,
    spec_hash,
)
from worker_manager.engines.diagnosis import PERMANENT_KINDS
from worker_manager.launchers.base import Unit

BACKOFF_SECONDS = 10.0
BACKOFF_MAX_SECONDS = 300.0
BACKOFF_JITTER = 0.1
HEALTHY_SECONDS = 600.0
DEATHS_LIMIT = 5
DEATHS_WINDOW_SECONDS = 1800.0
WAITING_SECONDS = 60.0
CREATING_SECONDS = 120.0
UNAVAILABLE_RETRY_SECONDS = 5.0
ADOPTED_SECONDS = 60.0
"""How long an adopted engine that should serve long since may take to answer."""
FOUND_RUNNING = "found running"
"""The reason of an adopted worker until its first probe has answered."""
TURN = "waits for its turn"
"""How the reason begins of a worker that waits for another's load; that load has a deadline, the wait has none."""
GPU_MARGIN_MIB = 64
"""What a card may lack of the promise: NVML and the planner round differently."""


class Tracked(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor knows of one worker. `since` and `deaths` are Unix times, seconds."""

    spec: WorkerSpec
    spec_hash: str
    state: WorkerState
    since: float
    reason: str = ""
    restarts: int = 0
    deaths: tuple[float, ...] = ()
    """Within the last half hour."""
    retry_at: float | None = None
    failure: Failure | None = None


class Adopt(msgspec.Struct, frozen=True):
    """A unit exists that is not tracked, or tracked as not started: track it as LOADING (or as dead)."""

    id: str
    spec: WorkerSpec
    running: bool


class Track(msgspec.Struct, frozen=True):
    """A worker is desired and nothing of it exists: track it as WAITING, its past forgotten."""

    id: str
    spec: WorkerSpec


class Start(msgspec.Struct, frozen=True):
    """Create and start the unit."""

    id: str
    spec: WorkerSpec


class Wait(msgspec.Struct, frozen=True):
    """Stay WAITING (or go there), for this reason."""

    id: str
    reason: str


class Stop(msgspec.Struct, frozen=True):
    """Stop and remove the unit, then forget the worker."""

    id: str
    reason: str


class Collect(msgspec.Struct, frozen=True):
    """The worker died, or is given up: keep its log, diagnose it unless `failure` says why, remove the unit."""

    id: str
    failure: Failure | None = None
    unit: Unit | None = None
    """As found; None where it has vanished with its log."""


class GiveUp(msgspec.Struct, frozen=True):
    """To FAILED, without a unit to remove."""

    id: str
    failure: Failure


class Forget(msgspec.Struct, frozen=True):
    """Nothing of it exists and nobody wants it: stop tracking it."""

    id: str


Action = Adopt | Track | Start | Wait | Stop | Collect | GiveUp | Forget


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Deadlines that are settings."""

    load_seconds: float


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """What a decision about one worker depends on besides the worker. `free` is MiB by GPU UUID."""

    free: dict[str, int]
    loading: dict[str, str]
    """Which worker loads on each card: one at a time, since vLLM takes what others take meanwhile for its own."""
    limits: Limits
    now: float


def reconcile(
    desired: DesiredSet | None,
    tracked: Mapping[str, Tracked],
    units: Mapping[str, Unit],
    *,
    busy: frozenset[str],
    gpus: tuple[Gpu, ...],
    limits: Limits,
    now: float,
) -> list[Action]:
    """One action per worker at most.

    `desired` is None until the gateway sent a set: then nothing is started and nothing removed, only adopted.
    `units` are the workers' units as listed; `busy` names workers with an action under way.
    """
    wanted = {spec.id: spec for spec in desired.workers} if desired is not None else {}
    free = free_memory(gpus, live_specs(tracked, units))
    loading = loading_cards(tracked)
    actions: list[Action] = []
    for worker in sorted((wanted.keys() | tracked.keys() | units.keys()) - busy):
        unit, known = units.get(worker), tracked.get(worker)
        if known is None and unit is not None and unit.worker is not None:
            action: Action | None = Adopt(worker, unit.worker, unit.running)
        elif desired is None:
            action = _undecided(worker, known, unit)
        elif worker not in wanted:
            action = _unwanted(worker, unit)
        else:
            action = _desired(wanted[worker], known, unit, Scene(free=free, loading=loading, limits=limits, now=now))
        if isinstance(action, Start):
            _reserve(free, action.spec)
            loading |= dict.fromkeys(action.spec.gpus, worker)
        if action is not None:
            actions.append(action)
    return actions


def _undecided(worker: str, known: Tracked | None, unit: Unit | None) -> Action | None:
    """No desired set yet: watch only."""
    if unit is None:
        return Forget(worker)
    if known is None or unit.worker is None:
        return None
    seems_alive = known.state in (WorkerState.LOADING, WorkerState.READY)
    return Adopt(worker, unit.worker, unit.running) if seems_alive != unit.running else None


def _unwanted(worker: str, unit: Unit | None) -> Action:
    return Forget(worker) if unit is None else Stop(worker, "no longer desired")


def _desired(spec: WorkerSpec, known: Tracked | None, unit: Unit | None, scene: Scene) -> Action | None:
    if known is None:
        # a unit without a readable description can't be adopted: it goes, and the worker comes anew
        return Stop(spec.id, "its description can't be read") if unit is not None else Track(spec.id, spec)
    if known.spec_hash != spec_hash(spec) or (unit is not None and _is_another(unit, spec)):
        return Stop(spec.id, "its description changed") if unit is not None else Track(spec.id, spec)
    if unit is None:
        return _without_unit(spec, known, scene)
    if unit.never_started:
        return Stop(spec.id, "its start was not finished")
    if not unit.running:
        return Collect(spec.id, None, unit)
    return _with_running_unit(spec, known, unit, scene.limits, scene.now)


def _is_another(unit: Unit, spec: WorkerSpec) -> bool:
    """Whether the unit was made for another description; one that can't be read is taken for ours."""
    return unit.worker is not None and spec_hash(unit.worker) != spec_hash(spec)


def _with_running_unit(spec: WorkerSpec, known: Tracked, unit: Unit, limits: Limits, now: float) -> Action | None:
    if known.state is WorkerState.READY:
        return None
    if known.state is WorkerState.STOPPING:
        return Stop(spec.id, "a stop before did not succeed")
    if known.state is WorkerState.FAILED:
        return Collect(spec.id, known.failure, unit)
    if known.state is not WorkerState.LOADING:
        return Adopt(spec.id, spec, running=True)
    patience = min(ADOPTED_SECONDS, limits.load_seconds)
    if now <= max(unit.created_at + limits.load_seconds, known.since + patience):
        return None
    failure = Failure(
        kind=FailureKind.LOAD_TIMEOUT,
        message=f"the engine did not serve within {limits.load_seconds:g} s of its start ({known.reason})",
        hint="raise HOSTLER_LOAD_SECONDS if the model is large or the disk slow; else read its log",
        at=now,
    )
    return Collect(spec.id, failure, unit)


def _without_unit(spec: WorkerSpec, known: Tracked, scene: Scene) -> Action | None:
    now = scene.now
    match known.state:
        case WorkerState.FAILED:
            return None
        case WorkerState.LOADING | WorkerState.READY:
            failure = Failure(
                kind=FailureKind.KILLED,
                message="the engine vanished: its container or process was removed from outside",
                hint="see who removed it; it is started again",
                at=now,
            )
            return Collect(spec.id, failure, None)
        case WorkerState.STOPPING:
            return Track(spec.id, spec)
        case WorkerState.BACKOFF if known.retry_at is not None and now < known.retry_at:
            return None
        case _:
            return _start_if_memory_is_free(spec, known, scene)


def _start_if_memory_is_free(spec: WorkerSpec, known: Tracked, scene: Scene) -> Action | None:
    now = scene.now
    lacking = _lacking(spec, scene.free)
    ahead = next((scene.loading[card] for card in spec.gpus if card in scene.loading), None)
    if not lacking and ahead is not None:
        turn = f"{TURN}: {ahead} loads on the same GPU"
        return Wait(spec.id, turn) if known.reason != turn or known.state is not WorkerState.WAITING else None
    if not lacking:
        return Start(spec.id, spec)
    if known.state is not WorkerState.WAITING or known.reason == "" or known.reason.startswith(TURN):
        return Wait(spec.id, lacking)
    if now - known.since > WAITING_SECONDS:
        failure = Failure(
            kind=FailureKind.OUT_OF_MEMORY_AT_LOAD,
            message=f"waited {WAITING_SECONDS:g} s for GPU memory: {lacking}",
            hint="see which other programs use the GPU, or ask for less memory",
            at=now,
        )
        return GiveUp(spec.id, failure)
    return Wait(spec.id, lacking) if lacking != known.reason else None


# GPU memory


def live_specs(tracked: Mapping[str, Tracked], units: Mapping[str, Unit]) -> list[WorkerSpec]:
    """The specs of workers that hold GPU memory, or will in a moment."""
    specs = {unit.id: unit.worker for unit in units.values() if unit.running and unit.worker is not None}
    creating = {id_: known.spec for id_, known in tracked.items() if known.state is WorkerState.CREATING}
    return list((specs | creating).values())


def free_memory(gpus: tuple[Gpu, ...], live: Iterable[WorkerSpec]) -> dict[str, int]:
    """MiB free on each card by UUID: by NVML, and by what live workers were promised, whichever is less."""
    promised: dict[str, int] = {}
    for spec in live:
        for uuid in spec.gpus:
            promised[uuid] = promised.get(uuid, 0) + (spec.gpu_memory_mib or 0)
    return {
        gpu.uuid: gpu.memory_total_mib - max(gpu.memory_used_mib, gpu.memory_foreign_mib + promised.get(gpu.uuid, 0))
        for gpu in gpus
    }


def _lacking(spec: WorkerSpec, free: Mapping[str, int]) -> str:
    """Which card lacks how much; empty if none does."""
    need = spec.gpu_memory_mib or 0
    for uuid in spec.gpus:
        if uuid in free and need > free[uuid] + GPU_MARGIN_MIB:
            return f"GPU {uuid} has {max(free[uuid], 0)} MiB free, {need} MiB are needed"
    return ""


def loading_cards(tracked: Mapping[str, Tracked]) -> dict[str, str]:
    """The worker that is being started on each card, by UUID."""
    starting = (WorkerState.CREATING, WorkerState.LOADING)
    return {card: id_ for id_, known in tracked.items() if known.state in starting for card in known.spec.gpus}


def _reserve(free: dict[str, int], spec: WorkerSpec) -> None:
    """Two starts of one pass never count on the same memory."""
    for uuid in spec.gpus:
        if uuid in free:
            free[uuid] -= spec.gpu_memory_mib or 0


# What becomes of a worker


def fresh(spec: WorkerSpec, now: float) -> Tracked:
    """A worker without a past."""
    return Tracked(spec=spec, spec_hash=spec_hash(spec), state=WorkerState.WAITING, since=now)


def adopted(spec: WorkerSpec, before: Tracked | None, now: float, *, running: bool) -> Tracked:
    """A worker whose unit was found; its past is kept where there is one."""
    state = WorkerState.LOADING if running else WorkerState.BACKOFF
    reason = FOUND_RUNNING if running else "found dead"
    base = before or fresh(spec, now)
    return msgspec.structs.replace(
        base, spec=spec, spec_hash=spec_hash(spec), state=state, since=now, reason=reason, retry_at=None
    )


def entered(known: Tracked, state: WorkerState, now: float, reason: str = "") -> Tracked:
    """The same worker in another state; `since` moves only if the state is another."""
    # a wait for a turn has no deadline of its own, so what is waited for after it starts afresh
    is_turn = known.reason.startswith(TURN) and not reason.startswith(TURN)
    since = known.since if known.state is state and not is_turn else now
    return msgspec.structs.replace(known, state=state, since=since, reason=reason, retry_at=None)


def postponed(known: Tracked, now: float, reason: str) -> Tracked:
    """Not the worker's fault: another try soon, no death counted."""
    waiting = entered(known, WorkerState.BACKOFF, now, reason)
    return msgspec.structs.replace(waiting, retry_at=now + UNAVAILABLE_RETRY_SECONDS)


def failed(known: Tracked, failure: Failure, now: float) -> Tracked:
    """Given up until its spec changes or the gateway drops it."""
    given_up = entered(known, WorkerState.FAILED, now, failure.message)
    return msgspec.structs.replace(given_up, failure=failure)


def died(known: Tracked, failure: Failure, now: float, ready_seconds: float = 0.0) -> Tracked:
    """After a death: BACKOFF, or FAILED if it would be in vain. `ready_seconds`: how long it had served.

    The first death of a worker that had served is not held against it: it starts again at once.
    """
    recent = () if ready_seconds >= HEALTHY_SECONDS else known.deaths
    deaths = (*(at for at in recent if now - at < DEATHS_WINDOW_SECONDS), now)
    counted = msgspec.structs.replace(known, deaths=deaths)
    if failure.kind in PERMANENT_KINDS and ready_seconds == 0:
        return failed(counted, failure, now)
    if len(deaths) >= DEATHS_LIMIT:
        return failed(counted, failure, now)
    # most first deaths of an engine that has served are not the beginning of a loop: back at once
    first = ready_seconds > 0 and len(deaths) == 1
    delay = 0.0 if first else backoff_seconds(known.spec.id, len(deaths))
    waiting = entered(counted, WorkerState.BACKOFF, now, f"died; starts again after {delay:.0f} s: {failure.message}")
    return msgspec.structs.replace(waiting, since=now, retry_at=now + delay, failure=failure, restarts=len(deaths))


def backoff_seconds(worker: str, deaths: int) -> float:
    """10 s doubling to 300 s, give or take a tenth; the same for the same worker and count."""
    base = min(BACKOFF_SECONDS * 2.0 ** (deaths - 1), BACKOFF_MAX_SECONDS)
    digest = hashlib.sha256(f"{worker}:{deaths}".encode()).digest()
    jitter = int.from_bytes(digest[:4]) / 2**32 * 2 - 1
    return base * (1 + BACKOFF_JITTER * jitter)


def next_deadline(tracked: Mapping[str, Tracked], limits: Limits) -> float | None:
    """The Unix time at which a state's deadline next ends; None if none does."""
    lengths = {
        WorkerState.WAITING: WAITING_SECONDS,
        WorkerState.CREATING: CREATING_SECONDS,
        WorkerState.LOADING: limits.load_seconds,
    }
    times = [
        known.since + lengths[known.state]
        for known in tracked.values()
        if known.state in lengths and not known.reason.startswith(TURN)
    ]
    times += [known.retry_at for known in tracked.values() if known.retry_at is not None]
    return min(times, default=None)
