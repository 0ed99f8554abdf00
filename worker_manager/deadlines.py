"""How long a worker may stay in each state: the one place that says so. Pure; times are Unix seconds.

READY, ASLEEP and FAILED last. So does a wait for others: for a turn on a card (what is waited for has its own deadline
here), or until a worker that should sleep is wanted awake. Every other state ends in time, or begins anew and says why.
"""

from collections.abc import Mapping

import msgspec

from worker_manager.contract import WorkerState
from worker_manager.tracked import Tracked, waits_for_others

WAITING_SECONDS = 60.0
"""For GPU memory that is promised and not free."""
CREATING_SECONDS = 120.0
"""Until the launcher has made and started the unit."""
ADOPTED_SECONDS = 60.0
"""How long an adopted engine that should serve long since may take to answer."""
BLOCKED_SECONDS = 60.0
"""How long a worker that should wake may lack the memory; then it is ended and started like any other."""
ENDING_SECONDS = 180.0
"""One try to end a unit, read its log and remove it, beyond the time for its requests."""
REST = frozenset({WorkerState.READY, WorkerState.ASLEEP, WorkerState.FAILED})
"""States that may last."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Deadlines that are settings."""

    load_seconds: float
    sleep_seconds: float = 300.0
    wake_seconds: float = 300.0
    stop_seconds: float = 30.0


def of(known: Tracked, limits: Limits) -> float | None:
    """When the state that it is in has to end; None where it may last."""
    if known.blocked_at is not None:
        return known.blocked_at + BLOCKED_SECONDS
    if known.state in REST or (known.state is WorkerState.WAITING and waits_for_others(known.reason)):
        return None
    if known.state is WorkerState.BACKOFF:
        return known.since if known.retry_at is None else known.retry_at
    if known.served is not None:
        return known.since + limits.stop_seconds + ENDING_SECONDS
    lengths = {
        WorkerState.WAITING: WAITING_SECONDS,
        WorkerState.CREATING: CREATING_SECONDS,
        WorkerState.LOADING: limits.load_seconds,
        WorkerState.SLEEPING: limits.sleep_seconds,
        WorkerState.WAKING: limits.wake_seconds,
        WorkerState.STOPPING: limits.stop_seconds + ENDING_SECONDS,
    }
    return known.since + lengths[known.state]


def next_one(tracked: Mapping[str, Tracked], limits: Limits, now: float) -> float | None:
    """When a state next has to end, or a try is due; None if none does.

    One that ended a while ago is left out: what could follow from it has followed, and looking again at once would
    not help.
    """
    times = [of(known, limits) for known in tracked.values()]
    times += [known.retry_at for known in tracked.values()]
    return min((time for time in times if time is not None and time > now - 1), default=None)
