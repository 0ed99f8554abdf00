"""What to do next: `reconcile(desired, tracked, units, ...) -> actions`. Pure: no clock, no randomness, no I/O.

The supervisor owns the state (`Tracked`, one per worker), asks here what follows from it, and does it. One worker has
at most one action under way; while it has, nothing is decided for it.

    WAITING ──▶ CREATING ──▶ LOADING ──▶ READY ──▶ STOPPING ──▶ gone
       ▲ │                      │        │ │ ▲
       │ └──▶ FAILED ◀──────────┴────┬───┘ │ └── WAKING ◀──┐
       └──────── BACKOFF ◀───────────┘died └─▶ SLEEPING ─▶ ASLEEP

A sleep or a wake that fails ends the engine and starts the worker anew, which then does not sleep again.
"""

from collections.abc import Mapping

import msgspec

from worker_manager import residency, room
from worker_manager.actions import Action, Adopt, Collect, Forget, GiveUp, Sleep, Start, Stop, Track, Wait, Wake
from worker_manager.contract import (
    DesiredSet,
    Failure,
    FailureKind,
    Gpu,
    Residency,
    WorkerSpec,
    WorkerState,
    spec_hash,
)
from worker_manager.launchers.base import Unit
from worker_manager.tracked import ALIVE, TURN, Tracked

WAITING_SECONDS = 60.0
CREATING_SECONDS = 120.0
ADOPTED_SECONDS = 60.0
"""How long an adopted engine that should serve long since may take to answer."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Deadlines that are settings."""

    load_seconds: float


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """What a decision about one worker depends on besides the worker. `free` is MiB by GPU UUID."""

    free: dict[str, int]
    limits: Limits
    now: float
    loading: dict[str, str] = {}
    """Which worker loads on each card: one at a time, and nobody falls asleep or wakes beside it, since vLLM takes what
    others take or give meanwhile for its own."""
    moving: dict[str, str] = {}
    """Which worker falls asleep or wakes on each card."""
    gpus: tuple[Gpu, ...] = ()
    wanted: Residency = Residency.HOT


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
    residencies = desired.residencies if desired is not None else {}
    free = room.free_memory(gpus, room.live_specs(tracked, units), room.sleepers(tracked))
    loading, moving = room.loading(tracked), room.moving(tracked)
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
            warmth = residencies.get(worker, Residency.HOT)
            scene = Scene(free=free, loading=loading, moving=moving, limits=limits, now=now, gpus=gpus, wanted=warmth)
            action = _desired(wanted[worker], known, unit, scene)
        if isinstance(action, Start):
            room.reserve(free, action.spec)
            loading |= dict.fromkeys(action.spec.gpus, worker)
        if isinstance(action, Wake):
            room.reserve(free, wanted[worker], room.still_held(gpus, worker))
        if isinstance(action, Wake | Sleep):
            moving |= dict.fromkeys(wanted[worker].gpus, worker)
        if action is not None:
            actions.append(action)
    return actions


def _undecided(worker: str, known: Tracked | None, unit: Unit | None) -> Action | None:
    """No desired set yet: watch only."""
    if unit is None:
        return Forget(worker)
    if known is None or unit.worker is None:
        return None
    return Adopt(worker, unit.worker, unit.running) if (known.state in ALIVE) != unit.running else None


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
        return Collect(spec.id, known.condemned, unit)
    return _with_running_unit(spec, known, unit, scene)


def _is_another(unit: Unit, spec: WorkerSpec) -> bool:
    """Whether the unit was made for another description; one that can't be read is taken for ours."""
    return unit.worker is not None and spec_hash(unit.worker) != spec_hash(spec)


def _with_running_unit(spec: WorkerSpec, known: Tracked, unit: Unit, scene: Scene) -> Action | None:
    if known.condemned is not None:
        return Collect(spec.id, known.condemned, unit)
    if known.state in residency.STATES:
        turn = room.turn(spec, scene.loading, "loads")
        lacking = room.lacking(spec, scene.free, scene.gpus)
        return residency.decide(known, unit, scene.wanted, lacking=lacking, turn=turn, now=scene.now)
    if known.state is WorkerState.STOPPING:
        return Stop(spec.id, "a stop before did not succeed")
    if known.state is WorkerState.FAILED:
        return Collect(spec.id, known.failure, unit)
    if known.state is not WorkerState.LOADING:
        return Adopt(spec.id, spec, running=True)
    return _loading_too_long(known, unit, scene.limits, scene.now)


def _loading_too_long(known: Tracked, unit: Unit, limits: Limits, now: float) -> Action | None:
    patience = min(ADOPTED_SECONDS, limits.load_seconds)
    if now <= max(unit.created_at + limits.load_seconds, known.since + patience):
        return None
    failure = Failure(
        kind=FailureKind.LOAD_TIMEOUT,
        message=f"the engine did not serve within {limits.load_seconds:g} s of its start ({known.reason})",
        hint="raise HOSTLER_LOAD_SECONDS if the model is large or the disk slow; else read its log",
        at=now,
    )
    return Collect(unit.id, failure, unit)


def _without_unit(spec: WorkerSpec, known: Tracked, scene: Scene) -> Action | None:
    match known.state:
        case WorkerState.FAILED:
            return None
        case state if state in ALIVE:
            failure = Failure(
                kind=FailureKind.KILLED,
                message="the engine vanished: its container or process was removed from outside",
                hint="see who removed it; it is started again",
                at=scene.now,
            )
            return Collect(spec.id, failure, None)
        case WorkerState.STOPPING:
            return Track(spec.id, spec)
        case WorkerState.BACKOFF if known.retry_at is not None and scene.now < known.retry_at:
            return None
        case _ if scene.wanted is not Residency.HOT:
            reason = "it is wanted asleep, and nothing is started in order to sleep"
            return Wait(spec.id, reason) if (known.state, known.reason) != (WorkerState.WAITING, reason) else None
        case _:
            return _start_if_memory_is_free(spec, known, scene)


def _start_if_memory_is_free(spec: WorkerSpec, known: Tracked, scene: Scene) -> Action | None:
    lacking = room.lacking(spec, scene.free)
    turn = room.turn(spec, scene.loading, "loads") or room.turn(spec, scene.moving, "sleeps or wakes")
    if not lacking and turn:
        return Wait(spec.id, turn) if known.reason != turn or known.state is not WorkerState.WAITING else None
    if not lacking:
        return Start(spec.id, spec)
    if known.state is not WorkerState.WAITING or known.reason == "" or known.reason.startswith(TURN):
        return Wait(spec.id, lacking)
    if scene.now - known.since > WAITING_SECONDS:
        failure = Failure(
            kind=FailureKind.OUT_OF_MEMORY_AT_LOAD,
            message=f"waited {WAITING_SECONDS:g} s for GPU memory: {lacking}",
            hint="see which other programs use the GPU, or ask for less memory",
            at=scene.now,
        )
        return GiveUp(spec.id, failure)
    return Wait(spec.id, lacking) if lacking != known.reason else None


def next_deadline(tracked: Mapping[str, Tracked], limits: Limits, now: float) -> float | None:
    """The Unix time at which a state's deadline next ends; None if none does.

    One that ended a while ago is left out: what could follow from it has followed, and looking again at once would
    not help.
    """
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
    times += [
        known.blocked_at + residency.BLOCKED_SECONDS for known in tracked.values() if known.blocked_at is not None
    ]
    return min((time for time in times if time > now - 1), default=None)
