"""What the supervisor knows of a worker, and what becomes of it. Pure: every change gives a new `Tracked`."""

import hashlib
from collections.abc import Mapping

import msgspec

from worker_manager.contract import (
    ENGINE_SOCKET,
    Failure,
    FailureKind,
    MeasuredMemory,
    ObservedAdapter,
    ObservedWorker,
    Residency,
    SleepFacts,
    WorkerSpec,
    WorkerState,
    spec_hash,
)
from worker_manager.engines.last_words import PERMANENT_KINDS, length_that_fits

BACKOFF_SECONDS = 10.0
BACKOFF_MAX_SECONDS = 300.0
BACKOFF_JITTER = 0.1
HEALTHY_SECONDS = 600.0
DEATHS_LIMIT = 5
DEATHS_WINDOW_SECONDS = 1800.0
UNAVAILABLE_RETRY_SECONDS = 5.0
LENGTH_MARGIN = 0.98
"""Part of the length that would fit which is asked for: the engine measures its memory anew at each start."""
LENGTH_STEP = 16
LENGTH_LEAST = 1024
"""Tokens below which a shorter context is no help."""
MOMENT_SECONDS = 0.001
"""What one has served at least that was READY, by a clock that stood still."""
BUSY_RETRY_SECONDS = 5.0
"""Between two tries to let a worker sleep that still had requests."""
FOUND_RUNNING = "found running"
"""The reason of an adopted worker until its first probe has answered."""
TURN = "waits for its turn"
"""How the reason begins of a worker that waits for another's load; that load has a deadline, the wait has none."""
ASLEEP_IS_WANTED = "it is wanted asleep, and nothing is started in order to sleep"
"""The reason of a worker that has nothing to do until it is wanted awake."""
ALIVE = frozenset(
    {WorkerState.LOADING, WorkerState.READY, WorkerState.SLEEPING, WorkerState.ASLEEP, WorkerState.WAKING}
)
"""States in which a unit runs."""
COMING = frozenset({WorkerState.WAITING, WorkerState.CREATING, WorkerState.LOADING})
"""States in which its weights are not loaded yet."""
SERVED = ALIVE - {WorkerState.LOADING}
"""States that a worker reaches only after it was found to generate."""
RECYCLED_KINDS = frozenset({FailureKind.SLEEP_FAILED, FailureKind.WAKE_FAILED})
"""Failures of sleep, not of the model: it starts anew at once and does not sleep again."""


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
    """In BACKOFF the time of the next start; in READY the time of the next try to sleep."""
    failure: Failure | None = None
    level: Residency = Residency.HOT
    """In SLEEPING where it goes, in ASLEEP and WAKING where it is or was."""
    no_sleep: str | None = None
    """Why it can't sleep at level 1; empty where it can, None where that is not known yet."""
    no_deep_sleep: str | None = None
    """The same of level 2."""
    broken_sleep: dict[Residency, str] = {}
    """The levels that have failed an engine of its image and model, and how."""
    sleep: SleepFacts | None = None
    blocked_at: float | None = None
    """Since when it should wake and lacks the memory."""
    condemned: Failure | None = None
    """It runs and is to be replaced, for this reason."""
    served: float | None = None
    """While it is dead and its unit is still there: for how many seconds it had served."""
    shortened: int | None = None
    """The context length that its engine is started with, whatever the spec says: what it had said would fit."""


def fresh(spec: WorkerSpec, now: float, length: int | None = None) -> Tracked:
    """A worker without a past. `length`: the context length that was found to fit such a one before."""
    return Tracked(spec=spec, spec_hash=spec_hash(spec), state=WorkerState.WAITING, since=now, shortened=length)


def adopted(
    spec: WorkerSpec, before: Tracked | None, now: float, *, running: bool, length: int | None = None
) -> Tracked:
    """A worker whose unit was found; its past is kept where there is one. `length`: as the unit remembers it."""
    state = WorkerState.LOADING if running else WorkerState.BACKOFF
    reason = FOUND_RUNNING if running else "found dead"
    found = entered(before or fresh(spec, now), state, now, reason)
    shortened = length or found.shortened
    return msgspec.structs.replace(found, spec=spec, spec_hash=spec_hash(spec), since=now, shortened=shortened)


def worked(known: Tracked, now: float) -> Tracked:
    """It was found running and is too busy to answer, but seen to work: its time to answer begins anew."""
    return msgspec.structs.replace(known, since=now)


def waits_for_others(reason: str) -> bool:
    """Whether a WAITING worker waits for what has a deadline of its own, or for a wish, and not for memory."""
    return reason.startswith(TURN) or reason == ASLEEP_IS_WANTED


def entered(known: Tracked, state: WorkerState, now: float, reason: str = "") -> Tracked:
    """The same worker in another state; `since` moves only if the state is another."""
    # a wait for others has no deadline of its own, so what is waited for after it starts afresh
    is_fresh = state is WorkerState.WAITING and waits_for_others(known.reason) and not waits_for_others(reason)
    since = known.since if known.state is state and not is_fresh else now
    return msgspec.structs.replace(
        known, state=state, since=since, reason=reason, retry_at=None, blocked_at=None, condemned=None, served=None
    )


def asleep(known: Tracked, level: Residency, facts: SleepFacts, now: float) -> Tracked:
    """It sleeps, and that is proven."""
    return msgspec.structs.replace(entered(known, WorkerState.ASLEEP, now), level=level, sleep=facts)


def busy(known: Tracked, now: float, reason: str) -> Tracked:
    """It could not sleep for its requests: READY as before, another try in a moment."""
    ready = entered(known, WorkerState.READY, now, reason)
    return msgspec.structs.replace(ready, retry_at=now + BUSY_RETRY_SECONDS)


def held(known: Tracked, now: float, reason: str, *, blocked: bool) -> Tracked:
    """It stays as it is and says why."""
    since = (known.blocked_at or now) if blocked else None
    return msgspec.structs.replace(known, reason=reason, blocked_at=since)


def judged(known: Tracked, why_not: tuple[str, str]) -> Tracked:
    """Why it can't sleep at level 1 and at level 2; empty where it can."""
    return msgspec.structs.replace(known, no_sleep=why_not[0], no_deep_sleep=why_not[1])


def condemned(known: Tracked, failure: Failure) -> Tracked:
    """It runs and is no good: the next pass replaces it."""
    return msgspec.structs.replace(known, condemned=failure)


def collected(known: Tracked, failure: Failure | None, now: float) -> Tracked:
    """It is dead, or ended for this reason: WAITING until its log is read and its unit removed.

    Not STOPPING: the gateway would take it for leaving and ask for another, whose past is clean.
    """
    ready_seconds = max(now - known.since, MOMENT_SECONDS) if known.state in SERVED else 0.0
    served = ready_seconds if known.served is None else known.served
    reason = known.reason if known.served is not None else "died: its log is read"
    waiting = entered(known, WorkerState.WAITING, now, reason)
    # a wait for a turn or for memory before is another one
    since = waiting.since if known.served is not None else now
    return msgspec.structs.replace(waiting, since=since, condemned=failure, served=served)


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

    The first death of a worker that had served is not held against it: it starts again at once. So does, once, one
    whose context did not fit and that nobody asked a length for.
    """
    if failure.kind in RECYCLED_KINDS:
        anew = entered(known, WorkerState.WAITING, now)
        return msgspec.structs.replace(anew, since=now, failure=failure, level=Residency.HOT)
    recent = () if ready_seconds >= HEALTHY_SECONDS else known.deaths
    deaths = (*(at for at in recent if now - at < DEATHS_WINDOW_SECONDS), now)
    counted = msgspec.structs.replace(known, deaths=deaths)
    if (length := _length_instead(known, failure)) is not None:
        again = entered(counted, WorkerState.BACKOFF, now, f"starts again with max_model_len {length}, which fits")
        changes = {"retry_at": now, "failure": failure, "restarts": len(deaths), "shortened": length}
        return msgspec.structs.replace(again, since=now, **changes)
    if failure.kind in PERMANENT_KINDS and ready_seconds == 0:
        return failed(counted, failure, now)
    if len(deaths) >= DEATHS_LIMIT:
        return failed(counted, failure, now)
    # most first deaths of an engine that has served are not the beginning of a loop: back at once
    first = ready_seconds > 0 and len(deaths) == 1
    delay = 0.0 if first else backoff_seconds(known.spec.id, len(deaths))
    waiting = entered(counted, WorkerState.BACKOFF, now, f"died; starts again after {delay:.0f} s: {failure.message}")
    return msgspec.structs.replace(waiting, since=now, retry_at=now + delay, failure=failure, restarts=len(deaths))


def _length_instead(known: Tracked, failure: Failure) -> int | None:
    """The context length that a worker may be started with instead, once, where nobody asked for one."""
    asked = known.spec.max_model_len is not None and not known.spec.is_length_chosen
    if failure.kind is not FailureKind.KV_CACHE_TOO_SMALL or asked or known.shortened is not None:
        return None
    fits = length_that_fits(failure.log_tail)
    length = int((fits or 0) * LENGTH_MARGIN) // LENGTH_STEP * LENGTH_STEP
    return length if length >= LENGTH_LEAST else None


def remembered(lengths: Mapping[str, int], known: Tracked) -> Mapping[str, int]:
    """The context lengths that were found to fit, by hash of the spec: the next worker like it is spared a death."""
    if known.shortened is None:
        return lengths
    others = {spec: length for spec, length in lengths.items() if spec != known.spec_hash}
    return others if _in_vain(known) else {**others, known.spec_hash: known.shortened}


def _in_vain(known: Tracked) -> bool:
    """Whether it was started with a shorter context and that did not fit either."""
    why = known.failure.kind if known.failure is not None else None
    return known.state is WorkerState.FAILED and why is FailureKind.KV_CACHE_TOO_SMALL


def said(known: Tracked) -> str:
    """Its reason, and what was changed so that it serves."""
    if known.shortened is None or known.state is WorkerState.BACKOFF:
        return known.reason
    repair = f"max_model_len was lowered to {known.shortened}: more does not fit into the KV cache"
    return f"{known.reason}; {repair}" if known.reason else repair


def backoff_seconds(worker: str, deaths: int) -> float:
    """10 s doubling to 300 s, give or take a tenth; the same for the same worker and count."""
    base = min(BACKOFF_SECONDS * 2.0 ** (deaths - 1), BACKOFF_MAX_SECONDS)
    digest = hashlib.sha256(f"{worker}:{deaths}".encode()).digest()
    jitter = int.from_bytes(digest[:4]) / 2**32 * 2 - 1
    return base * (1 + BACKOFF_JITTER * jitter)


def observed(
    known: Tracked,
    memory_mib: int | None,
    measured: MeasuredMemory | None,
    adapters: tuple[ObservedAdapter, ...] | None = (),
    made_at: float = 0.0,
) -> ObservedWorker:
    """The worker as the gateway sees it.

    `memory_mib`: what it holds on the card where it holds most; `measured`: what its start has shown; `adapters`: None
    where it is not known yet which it has; `made_at`: when its unit was made, 0 without one.
    """
    if known.state in (WorkerState.ASLEEP, WorkerState.WAKING):
        warmth = known.level
    else:
        warmth = Residency.HOT if known.state in (WorkerState.READY, WorkerState.SLEEPING) else Residency.GONE
    return ObservedWorker(
        spec=known.spec,
        spec_hash=known.spec_hash,
        state=known.state,
        residency=warmth,
        since=known.since,
        socket=f"{known.spec.id}/{ENGINE_SOCKET}",
        reason=said(known),
        shortened=known.shortened,
        restarts=known.restarts,
        retry_at=known.retry_at if known.state is WorkerState.BACKOFF else None,
        failure=known.failure,
        can_sleep=known.no_sleep == "",
        can_sleep_deep=known.no_deep_sleep == "",
        no_sleep_reason=known.no_sleep or "",
        broken_sleep=known.broken_sleep,
        memory_mib=memory_mib,
        measured=measured,
        sleep=known.sleep,
        adapters=adapters or (),
        made_at=made_at,
        is_unasked=adapters is None or known.reason == FOUND_RUNNING,
    )
