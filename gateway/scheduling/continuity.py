"""What a new worker manager can't know yet of the workers that it found, and the one before it had told.

A manager remembers nothing over its restart. Whether an engine serves, since when, and which adapters it has it asks
anew, and that takes a moment, or long where the engine is busy. The engine has noticed nothing of all this, so neither
should its requests: what was known of the same container holds until the new manager knows better.
"""

import msgspec

from worker_manager.contract import ObservedSet, ObservedWorker, SleepFacts, WorkerState

RUNS = frozenset({WorkerState.LOADING, WorkerState.READY, WorkerState.SLEEPING, WorkerState.ASLEEP, WorkerState.WAKING})
"""States in which a container runs."""
LASTS = frozenset({WorkerState.READY, WorkerState.ASLEEP})
"""States that a manager finds as the last one had left them."""


class Continuity:
    """The workers as the last manager had shown them, as far as that still holds."""

    def __init__(self) -> None:
        self._manager = ""
        self._shown: tuple[ObservedWorker, ...] = ()
        self._before: dict[str, ObservedWorker] = {}
        self._since: dict[str, float] = {}
        """Since when the new manager says that a worker is what it was before."""

    def carry(self, observed: ObservedSet) -> ObservedSet:
        """The observed set, completed by what was known before its manager began."""
        if observed.manager != self._manager:
            self._manager, self._since = observed.manager, {}
            self._before = {one.spec.id: one for one in self._shown if one.made_at and one.state in RUNS}
        self._shown = tuple(self._carried(worker) for worker in observed.workers) if self._before else observed.workers
        return msgspec.structs.replace(observed, workers=self._shown)

    def _carried(self, worker: ObservedWorker) -> ObservedWorker:
        one = worker.spec.id
        before = self._before.get(one)
        if before is None:
            return worker
        if worker.made_at == before.made_at and worker.is_unasked and worker.state is WorkerState.LOADING:
            return before
        if not (_is_same(before, worker) and self._since.setdefault(one, worker.since) == worker.since):
            del self._before[one]
            return worker
        return msgspec.structs.replace(
            worker,
            since=before.since,
            sleep=_completed(worker.sleep, before.sleep),
            adapters=before.adapters if worker.is_unasked else worker.adapters,
        )


def _is_same(before: ObservedWorker, now: ObservedWorker) -> bool:
    """Whether it is the same engine in the same state, and that one lasts."""
    are_alike = (before.made_at, before.state, before.residency) == (now.made_at, now.state, now.residency)
    return are_alike and now.state in LASTS


def _completed(facts: SleepFacts | None, before: SleepFacts | None) -> SleepFacts | None:
    """What was measured, the latest of each."""
    if facts is None or before is None:
        return facts or before
    known = {name: value for name in facts.__struct_fields__ if (value := getattr(facts, name)) is not None}
    return msgspec.structs.replace(before, **known)
