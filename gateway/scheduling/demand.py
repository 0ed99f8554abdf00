"""Demand: what is asked of each endpoint this instant, and the leases that hand its workers to requests.

One owner of all counts. A request asks for a lease; it gets the ready worker of its endpoint with the fewest requests
in flight, or waits in the endpoint's queue, oldest first. Every lease that is given comes back, whatever happens to
the request, because whoever asks for one gives it back in a `finally`.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from gateway.errors import EndpointFailed, GatewayError, NoWorker, TooManyRequests, sentences
from gateway.scheduling.types import RETRY_FAILED_SECONDS
from worker_manager.contract import Failure, ObservedWorker, WorkerState


class Slot:
    """A worker as requests see it: where it listens and how many it is serving."""

    def __init__(self, worker: ObservedWorker, socket: Path, now: float) -> None:
        self.id = worker.spec.id
        self.endpoint = worker.spec.endpoint
        self.incarnation = _incarnation(worker)
        self.socket = socket
        self.state = worker.state
        self.draining = False
        self.unreachable_until = 0.0
        self.in_flight = 0
        self.last_used = now
        self.loading_since: float | None = None

    def takes_requests(self, ceiling: int, now: float) -> bool:
        """Whether a request may be sent there now."""
        serving = self.state is WorkerState.READY and not self.draining
        return serving and self.in_flight < ceiling and self.unreachable_until <= now


class Lease:
    """The right to send one request to one worker; `Demand.release` takes it back."""

    def __init__(self, slot: Slot, waited: float) -> None:
        self.slot = slot
        self.waited = waited
        """Seconds the request waited for it."""


class Waiter(msgspec.Struct):
    """A request in an endpoint's queue."""

    granted: asyncio.Future[Slot]
    since: float
    avoid: frozenset[str] = frozenset()
    """Incarnations of workers that have failed this request just now."""

    def avoided(self, now: float) -> frozenset[str]:
        """Whom to avoid still: a worker that lives on after all may be asked once more after a moment."""
        return self.avoid if now - self.since < UNREACHABLE_SECONDS else frozenset()


class Queue(msgspec.Struct):
    """An endpoint as requests see it."""

    per_worker: int
    waiters: deque[Waiter] = msgspec.field(default_factory=deque)
    warm_until: float | None = None
    ordered_at: float | None = None
    """When somebody last asked for a start; failures before that no longer count."""
    stopped: bool = False
    """Somebody asked for its workers to go; the next request that waits ends that."""
    last_load_seconds: float | None = None
    """How long its last worker took to become ready: what Retry-After and ETA are made of."""


class Demand:
    """All queues and slots. Runs in one event loop; nothing here awaits while counts are in between."""

    def __init__(self, engines: Path, max_waiting: int, clock: Callable[[], float] = time.time) -> None:
        self._engines = engines
        self._max_waiting = max_waiting
        self._clock = clock
        self.queues: dict[str, Queue] = {}
        self.slots: dict[str, Slot] = {}
        self._failures: dict[str, tuple[Failure, float]] = {}
        self.changed: Callable[[], None] = lambda: None
        """Called when the planner should look again."""

    # what the endpoints are

    def set_endpoints(self, per_worker: dict[str, int]) -> None:
        """Take over the endpoints and their ceilings; waiters of one that is gone are told so."""
        for name in list(self.queues):
            if name not in per_worker:
                self._refuse_all(self.queues.pop(name), NoWorker(f"The endpoint '{name}' was deleted", retry_after=60))
        for name, ceiling in per_worker.items():
            self.queues.setdefault(name, Queue(per_worker=ceiling)).per_worker = ceiling
        self._grant_everywhere()

    # what the workers are

    def set_workers(self, workers: Iterable[ObservedWorker]) -> list[str]:
        """Take over what the manager sees. Returns the ids of workers that are gone."""
        now = self._clock()
        seen: set[str] = set()
        self._failures = {}
        for worker in workers:
            seen.add(worker.spec.id)
            self._set_worker(worker, now)
        gone = [worker_id for worker_id in self.slots if worker_id not in seen]
        for worker_id in gone:
            del self.slots[worker_id]
        self._tell_the_hopeless(now)
        self._grant_everywhere()
        return gone

    def _set_worker(self, worker: ObservedWorker, now: float) -> None:
        slot = self.slots.get(worker.spec.id)
        if slot is None:
            socket = self._engines / worker.socket
            slot = self.slots[worker.spec.id] = Slot(worker, socket, now)
        queue = self.queues.get(slot.endpoint)
        if worker.state is WorkerState.READY and (slot.state, slot.incarnation) != (worker.state, _incarnation(worker)):
            slot.unreachable_until = 0.0
            slot.incarnation = _incarnation(worker)
            slot.last_used = now
            if queue is not None and slot.loading_since is not None:
                queue.last_load_seconds = now - slot.loading_since
        loads = worker.state in (WorkerState.CREATING, WorkerState.LOADING)
        slot.loading_since = (slot.loading_since or worker.since) if loads else None
        slot.state = worker.state
        if worker.failure is not None and _is_hopeless(worker):
            self._failures[slot.endpoint] = (worker.failure, worker.since)

    def _tell_the_hopeless(self, now: float) -> None:
        """Waiters of an endpoint whose only worker just failed learn why instead of waiting in vain."""
        for name, queue in self.queues.items():
            failed = self._failed(name)
            if failed is not None and queue.waiters and not self._has_other_hope(name):
                failure, since = failed
                too_old = [
                    waiter for waiter in queue.waiters if waiter.since <= since or now - since < RETRY_FAILED_SECONDS
                ]
                for waiter in too_old:
                    self._refuse(waiter, endpoint_failed(name, failure, since, now))

    def _failed(self, endpoint: str) -> tuple[Failure, float] | None:
        """The failure that requests are refused with, and its time; None if a start was ordered since."""
        failed, queue = self._failures.get(endpoint), self.queues.get(endpoint)
        if failed is not None and queue is not None and queue.ordered_at is not None and failed[1] <= queue.ordered_at:
            return None
        return failed

    def _has_other_hope(self, endpoint: str) -> bool:
        hopeless = (WorkerState.FAILED, WorkerState.BACKOFF)
        return any(slot.endpoint == endpoint and slot.state not in hopeless for slot in self.slots.values())

    def set_draining(self, draining: frozenset[str]) -> None:
        """Give no more leases on these workers."""
        for slot in self.slots.values():
            slot.draining = slot.id in draining
        self._grant_everywhere()

    def mark_unreachable(self, worker_id: str) -> None:
        """Take a worker that did not accept a connection out of rotation for a moment.

        If it is dead the manager says so before the moment is over; if it is not, it is tried again.
        """
        slot = self.slots.get(worker_id)
        if slot is not None:
            slot.unreachable_until = self._clock() + UNREACHABLE_SECONDS
            self.changed()

    def tick(self) -> None:
        """Look again at what time alone may have changed."""
        self._grant_everywhere()

    # what requests want

    def in_flight(self, endpoint: str) -> int:
        """Requests on workers of this endpoint that are not draining."""
        return sum(slot.in_flight for slot in self.slots.values() if slot.endpoint == endpoint and not slot.draining)

    def poke(self, endpoint: str, seconds: float) -> None:
        """Want one worker for some seconds even without a request; one that failed gets a new try at once."""
        queue = self.queues.get(endpoint)
        if queue is not None:
            queue.ordered_at = self._clock()
            queue.warm_until, queue.stopped = queue.ordered_at + seconds, False
            self.changed()

    def rest(self, endpoint: str) -> None:
        """Let the endpoint's workers finish and go, unless a request waits."""
        queue = self.queues.get(endpoint)
        if queue is not None:
            queue.warm_until, queue.stopped = None, not queue.waiters
            self.changed()

    def try_acquire(self, endpoint: str, avoid: frozenset[str] = frozenset()) -> Lease | None:
        """A lease if a worker is free this instant and nobody waits before us who could have it."""
        queue = self.queues.get(endpoint)
        if queue is None or any(not waiter.avoid for waiter in queue.waiters):
            return None
        slot = self._pick(endpoint, queue, avoid)
        return self._lease(slot) if slot is not None else None

    def acquire_worker(self, worker_id: str) -> Lease | None:
        """A lease on this very worker if it is ready, drained or not: it alone holds what is asked for."""
        slot = self.slots.get(worker_id)
        return self._lease(slot) if slot is not None and slot.state is WorkerState.READY else None

    async def acquire(self, endpoint: str, seconds: float, avoid: frozenset[str] = frozenset()) -> Lease:
        """A lease on a worker of this endpoint, after waiting at most so many seconds; give it back with `release`.

        Raises EndpointFailed where waiting is in vain, TooManyRequests where the queue is full, NoWorker when the
        time is up.
        """
        queue = self.queues.get(endpoint)
        if queue is None:
            raise NoWorker(f"The endpoint '{endpoint}' was deleted", retry_after=60)
        lease = self.try_acquire(endpoint, avoid)
        if lease is not None:
            return lease
        self._admit(endpoint, queue)
        return await self._wait(endpoint, queue, seconds, avoid)

    def _admit(self, endpoint: str, queue: Queue) -> None:
        if len(queue.waiters) >= self._max_waiting:
            raise TooManyRequests(
                f"{len(queue.waiters)} requests wait for '{endpoint}' already (HOSTLER_MAX_WAITING): try again later",
                retry_after=self.retry_after(endpoint),
            )
        failed = self._failed(endpoint)
        if failed is not None and not self._has_other_hope(endpoint):
            now = self._clock()
            if now - failed[1] < RETRY_FAILED_SECONDS:
                raise endpoint_failed(endpoint, failed[0], failed[1], now)

    async def _wait(self, endpoint: str, queue: Queue, seconds: float, avoid: frozenset[str]) -> Lease:
        waiter = Waiter(asyncio.get_running_loop().create_future(), self._clock(), avoid)
        queue.waiters.append(waiter)
        queue.stopped = False
        self.changed()
        try:
            async with asyncio.timeout(seconds):
                slot = await waiter.granted
        except TimeoutError:
            self._take_back(waiter)
            raise NoWorker(
                f"No worker of '{endpoint}' was ready within {seconds:.0f} s: try again later, or see "
                f"GET /api/endpoints/{endpoint} for what it is doing",
                retry_after=self.retry_after(endpoint),
            ) from None
        except asyncio.CancelledError:
            self._take_back(waiter)
            raise
        finally:
            if waiter in queue.waiters:
                queue.waiters.remove(waiter)
            self.changed()
        return Lease(slot, self._clock() - waiter.since)

    def _take_back(self, waiter: Waiter) -> None:
        """A slot that was granted in the very moment the waiter gave up goes to the next one."""
        if waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.exception() is None:
            self._release_slot(waiter.granted.result())

    def release(self, lease: Lease) -> None:
        """Take a lease back."""
        self._release_slot(lease.slot)

    def _release_slot(self, slot: Slot) -> None:
        slot.in_flight -= 1
        slot.last_used = self._clock()
        queue = self.queues.get(slot.endpoint)
        if queue is not None and queue.waiters:
            self._grant(slot.endpoint, queue)
        # an idle worker matters to the planner at once only where somebody waits for its place
        if slot.in_flight == 0 and (slot.draining or any(other.waiters for other in self.queues.values())):
            self.changed()

    @staticmethod
    def _lease(slot: Slot) -> Lease:
        slot.in_flight += 1
        return Lease(slot, 0.0)

    def _pick(self, endpoint: str, queue: Queue, avoid: frozenset[str]) -> Slot | None:
        now = self._clock()
        best: Slot | None = None
        for slot in self.slots.values():
            if slot.endpoint != endpoint or slot.incarnation in avoid or not slot.takes_requests(queue.per_worker, now):
                continue
            if best is None or slot.in_flight < best.in_flight:
                best = slot
        return best

    def _grant_everywhere(self) -> None:
        for name, queue in self.queues.items():
            if queue.waiters:
                self._grant(name, queue)

    def _grant(self, endpoint: str, queue: Queue) -> None:
        now = self._clock()
        for waiter in list(queue.waiters):
            slot = self._pick(endpoint, queue, waiter.avoided(now))
            if slot is None:
                if waiter.avoid:
                    continue  # those behind it are not as choosy
                return
            queue.waiters.remove(waiter)
            if not waiter.granted.done():
                slot.in_flight += 1
                waiter.granted.set_result(slot)

    def _refuse_all(self, queue: Queue, error: GatewayError) -> None:
        for waiter in queue.waiters:
            self._refuse(waiter, error)

    def _refuse(self, waiter: Waiter, error: GatewayError) -> None:
        if not waiter.granted.done():
            waiter.granted.set_exception(error)

    def eta_seconds(self, endpoint: str) -> float | None:
        """Seconds until a worker that is loading should be ready; None where nothing was learned or nothing loads."""
        queue = self.queues.get(endpoint)
        loads = [slot.loading_since for slot in self.slots.values() if slot.endpoint == endpoint and slot.loading_since]
        if queue is None or queue.last_load_seconds is None or not loads:
            return None
        return max(1.0, queue.last_load_seconds - (self._clock() - min(loads)))

    def retry_after(self, endpoint: str) -> float:
        """Seconds after which trying again makes sense: what is left of the load, else what the last one took."""
        queue = self.queues.get(endpoint)
        learned = queue.last_load_seconds if queue is not None else None
        return self.eta_seconds(endpoint) or learned or DEFAULT_RETRY_SECONDS


UNREACHABLE_SECONDS = 1.0
DEFAULT_RETRY_SECONDS = 30.0


def _incarnation(worker: ObservedWorker) -> str:
    """A name for one life of a worker: it keeps its id when it starts again."""
    return f"{worker.spec.id}@{worker.since}"


def _is_hopeless(worker: ObservedWorker) -> bool:
    """Whether waiting for this worker is in vain: given up, or dead twice and resting ever longer between tries."""
    tried_again = worker.state is WorkerState.BACKOFF and worker.restarts > 1
    return worker.state is WorkerState.FAILED or tried_again


def endpoint_failed(endpoint: str, failure: Failure, since: float, now: float) -> EndpointFailed:
    """The refusal of a request to an endpoint whose worker failed: the diagnosis, and when to try again."""
    return EndpointFailed(
        f"The endpoint '{endpoint}' cannot be served: {sentences(failure.message, failure.hint)}",
        retry_after=max(1.0, RETRY_FAILED_SECONDS - (now - since)),
    )
