"""When a running worker falls asleep and when it wakes. Pure: one rule for each state of `STATES`."""

from worker_manager.actions import Action, Collect, Hold, Sleep, Wake
from worker_manager.contract import Failure, FailureKind, Residency, WorkerState
from worker_manager.deadlines import BLOCKED_SECONDS
from worker_manager.launchers.base import Unit
from worker_manager.tracked import Tracked

STATES = frozenset({WorkerState.READY, WorkerState.SLEEPING, WorkerState.ASLEEP, WorkerState.WAKING})


def decide(known: Tracked, unit: Unit, wanted: Residency, *, lacking: str, turn: str, now: float) -> Action | None:
    """What follows for a worker in one of `STATES` that has no action under way.

    `wanted`: how warm it should be; `lacking`: which memory is missing to wake it; `turn`: who loads on its cards, and
    must not see their memory change. Both empty where nothing is in the way.
    """
    match known.state:
        case WorkerState.READY:
            return _ready(known, wanted, turn, now)
        case WorkerState.ASLEEP:
            return _asleep(known, unit, lacking, turn, now) if wanted is Residency.HOT else _unblocked(known)
        case WorkerState.SLEEPING:
            return Collect(unit.id, _broken_off(FailureKind.SLEEP_FAILED, "to sleep", now), unit)
        case _:
            return Collect(unit.id, _broken_off(FailureKind.WAKE_FAILED, "to wake", now), unit)


def refusal(known: Tracked, level: Residency) -> str | None:
    """Why this worker can't sleep at this level; empty if it can, None while that is not known."""
    return known.no_sleep if level is Residency.ASLEEP_1 else known.no_deep_sleep


def _ready(known: Tracked, wanted: Residency, turn: str, now: float) -> Action | None:
    if wanted is Residency.HOT:
        return Hold(known.spec.id, "") if known.reason else None
    why_not = refusal(known, wanted)
    if why_not is None:
        return None
    if why_not:
        reason = f"it can't sleep: {why_not}"
        return Hold(known.spec.id, reason) if reason != known.reason else None
    if known.retry_at is not None and now < known.retry_at:
        return None
    return _in_turn(known, turn, Sleep(known.spec.id, wanted))


def _asleep(known: Tracked, unit: Unit, lacking: str, turn: str, now: float) -> Action | None:
    if not lacking:
        return _in_turn(known, turn, Wake(known.spec.id))
    if known.blocked_at is not None and now - known.blocked_at > BLOCKED_SECONDS:
        failure = Failure(
            kind=FailureKind.OUT_OF_MEMORY_AT_LOAD,
            message=f"waited {BLOCKED_SECONDS:g} s for the GPU memory to wake: {lacking}",
            hint="see which other programs use the GPU; it is started like any other worker",
            at=now,
        )
        return Collect(unit.id, failure, unit)
    reason = f"can't wake yet: {lacking}"
    return Hold(known.spec.id, reason, blocked=True) if reason != known.reason or known.blocked_at is None else None


def _in_turn(known: Tracked, turn: str, action: Action) -> Action | None:
    """The action, once nobody is in the way."""
    if not turn:
        return action
    return Hold(known.spec.id, turn) if known.reason != turn or known.blocked_at is not None else None


def _unblocked(known: Tracked) -> Action | None:
    return Hold(known.spec.id, "") if known.blocked_at is not None else None


def _broken_off(kind: FailureKind, what: str, now: float) -> Failure:
    """A sleep or a wake that nobody waits for any more: what it left can't be trusted."""
    hint = "the worker is started anew; if it comes back, see the manager's log"
    return Failure(kind=kind, message=f"the engine's way {what} was broken off", hint=hint, at=now)
