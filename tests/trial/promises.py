"""What a trial promises, and which of it was broken. Pure."""

from collections.abc import Iterable, Sequence

from tests.trial.answers import CUT_SHORT, WRONG
from tests.trial.asking import Asked
from tests.trial.faults import Injection
from tests.trial.starvation import Interval, Spell, Turn
from tests.trial.witness import Death

AROUND_SECONDS = 3.0
"""Looks are half a second apart, and an answer that breaks is noticed by its client first."""
HOPELESS_SECONDS = 45.0
"""After a failure requests may be refused with its reason for so long (planner: RETRY_FAILED_SECONDS)."""
BROKE = frozenset({"engine_broke", "engine_too_slow"})
OUT_OF_MEMORY = "out_of_memory"
SHOWN = 5


def wrong_answers(asked: Iterable[Asked]) -> list[str]:
    """Requests that ended in neither a right answer nor an error as documented."""
    wrong = [one for one in asked if one.judgement.outcome == WRONG]
    return [f"request {one.request.number} to {one.request.model}: {one.judgement.why}" for one in wrong]


def breaks_without_a_fault(asked: Iterable[Asked], faults: Sequence[Injection]) -> list[str]:
    """Answers that an engine broke though nothing was done to it, and refusals for a failure that was none."""
    found = []
    for one in asked:
        code = one.judgement.code
        if code in BROKE or one.judgement.outcome == CUT_SHORT:
            longer = AROUND_SECONDS
        elif code == "endpoint_failed":
            longer = HOPELESS_SECONDS
        else:
            continue
        if not any(_hits(fault, one, longer) for fault in faults):
            found.append(f"request {one.request.number} to {one.request.model}: {code} without a fault")
    return found


def _hits(fault: Injection, one: Asked, longer: float) -> bool:
    over = (fault.over_at or one.ended) + longer
    is_its = fault.endpoint == one.request.model
    return bool(fault.at) and is_its and fault.at - AROUND_SECONDS <= one.ended and one.began <= over


def refused_too_early(asked: Iterable[Asked], queue_seconds: float) -> list[str]:
    """Requests that were told that no worker was ready in time before their time was up."""
    return [
        f"request {one.request.number} to {one.request.model}: no_worker after {one.ended - one.began:.1f} s"
        for one in asked
        if one.judgement.code == "no_worker" and one.ended - one.began < (one.request.patience or queue_seconds) - 0.5
    ]


def unexplained(deaths: Iterable[Death], faults: Sequence[Injection]) -> list[str]:
    """Failures that nobody injected; among them every engine that found less memory than it was promised."""
    return [
        f"{death.worker}: {death.kind}, {death.message}"
        for death in deaths
        if not any(_explains(fault, death) for fault in faults)
    ]


def _explains(fault: Injection, death: Death) -> bool:
    if fault.kind == "manager_killed":
        return False
    until = (fault.over_at or death.at) + AROUND_SECONDS
    return (
        bool(fault.at)
        and fault.endpoint == death.endpoint
        and death.kind in fault.expected
        and fault.at - AROUND_SECONDS <= death.at <= until
    )


def unseen(faults: Iterable[Injection]) -> list[str]:
    """Faults that met somebody and of which nobody was told, or something else."""
    return [
        f"{one.kind} of {one.worker}: {'not found' if one.found_at is None else f'found as {one.found_as}'}"
        for one in faults
        if not one.moot and (one.found_at is None or (one.expected and one.found_as.split(",")[0] not in one.expected))
    ]


def intervals(faults: Iterable[Injection], load: float) -> list[Interval]:
    """When a fault was at work, the load that follows included."""
    return [(one.at, (one.over_at or one.at) + load) for one in faults if one.at]


def starved(spells: Iterable[Spell], faults: Sequence[Injection], turn: Turn, slack: float) -> list[str]:
    """Spells that lasted longer than the bound allows."""
    at_work = intervals(faults, turn.load)
    return [
        f"{one.endpoint} was unserved for {one.seconds:.0f} s, {one.counted(at_work):.0f} s of them without a fault; "
        f"the bound with {one.ahead} before it is {turn.bound(one.ahead):.0f} s"
        for one in spells
        if one.counted(at_work) > turn.bound(one.ahead) + slack
    ]


def brief(broken: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = f"\n  and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
    return "".join(f"\n  {one}" for one in broken[:SHOWN]) + more
