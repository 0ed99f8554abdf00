"""Why each worker is where it is: the last decision about it, which later plans only carry on. Pure."""

from collections.abc import Iterable

import msgspec

from gateway.scheduling.types import Decision, Plan


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """A decision about a worker, and when it was taken."""

    at: float
    """Unix time, seconds."""
    decision: Decision


class Reasons:
    """Remembers from plan to plan; a worker that was there before this process has none until something is decided."""

    def __init__(self) -> None:
        self._last: dict[str, Reason] = {}

    def note(self, now: float, plan: Plan, seen: Iterable[str]) -> None:
        """Take over what a plan decides; what is neither desired nor seen any more is forgotten."""
        fresh = {one.worker: Reason(at=now, decision=one) for one in plan.decisions if one.worker is not None}
        there = {spec.id for spec in plan.desired} | set(seen) | fresh.keys()
        self._last = {one: why for one, why in (self._last | fresh).items() if one in there}

    def of(self, worker: str) -> Reason | None:
        """The last decision about a worker."""
        return self._last.get(worker)

    def all(self) -> dict[str, Reason]:
        """By worker id."""
        return dict(self._last)
