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
from worker_manager.deadlines import ADOPTED_SECONDS, CREATING_SECONDS, WAITING_SECONDS, Limits
from worker_manager.launchers.base import Unit
from worker_manager.tracked import ALIVE, ASLEEP_IS_WANTED, Tracked, waits_for_others


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
            action: Action | None = Adopt(worker, unit.worker, unit.running, unit.length)
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
    if (known.state in ALIVE) == unit.running:
        return None
    return Adopt(worker, unit.worker, unit.running, unit.length)


def _unwanted(worker: str, unit: Unit | None) -> Action:
    return Forget(worker) if unit is None else Stop(worker, "no longer desired")


def _desired(spec: WorkerSpec, known: Tracked | None, unit: Unit | None, scene: Scene) -> Action | None:
    if known is None:
        # a unit without a readable description can't be adopted: it goes, and the worker comes anew
        return Stop(spec.id, "its description can't be read") if unit is not None else Track(spec.id, spec)
    if known.spec_hash != spec_hash(spec) or (unit is not None and _is_another(unit, spec)):
        return Stop(spec.id, "its description changed") if unit is not None else Track(spec.id, spec)
    if unit is None:
        is_collected = known.served is not None  # a try before got as far as the removal
        return Collect(spec.id, known.condemned, None) if is_collected else _without_unit(spec, known, scene)
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
        return Adopt(spec.id, spec, running=True, length=unit.length)
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
        case state if state in ALIVE:
            failure = Failure(
                kind=FailureKind.KILLED,
                message="the engine vanished: its container or process was removed from outside",
                hint="see who removed it; it is started again",
                at=scene.now,
            )
            return Collect(spec.id, failure, None)
        case state if state is WorkerState.FAILED or (known.retry_at or 0) > scene.now:
            return None
        case WorkerState.STOPPING:
            return Track(spec.id, spec)
        case WorkerState.CREATING if scene.now - known.since > CREATING_SECONDS:
            return GiveUp(spec.id, _never_made(scene.now))
        case _ if scene.wanted is not Residency.HOT:
            waits = (known.state, known.reason) == (WorkerState.WAITING, ASLEEP_IS_WANTED)
            return None if waits else Wait(spec.id, ASLEEP_IS_WANTED)
        case _:
            return _start_if_memory_is_free(spec, known, scene)


def _never_made(now: float) -> Failure:
    """One try after the other to make a unit came to nothing, and none said why."""
    message = f"its engine could not be made for {CREATING_SECONDS:g} s"
    return Failure(kind=FailureKind.LAUNCH_FAILED, message=message, hint="see the manager's log", at=now)


def _start_if_memory_is_free(spec: WorkerSpec, known: Tracked, scene: Scene) -> Action | None:
    lacking = room.lacking(spec, scene.free)
    turn = room.turn(spec, scene.loading, "loads") or room.turn(spec, scene.moving, "sleeps or wakes")
    if not lacking and turn:
        return Wait(spec.id, turn) if known.reason != turn or known.state is not WorkerState.WAITING else None
    if not lacking:
        return Start(spec.id, spec)
    if known.state is not WorkerState.WAITING or known.reason == "" or waits_for_others(known.reason):
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
