"""What a worker is from the moment an action begins. Pure; how the action ends is its own to say."""

from collections.abc import Mapping

import msgspec

from worker_manager import actions as act
from worker_manager import tracked as life
from worker_manager.contract import WorkerState, spec_hash
from worker_manager.tracked import Tracked

NOTHING: Mapping[str, int] = {}


def begun(
    action: act.Action, known: Tracked | None, now: float, lengths: Mapping[str, int] = NOTHING
) -> Tracked | None:
    """The worker after this; None where nothing is known of it any more, or was before.

    `now`: Unix seconds; `lengths`: the context lengths that were found to fit, by hash of the spec.
    """
    match action:
        case act.Adopt(spec=spec, running=running, length=length):
            return life.adopted(spec, known, now, running=running, length=length)
        case act.Track(spec=spec):
            return life.fresh(spec, now, lengths.get(spec_hash(spec)))
        case act.Forget():
            return None
        case _:
            return _moved(action, known, now) if known is not None else None


def _moved(action: act.Action, known: Tracked, now: float) -> Tracked:
    after = known
    match action:
        case act.Wait(reason=reason):
            after = life.entered(known, WorkerState.WAITING, now, reason)
        case act.GiveUp(failure=failure):
            after = life.failed(known, failure, now)
        case act.Hold(reason=reason, blocked=blocked):
            after = life.held(known, now, reason, blocked=blocked)
        case act.Start():
            after = life.entered(known, WorkerState.CREATING, now)
        case act.Collect(failure=failure):
            after = life.collected(known, failure, now)
        case act.Sleep(level=level):
            after = msgspec.structs.replace(life.entered(known, WorkerState.SLEEPING, now), level=level)
        case act.Wake():
            after = life.entered(known, WorkerState.WAKING, now)
        case act.Stop(reason=reason):
            said = known.reason if known.state is WorkerState.STOPPING else ""  # why the last try failed
            after = life.entered(known, WorkerState.STOPPING, now, said or reason)
    return after
