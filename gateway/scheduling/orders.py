"""What the worker manager was last told: the desired set it took, and since when each worker is asked to be so warm.

The manager acts on an order before it shows so. A worker that was left out of a set, or told to sleep, may be ending
its requests while the last look still calls it ready: no plan that comes after may change its mind and send it some.
"""

from collections.abc import Callable, Iterable

import msgspec

from worker_manager.contract import DesiredSet, ObservedSet, ObservedWorker, Residency, WorkerSpec, WorkerState


class Orders:
    """The last desired set, and whose it is. Times are Unix seconds."""

    def __init__(self, clock: Callable[[], float], overruled: Callable[[int], None] = lambda _generation: None) -> None:
        """`overruled` hears of a set's generation that a manager took after ours, from somebody else."""
        self._clock = clock
        self._overruled = overruled
        self._sent: DesiredSet | None = None
        self._taken_by = ""
        self._specs: dict[str, WorkerSpec] = {}
        self._asked: dict[str, tuple[Residency, float]] = {}
        self._woken: dict[str, int] = {}
        """Who was told to sleep and then to be hot, and in which set."""
        self._dismissed: frozenset[str] = frozenset()

    def asked(self, worker: ObservedWorker) -> tuple[Residency, float]:
        """How warm it was asked to be and when; after a start of the gateway, what it is doing tells."""
        one = worker.spec.id
        if one in self._specs:
            return self._asked.get(one, (Residency.HOT, worker.since))
        if worker.state is WorkerState.ASLEEP:
            return worker.residency, worker.since
        if worker.state is WorkerState.SLEEPING:
            return Residency.ASLEEP_1, worker.since
        return Residency.HOT, worker.since

    def dismiss(self, kept: Iterable[WorkerSpec], observed: ObservedSet) -> None:
        """Take note of who exists and is not to, before the manager is told: there is no way back for those."""
        seen = {worker.spec.id for worker in observed.workers}
        self._dismissed = frozenset((self._dismissed & seen) | (seen - {spec.id for spec in kept}))

    def is_dismissed(self, worker: str) -> bool:
        """Whether it was left out of a set, and is as good as stopping."""
        return worker in self._dismissed

    def withheld(self, observed: ObservedSet) -> frozenset[str]:
        """Who must get no request, whatever state is shown: dismissed, or told to sleep and not yet known to be hot."""
        resting = {one for one, (how, _) in self._asked.items() if how is not Residency.HOT}
        uncertain = {one for one, generation in self._woken.items() if observed.generation < generation}
        return self._dismissed | resting | uncertain

    def unseen(self, observed: ObservedSet) -> tuple[WorkerSpec, ...]:
        """What this manager took and does not show yet."""
        sent = self._sent
        if sent is None or self._taken_by != observed.manager or observed.generation >= sent.generation:
            return ()
        shown = {worker.spec.id for worker in observed.workers}
        return tuple(spec for spec in sent.workers if spec.id not in shown)

    def next(self, wanted: DesiredSet, observed: ObservedSet) -> DesiredSet | None:
        """The desired set to send, numbered; None where this very manager has taken the same."""
        sent = self._sent if self._taken_by == observed.manager else None
        if sent is not None and observed.generation > sent.generation:
            self._overruled(observed.generation)
            sent = None  # somebody else has given it orders since
        if sent is not None and msgspec.structs.replace(sent, generation=wanted.generation) == wanted:
            return None
        generation = max(observed.generation, self._sent.generation if self._sent else 0) + 1
        return msgspec.structs.replace(wanted, generation=generation)

    def taken(self, sent: DesiredSet, manager: str) -> None:
        """A manager took this set."""
        self._sent, self._taken_by = sent, manager
        self._specs = {spec.id: spec for spec in sent.workers}
        now, before = self._clock(), self._asked
        self._asked = {}
        self._woken = {one: generation for one, generation in self._woken.items() if one in self._specs}
        for one in self._specs:
            how = sent.residencies.get(one, Residency.HOT)
            known = before.get(one)
            if how is Residency.HOT and known is not None and known[0] is not how:
                self._woken[one] = sent.generation
            self._asked[one] = known if known is not None and known[0] is how else (how, now)
