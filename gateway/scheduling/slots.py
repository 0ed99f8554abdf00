"""Slots: the workers as requests see them, and how one of an endpoint's is picked."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from gateway.scheduling.affinity import Memory, Trail
from gateway.scheduling.balance import WINDOW_SECONDS, choose
from worker_manager.contract import AdapterState, ObservedWorker, WorkerState

NO_ADAPTERS: Mapping[str, str] = {}


class Slot:
    """A worker as requests see it: where it listens, how many it is serving, what it has read."""

    def __init__(self, worker: ObservedWorker, socket: Path, now: float) -> None:
        self.id = worker.spec.id
        self.endpoint = worker.spec.endpoint
        self.incarnation = incarnation(worker)
        self.socket = socket
        self.state = worker.state
        self.draining = False
        self.on_trial = False
        """It has not answered the first request of its change yet, which is the gateway's own."""
        self.reachable = True
        """False from a connection it did not take until a probe gets through, or it starts anew."""
        self.in_flight = 0
        self.given = 0
        """Requests it was given in this window and the one before."""
        self.given_now = 0
        """Of these, in this window."""
        self.last_used = now
        self.ready_at = worker.since
        """Since when requests may be sent there, if they may."""
        self.loading_since: float | None = None
        self.awake_at: float | None = None
        """When it should be awake, while it wakes and that is known."""
        self.memory = Memory()
        self.adapters: Mapping[str, str] = NO_ADAPTERS
        """The LoRA adapters it has loaded, each with its revision."""
        self.adapter_failures: Mapping[str, str] = NO_ADAPTERS
        """Those it could not load, and why."""
        self.at_once = Lease(self, 0.0)
        """The lease of each request that need not wait; there is nothing in it that is one request's own."""

    def serves(self) -> bool:
        """Whether requests may be sent there, as far as it goes."""
        return self.state is WorkerState.READY and self.reachable and not self.draining and not self.on_trial

    def begin_anew(self, life: str, now: float) -> None:
        """It has just become ready: nothing is cached, and what was wrong with it is past."""
        self.incarnation = life
        self.reachable = True
        self.last_used = self.ready_at = now
        self.memory = Memory()

    def note_adapters(self, worker: ObservedWorker) -> None:
        """Take over how far it has come with its adapters; what it had is gone when it is not ready."""
        if not (worker.adapters or self.adapters or self.adapter_failures):
            return
        told = worker.adapters if worker.state is WorkerState.READY else ()
        self.adapters = {one.name: one.revision for one in told if one.state is AdapterState.READY}
        self.adapter_failures = {one.name: one.reason for one in told if one.state is AdapterState.FAILED}

    def end_trial(self, now: float) -> None:
        """It has answered the first request of its change."""
        self.on_trial = False
        self.ready_at = now


class Lease:
    """The right to send one request to one worker; `Demand.release` takes it back."""

    __slots__ = ("slot", "waited", "woke")

    def __init__(self, slot: Slot, waited: float, woke: float = 0.0) -> None:
        self.slot = slot
        self.waited = waited
        """Seconds the request waited for it."""
        self.woke = woke
        """How many of them this worker was not ready yet: it started, woke or was on trial."""


class Team:
    """The slots of one endpoint."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._slots: list[Slot] = []
        self._window_ends = 0.0

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def add(self, slot: Slot) -> None:
        """Take in a worker that has been seen."""
        self._slots.append(slot)

    def remove(self, slot: Slot) -> None:
        """Let go of a worker that is gone, and of all that was known of it."""
        self._slots.remove(slot)

    def in_flight(self) -> int:
        """Requests on workers that are not draining."""
        return sum(slot.in_flight for slot in self._slots if not slot.draining)

    def take(self, ceiling: int, avoid: frozenset[str], prefix: bytes, among: list[Slot] | None = None) -> Slot | None:
        """The slot for a request, counted as given; None while no worker can have it. `among`: one of these.

        A lone worker is taken without a look at the prompt; what it reads is remembered once there is a second one,
        ready or not.
        """
        slots = self._slots if among is None else among
        if len(slots) == 1:
            slot = slots[0]
            if slot.in_flight >= ceiling or not slot.serves() or slot.incarnation in avoid:
                return None
        else:
            ready = [slot for slot in slots if slot.serves()]
            able = [slot for slot in ready if slot.in_flight < ceiling and slot.incarnation not in avoid]
            if not able:
                return None
            slot = self._choose(able, ready, prefix)
        slot.in_flight += 1
        return slot

    def _choose(self, able: list[Slot], ready: list[Slot], prefix: bytes) -> Slot:
        now = self._clock()
        if now >= self._window_ends:
            self._turn_window(now)
        trail = Trail(prefix)
        slot = choose(able, ready, trail)
        slot.given += 1
        slot.given_now += 1
        points = trail.points()
        if points:
            slot.memory.remember(points)
        return slot

    def _turn_window(self, now: float) -> None:
        """Begin another window; of those before, the last one still counts."""
        stale = now >= self._window_ends + WINDOW_SECONDS
        for slot in self._slots:
            slot.given = 0 if stale else slot.given_now
            slot.given_now = 0
        self._window_ends = now + WINDOW_SECONDS


def awake_at(worker: ObservedWorker) -> float | None:
    """When a worker that wakes should be ready, by how long its last wake took; None for others."""
    seconds = worker.sleep.wake_seconds if worker.sleep is not None else None
    return worker.since + seconds if worker.state is WorkerState.WAKING and seconds is not None else None


def incarnation(worker: ObservedWorker) -> str:
    """A name for one life of a worker: it keeps its id when it starts again."""
    return f"{worker.spec.id}@{worker.since}"
