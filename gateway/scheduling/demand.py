"""Demand: what is asked of each endpoint this instant, and the leases that hand its workers to requests.

One owner of all counts. A request asks for a lease; it gets the worker of its endpoint that suits it best
(`balance`), or waits in the endpoint's queue (`queue`). Every lease that is given comes back, whatever happens to the
request, because whoever asks for one gives it back in a `finally`.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from gateway.errors import EndpointFailed, GatewayError, NoWorker, TooManyRequests, sentences
from gateway.scheduling.adapters import AdapterNews, Adapters, prefix_of, with_adapter
from gateway.scheduling.queue import Queue, Waiter
from gateway.scheduling.slots import Lease, Slot, Team, awake_at, incarnation
from gateway.scheduling.types import RETRY_FAILED_SECONDS
from gateway.types import Wish
from worker_manager.contract import Failure, ObservedWorker, WorkerState

DEFAULT_RETRY_SECONDS = 30.0
NOBODY: frozenset[str] = frozenset()
ANY = Wish()


class Demand:
    """All queues and slots. Runs in one event loop; nothing here awaits while counts are in between."""

    def __init__(self, engines: Path, max_waiting: int, clock: Callable[[], float] = time.time) -> None:
        self._engines = engines
        self._max_waiting = max_waiting
        self._clock = clock
        self.queues: dict[str, Queue] = {}
        self.slots: dict[str, Slot] = {}
        self._teams: dict[str, Team] = {}
        """The same slots, by endpoint."""
        self._waiting = 0
        """Waiters in all queues."""
        self._failures: dict[str, tuple[Failure, float]] = {}
        self._unfit: dict[str, str] = {}
        self._adapters = Adapters()
        self._on_trial = NOBODY
        self._pardoned = NOBODY
        self.changed: Callable[[], None] = lambda: None
        """Called when the planner should look again."""
        self.unreachable: Callable[[Slot], None] = lambda _: None
        """Called with a worker that did not take a connection: whoever probes it says `mark_reachable`."""
        self.loaded: Callable[[str, float], None] = lambda _endpoint, _seconds: None
        """Called with an endpoint and how long its worker took to load."""

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
            self._forget(self.slots.pop(worker_id))
        self._tell_the_hopeless(now)
        self._tell_of_adapters()
        self._grant_everywhere()
        return gone

    def _set_worker(self, worker: ObservedWorker, now: float) -> None:
        slot = self.slots.get(worker.spec.id)
        if slot is None:
            slot = self.slots[worker.spec.id] = Slot(worker, self._engines / worker.socket, now)
            slot.on_trial = slot.id in self._on_trial
            self._teams.setdefault(slot.endpoint, Team(self._clock)).add(slot)
        queue = self.queues.get(slot.endpoint)
        if worker.state is WorkerState.READY and (slot.state, slot.incarnation) != (worker.state, incarnation(worker)):
            slot.begin_anew(incarnation(worker), now)
            if queue is not None and slot.loading_since is not None:
                queue.last_load_seconds = now - slot.loading_since
                self.loaded(slot.endpoint, queue.last_load_seconds)
        loads = worker.state in (WorkerState.CREATING, WorkerState.LOADING)
        slot.loading_since = (slot.loading_since or worker.since) if loads else None
        slot.awake_at = awake_at(worker)
        slot.state = worker.state
        slot.note_adapters(worker)
        if worker.failure is not None and _is_hopeless(worker) and slot.id not in self._pardoned:
            self._failures[slot.endpoint] = (worker.failure, worker.since)

    def _forget(self, slot: Slot) -> None:
        team = self._teams[slot.endpoint]
        team.remove(slot)
        if not any(team):
            del self._teams[slot.endpoint]

    def _team(self, endpoint: str) -> Iterable[Slot]:
        return self._teams.get(endpoint, ())

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

    def set_adapters(self, news: dict[str, AdapterNews]) -> None:
        """Take over what the adapters of all endpoints should be; whoever waits for one in vain is told so."""
        self._adapters.set(news)
        self._tell_of_adapters()
        self._grant_everywhere()

    def _tell_of_adapters(self) -> None:
        for name, queue in self.queues.items() if self._waiting else ():
            for waiter, error in self._adapters.in_vain(name, queue.waiters, self._team(name)):
                self._refuse(waiter, error)

    def _failed(self, endpoint: str) -> tuple[Failure, float] | None:
        """The failure that requests are refused with, and its time; None if a start was ordered since."""
        failed, queue = self._failures.get(endpoint), self.queues.get(endpoint)
        if failed is not None and queue is not None and queue.ordered_at is not None and failed[1] <= queue.ordered_at:
            return None
        return failed

    def _has_other_hope(self, endpoint: str) -> bool:
        hopeless = (WorkerState.FAILED, WorkerState.BACKOFF)
        return any(slot.state not in hopeless or slot.id in self._pardoned for slot in self._team(endpoint))

    def set_draining(self, draining: frozenset[str]) -> None:
        """Give no more leases on these workers."""
        for slot in self.slots.values():
            slot.draining = slot.id in draining
        self._grant_everywhere()

    def set_on_trial(self, on_trial: frozenset[str]) -> None:
        """Give no lease on these workers, seen or not yet, until they have shown that they answer."""
        self._on_trial = on_trial
        for slot in self.slots.values():
            if slot.on_trial and slot.id not in on_trial:
                slot.end_trial(self._clock())
            slot.on_trial = slot.id in on_trial
        self._grant_everywhere()

    def set_pardoned(self, pardoned: frozenset[str]) -> None:
        """Failures of these workers are no reason to refuse requests: others take their place."""
        self._pardoned = pardoned
        for name in {slot.endpoint for slot in self.slots.values() if slot.id in pardoned}:
            self._failures.pop(name, None)

    def is_warm(self, endpoint: str) -> bool:
        """Whether a worker of it is awake."""
        return any(slot.state is WorkerState.READY for slot in self._team(endpoint))

    def mark_unreachable(self, worker_id: str) -> None:
        """Take a worker that did not accept a connection out of rotation, until a probe gets through or it restarts."""
        slot = self.slots.get(worker_id)
        if slot is not None and slot.reachable:
            slot.reachable = False
            self.unreachable(slot)
            self.changed()

    def is_unreachable(self, worker_id: str) -> bool:
        """Whether the worker is there and out of rotation."""
        slot = self.slots.get(worker_id)
        return slot is not None and not slot.reachable

    def mark_reachable(self, worker_id: str) -> None:
        """A probe has got through: requests may go there again."""
        slot = self.slots.get(worker_id)
        if slot is not None:
            slot.reachable = True
            self._grant_everywhere()

    def set_unfit(self, reasons: dict[str, str]) -> None:
        """Endpoints no worker of which can start on this machine, and why: nobody waits for them."""
        self._unfit = reasons
        for name in reasons:
            queue = self.queues.get(name)
            if queue is not None and not self._has_other_hope(name):
                self._refuse_all(queue, self._cannot_start(name))

    def _cannot_start(self, endpoint: str) -> EndpointFailed:
        return EndpointFailed(
            f"The endpoint '{endpoint}' cannot be served: {self._unfit[endpoint]}", retry_after=DEFAULT_RETRY_SECONDS
        )

    def tick(self) -> None:
        """Look again at what time alone may have changed."""
        self._grant_everywhere()

    # what requests want

    def in_flight(self, endpoint: str) -> int:
        """Requests on workers of this endpoint that are not draining."""
        team = self._teams.get(endpoint)
        return team.in_flight() if team is not None else 0

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

    def try_acquire(self, endpoint: str, avoid: frozenset[str] = NOBODY, wish: Wish = ANY) -> Lease | None:
        """A lease if a worker is free this instant and nobody waits before us who could have it."""
        queue = self.queues.get(endpoint)
        if queue is None:
            return None
        if self._waiting:
            now = self._clock()
            if not all(waiter.wish.adapter or waiter.avoided(now) for waiter in queue.waiters):
                return None
        slot = self._take(endpoint, queue, avoid, wish)
        return slot.at_once if slot is not None else None

    def acquire_worker(self, worker_id: str) -> Lease | None:
        """A lease on this very worker if it is ready, drained or not: it alone holds what is asked for."""
        slot = self.slots.get(worker_id)
        if slot is None or slot.state is not WorkerState.READY:
            return None
        slot.in_flight += 1
        return slot.at_once

    async def acquire(self, endpoint: str, seconds: float, avoid: frozenset[str] = NOBODY, wish: Wish = ANY) -> Lease:
        """A lease on a worker of this endpoint, after waiting at most so many seconds; give it back with `release`.

        Raises EndpointFailed where waiting is in vain, TooManyRequests where the queue is full, NoWorker when the
        time is up.
        """
        queue = self.queues.get(endpoint)
        if queue is None:
            raise NoWorker(f"The endpoint '{endpoint}' was deleted", retry_after=60)
        lease = self.try_acquire(endpoint, avoid, wish)
        if lease is not None:
            return lease
        self._admit(endpoint, queue, wish.adapter)
        waiter = Waiter(asyncio.get_running_loop().create_future(), self._clock(), wish, avoid)
        return await self._wait(endpoint, queue, seconds, waiter)

    def _admit(self, endpoint: str, queue: Queue, adapter: str) -> None:
        if len(queue.waiters) >= self._max_waiting:
            raise TooManyRequests(
                f"{len(queue.waiters)} requests wait for '{endpoint}' already (HOSTLER_MAX_WAITING): try again later",
                retry_after=self.retry_after(endpoint),
            )
        if endpoint in self._unfit and not self._has_other_hope(endpoint):
            raise self._cannot_start(endpoint)
        refusal = self._adapters.refusal(endpoint, adapter, self._team(endpoint)) if adapter else None
        if refusal is not None:
            raise refusal
        failed = self._failed(endpoint)
        if failed is not None and not self._has_other_hope(endpoint):
            now = self._clock()
            if now - failed[1] < RETRY_FAILED_SECONDS:
                raise endpoint_failed(endpoint, failed[0], failed[1], now)

    async def _wait(self, endpoint: str, queue: Queue, seconds: float, waiter: Waiter) -> Lease:
        queue.waiters.add(waiter)
        self._waiting += 1
        queue.stopped = False
        self.changed()
        try:
            async with asyncio.timeout(seconds):
                slot = await waiter.granted
        except TimeoutError:
            self._take_back(waiter)
            raise NoWorker(
                f"No worker of '{endpoint}'{with_adapter(waiter.wish.adapter)} was ready within {seconds:.0f} s: "
                f"try again later, or see GET /api/endpoints/{endpoint} for what it is doing",
                retry_after=self.retry_after(endpoint),
            ) from None
        except asyncio.CancelledError:
            self._take_back(waiter)
            raise
        finally:
            self._leave(queue, waiter)
            self.changed()
        waited = self._clock() - waiter.since
        return Lease(slot, waited, min(waited, max(0.0, slot.ready_at - waiter.since)))

    def _leave(self, queue: Queue, waiter: Waiter) -> None:
        if queue.waiters.discard(waiter):
            self._waiting -= 1

    def _take_back(self, waiter: Waiter) -> None:
        """A slot that was granted in the very moment the waiter gave up goes to the next one."""
        if waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.exception() is None:
            self.release(waiter.granted.result().at_once)

    def release(self, lease: Lease) -> None:
        """Take a lease back."""
        slot = lease.slot
        slot.in_flight -= 1
        slot.last_used = self._clock()
        if self._waiting and (queue := self.queues.get(slot.endpoint)) is not None and queue.waiters:
            self._grant(slot.endpoint, queue)
        # an idle worker matters to the planner at once only where somebody waits for its place
        if slot.in_flight == 0 and (slot.draining or self._waiting):
            self.changed()

    def _take(self, endpoint: str, queue: Queue, avoid: frozenset[str], wish: Wish) -> Slot | None:
        team = self._teams.get(endpoint)
        if team is None:
            return None
        if wish.adapter:
            holders = self._adapters.holders(endpoint, wish.adapter, team)
            return team.take(queue.per_worker, avoid, prefix_of(wish), holders)
        return team.take(queue.per_worker, avoid, wish.prefix)

    def _grant_everywhere(self) -> None:
        if self._waiting:
            for name, queue in self.queues.items():
                if queue.waiters:
                    self._grant(name, queue)

    def _grant(self, endpoint: str, queue: Queue) -> None:
        now = self._clock()
        served: list[Waiter] = []
        for waiter in queue.waiters.in_order(now):
            if waiter.granted.done():
                continue  # refused or cancelled, and about to leave
            avoid = waiter.avoided(now)
            slot = self._take(endpoint, queue, avoid, waiter.wish)
            if slot is not None:
                waiter.granted.set_result(slot)
                served.append(waiter)
            elif not avoid and not waiter.wish.adapter:
                break
            # else those behind it are not as choosy
        for waiter in served:
            self._leave(queue, waiter)

    def _refuse_all(self, queue: Queue, error: GatewayError) -> None:
        for waiter in queue.waiters:
            self._refuse(waiter, error)

    def _refuse(self, waiter: Waiter, error: GatewayError) -> None:
        if not waiter.granted.done():
            waiter.granted.set_exception(error)

    def learn_load(self, endpoint: str, seconds: float) -> None:
        """Take over how long a worker of this endpoint took to load the last time."""
        queue = self.queues.get(endpoint)
        if queue is not None and queue.last_load_seconds is None:
            queue.last_load_seconds = seconds

    def eta_seconds(self, endpoint: str) -> float | None:
        """Seconds until a worker that loads or wakes should be ready; None where none does, or nothing was learned."""
        queue, now = self.queues.get(endpoint), self._clock()
        learned = queue.last_load_seconds if queue is not None else None
        due = [slot.awake_at for slot in self._team(endpoint) if slot.awake_at is not None]
        if learned is not None:
            due += [slot.loading_since + learned for slot in self._team(endpoint) if slot.loading_since is not None]
        return max(1.0, min(due) - now) if due else None

    def retry_after(self, endpoint: str) -> float:
        """Seconds after which trying again makes sense: until a worker is ready, else what the last load took."""
        queue = self.queues.get(endpoint)
        learned = queue.last_load_seconds if queue is not None else None
        return self.eta_seconds(endpoint) or learned or DEFAULT_RETRY_SECONDS


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
