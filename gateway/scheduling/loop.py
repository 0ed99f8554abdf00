"""The loop that runs the planner whenever something changes, and keeps gateway and manager of one mind.

Two tasks: one watches the manager by long poll, the other plans and sends the desired set. Either survives the other
side's death: the desired set is whole, so sending it again repairs everything.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import msgspec
import structlog

from gateway.errors import ManagerUnavailable, sentences
from gateway.manager import ManagerClient, ManagerRefused
from gateway.memory.host import HOST_MARGIN_MIB, cards
from gateway.scheduling.adapters import AdapterNews
from gateway.scheduling.continuity import Continuity
from gateway.scheduling.demand import Demand
from gateway.scheduling.generations import is_current
from gateway.scheduling.orders import Orders
from gateway.scheduling.patience import Patience
from gateway.scheduling.planner import plan
from gateway.scheduling.reasons import Reasons
from gateway.scheduling.sleep_failures import SleepFailures
from gateway.scheduling.types import HOST_MEMORY, KnownWorker, Plan, Situation, WantedEndpoint
from worker_manager.contract import (
    Adapter,
    DesiredSet,
    HostFacts,
    ObservedSet,
    ObservedWorker,
    Residency,
    WorkerSpec,
    WorkerState,
)

log = structlog.get_logger(__name__)

POLL_SECONDS = 20.0
RETRY_SECONDS = 0.5
BREATH_SECONDS = 0.02
"""Between two plans, so that a burst of requests is planned for once."""
TICK_SECONDS = 1.0
"""The longest time between two looks, so that nothing depends on a single event arriving."""


class Catalogue(Protocol):
    """What the scheduler has to know of the endpoints."""

    async def look(self) -> None:
        """Look at what `wanted` depends on and takes long to find out, beside the event loop."""
        ...

    def wanted(self, host: HostFacts) -> tuple[WantedEndpoint, ...]:
        """Every endpoint with its template, sized for this machine; demand is filled in by the scheduler."""
        ...

    def host_promises(self, host: HostFacts) -> dict[str, int]:
        """MiB of host memory by model path, for workers on the CPUs."""
        ...


class Trials(Protocol):
    """Watches the workers of changes (`gateway.trials`)."""

    def look(self, observed: ObservedSet, wanted: Iterable[WantedEndpoint]) -> frozenset[str]:
        """The workers that must not be sent requests yet, whatever the manager says."""
        ...


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the machine is never used, or used for sleepers; MiB."""

    gpu_margin_mib: int
    sleep_memory_mib: int | None = None
    """Host memory for sleepers; None: half of the machine's."""

    def sleep_budget_mib(self, host: HostFacts) -> int:
        """Host memory that all sleepers together may take."""
        return host.memory_total_mib // 2 if self.sleep_memory_mib is None else self.sleep_memory_mib


class Scheduler:
    """Owns the desired set and the last observed one."""

    def __init__(
        self,
        manager: ManagerClient,
        demand: Demand,
        catalogue: Catalogue,
        failures: SleepFailures,
        trials: Trials,
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._manager = manager
        self._demand = demand
        self._catalogue = catalogue
        self._failures = failures
        self._trials = trials
        self._on_trial: frozenset[str] = frozenset()
        self._limits = limits
        self._clock = clock
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._orders = Orders(clock, lambda generation: self.overruled(generation))  # noqa: PLW0108 - it is set later
        self._patience = Patience()
        self._continuity = Continuity()
        self._draining: frozenset[str] = frozenset()
        self._shown: dict[str, str] = {}
        self.observed: ObservedSet | None = None
        self.connected = False
        self._problem = ""
        self.last_plan: Plan | None = None
        self.reasons = Reasons()
        self.noticed: Callable[[ObservedSet], None] = lambda _observed: None
        """Hears of every observed set."""
        self.planned: Callable[[Situation, Plan], None] = lambda _situation, _plan: None
        """Hears of every plan, and of what it was made from."""
        self.overruled: Callable[[int], None] = lambda _generation: None
        """Hears of a desired set that the manager took from somebody else, before the own one is sent again."""
        demand.changed = self._wake.set

    def start(self) -> None:
        """Begin to watch and to plan."""
        self._tasks = [asyncio.create_task(self._watch(), name="watch"), asyncio.create_task(self._run(), name="plan")]

    async def stop(self) -> None:
        """Stop planning; engines live on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def look_again(self) -> None:
        """Something the planner reads has changed."""
        self._wake.set()

    def host(self) -> HostFacts:
        """What the machine has. Raises ManagerUnavailable while the manager has never been seen."""
        if self.observed is None:
            unheard = (
                "the worker manager has not answered since the gateway's start: is it running? See `docker compose ps` "
                "or run/logs/worker_manager.log"
            )
            raise ManagerUnavailable(
                sentences("nothing is known of this machine yet", self._problem or unheard), retry_after=5
            )
        return self.observed.host

    def traffic(self, worker_id: str) -> dict[str, object]:
        """What the gateway knows of a worker beside what the manager sees."""
        slot, why = self._demand.slots.get(worker_id), self.reasons.of(worker_id)
        return {
            "in_flight": slot.in_flight if slot else 0,
            "draining": worker_id in self._draining or self._orders.is_dismissed(worker_id),
            "on_trial": worker_id in self._on_trial,
            "why": msgspec.to_builtins(why) if why is not None else None,
        }

    def why_no_sleep(self, spec: WorkerSpec) -> str:
        """What failed when a worker like this slept, or was to; empty where nothing is remembered."""
        return self._failures.reason(spec, self.observed.host) if self.observed is not None else ""

    # watching the manager

    async def _watch(self) -> None:
        while True:
            wait = await self._guarded("watching failed", self._follow())
            await asyncio.sleep(wait)

    async def _guarded(self, failed: str, work: Awaitable[float]) -> float:
        """The root of both tasks: seconds to wait until the next try."""
        try:
            return await work
        except Exception:  # a bug in one look or one plan must not end all watching or planning
            log.exception(failed)
            return TICK_SECONDS

    async def _follow(self) -> float:
        """Follow the manager for ever; returns by an exception only."""
        after = 0
        while True:
            try:
                observed = await self._manager.observed(after, POLL_SECONDS)
            except (ManagerUnavailable, ManagerRefused, ValueError) as problem:
                self._lost(problem)
                after = 0
                await asyncio.sleep(RETRY_SECONDS)
                continue
            after = observed.version
            await self._catalogue.look()
            self._take(observed)
            await self._failures.learn(observed.workers, observed.host)

    def _lost(self, problem: Exception) -> None:
        """Note that the manager can't be spoken with; each cause is logged once, not at every try."""
        if str(problem) != self._problem:
            log.warning("worker manager out of reach", problem=str(problem))
        self._problem = str(problem)
        if self.connected:
            self.connected = False
            self._wake.set()  # whoever hears of plans is to hear of this, however soon the manager is back

    def _take(self, observed: ObservedSet) -> None:
        if not self.connected:
            log.info("worker manager found", manager=observed.manager, workers=len(observed.workers))
        self.connected, self._problem = True, ""
        observed = self.observed = self._continuity.carry(observed)
        self._hold_back(observed, self._catalogue.wanted(observed.host))
        self._demand.set_workers(observed.workers)
        self.noticed(observed)
        self._show(observed)
        self._wake.set()

    def _hold_back(self, observed: ObservedSet, wanted: tuple[WantedEndpoint, ...]) -> None:
        """Keep requests from workers on trial; before the demand sees them ready, or it would send some."""
        self._on_trial = self._trials.look(observed, wanted)
        self._demand.set_on_trial(self._on_trial)

    def _show(self, observed: ObservedSet) -> None:
        states = {worker.spec.id: worker.state.value for worker in observed.workers}
        for worker in observed.workers:
            if self._shown.get(worker.spec.id) != worker.state:
                log.info(
                    "worker",
                    worker=worker.spec.id,
                    endpoint=worker.spec.endpoint,
                    state=worker.state.value,
                    reason=worker.reason or None,
                    failure=worker.failure.kind.value if worker.failure else None,
                )
        for gone in self._shown.keys() - states.keys():
            log.info("worker", worker=gone, state="gone")
        self._shown = states

    # planning

    async def _run(self) -> None:
        while True:
            wait = await self._guarded("planning failed", self._step())
            await asyncio.sleep(min(wait, BREATH_SECONDS))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()

    async def _step(self) -> float:
        self._wake.clear()
        await self._catalogue.look()
        self._demand.tick()
        if self.observed is None:
            return TICK_SECONDS
        wanted = self._catalogue.wanted(self.observed.host)
        self._hold_back(self.observed, wanted)
        situation = self._situation(self.observed, wanted)
        self._demand.set_unfit({endpoint.name: endpoint.unfit for endpoint in situation.endpoints if endpoint.unfit})
        self._demand.set_adapters(news_of(situation.endpoints))
        decided = plan(situation)
        self.last_plan = decided
        self.reasons.note(situation.now, decided, (worker.spec.id for worker in situation.workers))
        self.planned(situation, decided)
        self._draining = decided.draining
        self._orders.dismiss(decided.desired, self.observed)
        withheld = self._orders.withheld(self.observed)
        self._demand.set_draining(decided.draining | decided.residencies.keys() | withheld)
        self._demand.set_pardoned(pardoned(situation, decided))
        try:
            await self._send(decided, situation, self.observed)
        except ManagerUnavailable as problem:
            self._lost(problem)
            return RETRY_SECONDS
        except ManagerRefused as problem:
            log.warning("desired set refused", problem=str(problem), status=problem.status)
            return TICK_SECONDS
        if decided.wake_at is None:
            return TICK_SECONDS
        return min(TICK_SECONDS, max(0.01, decided.wake_at - self._clock()))

    def situation(self, observed: ObservedSet) -> Situation:
        """Everything the planner may know, this instant."""
        return self._situation(observed, self._catalogue.wanted(observed.host))

    def _situation(self, observed: ObservedSet, wanted: tuple[WantedEndpoint, ...]) -> Situation:
        now, host = self._clock(), observed.host
        workers = tuple(self._known(observed))
        endpoints = [self._with_demand(endpoint) for endpoint in wanted]
        unserved = self._patience.look(now, endpoints, workers)
        return Situation(
            now=now,
            endpoints=tuple(
                msgspec.structs.replace(endpoint, unserved_since=unserved.get(endpoint.name)) for endpoint in endpoints
            ),
            workers=workers,
            cards=cards(host, self._limits.gpu_margin_mib, HOST_MEMORY),
            host_promises=self._catalogue.host_promises(host),
            sleep_memory_mib=self._limits.sleep_budget_mib(host),
            host_available_mib=max(0, host.memory_available_mib - HOST_MARGIN_MIB),
        )

    def _with_demand(self, endpoint: WantedEndpoint) -> WantedEndpoint:
        queue = self._demand.queues.get(endpoint.name)
        if queue is None:
            return endpoint
        return msgspec.structs.replace(
            endpoint,
            stopped=queue.stopped,
            in_flight=self._demand.in_flight(endpoint.name),
            waiting=len(queue.waiters),
            waiting_since=queue.waiters.oldest_since(),
            warm_until=queue.warm_until,
            ordered_at=queue.ordered_at,
            load_seconds=queue.last_load_seconds,
        )

    def _known(self, observed: ObservedSet) -> list[KnownWorker]:
        known = [self._seen(worker, observed.host) for worker in observed.workers]
        now = self._clock()
        # asked for and not yet seen: it holds its promise already
        known += [
            KnownWorker(spec=spec, state=WorkerState.WAITING, since=now, last_used=now)
            for spec in self._orders.unseen(observed)
        ]
        return known

    def _seen(self, worker: ObservedWorker, host: HostFacts) -> KnownWorker:
        slot = self._demand.slots.get(worker.spec.id)
        asked, asked_at = self._orders.asked(worker)
        if worker.state is not WorkerState.STOPPING and self._orders.is_dismissed(worker.spec.id):
            # what it holds was measured before it knew, so its promise counts
            worker = msgspec.structs.replace(worker, state=WorkerState.STOPPING, memory_mib=None)
        may_sleep = worker.can_sleep and not self._failures.reason(worker.spec, host)
        may_sleep_deep = worker.can_sleep_deep and not self._failures.reason(worker.spec, host, Residency.ASLEEP_2)
        return KnownWorker(
            spec=worker.spec,
            state=worker.state,
            since=worker.since,
            in_flight=slot.in_flight if slot else 0,
            last_used=slot.last_used if slot else worker.since,
            draining=worker.spec.id in self._draining,
            on_trial=worker.spec.id in self._on_trial,
            asked=asked,
            asked_at=asked_at,
            can_sleep=may_sleep,
            can_sleep_deep=may_sleep and may_sleep_deep,
            memory_mib=worker.memory_mib,
            sleep=worker.sleep,
        )

    def _wanted(self, decided: Plan, situation: Situation, host: HostFacts) -> DesiredSet:
        """The plan as the manager is told it, not numbered yet."""
        why = {spec.id: self._failures.reason(spec, host) for spec in decided.desired}
        return DesiredSet(
            generation=1,
            workers=decided.desired,
            residencies=decided.residencies,
            sleepless={worker: reason for worker, reason in why.items() if reason},
            soon=decided.soon,
            adapters=adapters_of(decided.desired, situation.endpoints),
        )

    async def _send(self, decided: Plan, situation: Situation, observed: ObservedSet) -> None:
        """Send the desired set if it differs from what this very manager has taken."""
        fresh = self._orders.next(self._wanted(decided, situation, observed.host), observed)
        if fresh is not None:
            accepted = await self._manager.set_desired(fresh)
            self._orders.taken(fresh, accepted.manager)


def pardoned(situation: Situation, decided: Plan) -> frozenset[str]:
    """Workers whose failure ends no hope: those of changes on trial, and those that are on their way out."""
    tried = {endpoint.name: endpoint for endpoint in situation.endpoints if endpoint.on_trial}
    ids = {spec.id for spec in decided.desired if spec.endpoint in tried and is_current(tried[spec.endpoint], spec)}
    staying = {spec.id for spec in decided.desired} - decided.draining
    return frozenset(ids | {worker.spec.id for worker in situation.workers if worker.spec.id not in staying})


def news_of(endpoints: Iterable[WantedEndpoint]) -> dict[str, AdapterNews]:
    """What requests have to know of each endpoint's LoRA adapters."""
    return {
        endpoint.name: AdapterNews({one.name: one.revision for one in endpoint.adapters}, endpoint.adapter_problems)
        for endpoint in endpoints
        if endpoint.adapters or endpoint.adapter_problems
    }


def adapters_of(workers: Iterable[WorkerSpec], endpoints: Iterable[WantedEndpoint]) -> dict[str, tuple[Adapter, ...]]:
    """The LoRA adapters that each worker should have: those of its endpoint that fit the room it was started with."""
    wanted = {endpoint.name: endpoint.adapters for endpoint in endpoints if endpoint.adapters}
    found: dict[str, tuple[Adapter, ...]] = {}
    for spec in workers:
        room = spec.lora
        if room is not None and spec.endpoint in wanted:
            fitting = tuple(one for one in wanted[spec.endpoint] if one.rank <= room.max_rank)
            if fitting:
                found[spec.id] = fitting
    return found
