"""Who holds the GPUs, and what time and energy that comes to. Pure.

A card is held by all workers that are awake on it. Each has the part of it that its promise of memory is of all their
promises there; so the parts of a card in use add up to one, and a card that nobody holds is nobody's. A sleeper has
given its memory back and holds nothing.
"""

import msgspec

from worker_manager.contract import ObservedSet, WorkerState

AWAKE = frozenset(
    {
        WorkerState.CREATING,
        WorkerState.LOADING,
        WorkerState.READY,
        WorkerState.SLEEPING,
        WorkerState.WAKING,
        WorkerState.STOPPING,
    }
)
LONGEST_SECONDS = 60.0
"""Between two looks, as a rule 20 at the most. Over a longer gap (the manager was away) only those count who held a
card before and after it."""

Parts = dict[str, dict[str, float]]
"""By GPU UUID and endpoint: the part of that card, from 0 to 1."""


class Took(msgspec.Struct):
    """What an endpoint has had of the GPUs."""

    gpu_ms: float = 0.0
    """Milliseconds of one whole GPU."""
    energy_mj: float | None = None
    """Millijoules; None where no card told."""


def parts(observed: ObservedSet) -> Parts:
    """Who holds which part of each card now."""
    totals = {gpu.uuid: gpu.memory_total_mib for gpu in observed.host.gpus}
    promises: Parts = {}
    for worker in observed.workers:
        if worker.state not in AWAKE:
            continue
        spec = worker.spec
        for card in spec.gpus:
            held = promises.setdefault(card, {})
            promise = spec.gpu_memory_mib or totals.get(card) or 1
            held[spec.endpoint] = held.get(spec.endpoint, 0.0) + promise
    return {
        card: {endpoint: promise / sum(held.values()) for endpoint, promise in held.items()}
        for card, held in promises.items()
    }


class Holders:
    """Adds up from look to look: what passed between two of them belongs to whoever held the cards at the first."""

    def __init__(self) -> None:
        self._at: float | None = None
        self._parts: Parts = {}
        self._counters: dict[str, int] = {}

    def step(self, observed: ObservedSet, at: float) -> dict[str, Took]:
        """What each endpoint took since the look before; `at`: seconds on a clock that never goes back."""
        now = parts(observed)
        counters = {gpu.uuid: gpu.energy_mj for gpu in observed.host.gpus if gpu.energy_mj is not None}
        took: dict[str, Took] = {}
        if self._at is not None:
            seconds = at - self._at
            for card, held in self._parts.items():
                energy = _used(self._counters.get(card), counters.get(card))
                for endpoint, part in held.items():
                    if seconds > LONGEST_SECONDS and endpoint not in now.get(card, {}):
                        continue
                    one = took.setdefault(endpoint, Took())
                    one.gpu_ms += part * seconds * 1000
                    if energy is not None:
                        one.energy_mj = (one.energy_mj or 0.0) + part * energy
        self._at, self._parts = at, now
        self._counters |= counters
        return took

    def since(self, at: float) -> float:
        """Seconds since the last look; 0 before the first."""
        return at - self._at if self._at is not None else 0.0


def _used(before: int | None, after: int | None) -> int | None:
    """Millijoules between two readings; None where there are not both, or the driver was loaded anew between them."""
    if before is None or after is None or after < before:
        return None
    return after - before
