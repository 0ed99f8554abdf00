"""The planner: which workers should exist. A pure function of its input: no clock, no randomness, no I/O.

    plan(situation) -> Plan

Rules, in order (the house plan, section "The planner"; sleeping is a later rung):
1. An endpoint wants clamp(ceil((in flight + waiting) / per_worker), min_workers, max_workers) workers; one it has and
   does not need goes only after `idle_seconds` without a request.
2. A worker whose spec is no longer what its endpoint asks for drains and goes; so does one whose endpoint is gone.
3. A new worker goes where its promise fits: on each card, promises plus what other programs hold stay below the
   card's total less the margin. Best fit first, so that large holes stay whole.
4. Where it does not fit, idle workers of other endpoints make room: lowest priority first, then longest unused; never
   one of a higher priority, never one within its minimum residency, never where it would not free enough.
5. A waiter past the starvation bound may have busy workers of its own or lower priority drained for it.
6. Who goes first: higher priority, then who has waited longest.

A draining worker keeps its promise until it has left the observed set: memory is never promised twice.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable

import msgspec

from gateway.scheduling.types import (
    HOST_MEMORY,
    RETRY_FAILED_SECONDS,
    Decision,
    KnownWorker,
    Plan,
    Situation,
    Verb,
    WantedEndpoint,
)
from worker_manager.contract import WorkerSpec, WorkerState, spec_hash

ID_NAME_LENGTH = 24
RESTING = frozenset({WorkerState.READY, WorkerState.WAITING, WorkerState.BACKOFF})
"""States in which a worker may be let go for want of requests. A load is never broken off: its memory is paid for."""


def plan(situation: Situation) -> Plan:
    """Decide. Planning again from the result of a plan that was carried out changes nothing."""
    return _Planner(situation).run()


class _Planner:
    """One run of the planner: the input and what has been decided so far."""

    def __init__(self, situation: Situation) -> None:
        self.now = situation.now
        self.situation = situation
        self.endpoints = {endpoint.name: endpoint for endpoint in situation.endpoints}
        self.kept: dict[str, KnownWorker] = {worker.spec.id: worker for worker in situation.workers}
        self.draining: set[str] = {worker.spec.id for worker in situation.workers if worker.is_leaving()}
        self.reserved: Counter[str] = Counter()
        self.started: list[WorkerSpec] = []
        self.decisions: list[Decision] = []
        self.wake_at: list[float] = []

    def run(self) -> Plan:
        for worker in self.situation.workers:
            self._retire_outdated(worker)
        self._retire_crowded_out()
        for endpoint in self.situation.endpoints:
            self._retire_idle(endpoint)
        for endpoint in sorted(self.situation.endpoints, key=_urgency):
            self._supply(endpoint)
        return self._result()

    def _result(self) -> Plan:
        kept = [worker for worker in self.kept.values() if not self._is_over(worker)]
        desired = [*(worker.spec for worker in kept), *self.started]
        return Plan(
            desired=tuple(sorted(desired, key=lambda spec: spec.id)),
            draining=frozenset(worker.spec.id for worker in kept if worker.spec.id in self.draining),
            decisions=tuple(self.decisions),
            wake_at=min(self.wake_at, default=None),
        )

    def _is_over(self, worker: KnownWorker) -> bool:
        return worker.spec.id in self.draining and worker.in_flight == 0

    # rule 2

    def _retire_outdated(self, worker: KnownWorker) -> None:
        if worker.spec.id in self.draining:
            return
        endpoint = self.endpoints.get(worker.spec.endpoint)
        if endpoint is None:
            self._drain(worker, "its endpoint is gone")
        elif endpoint.stopped:
            self._drain(worker, "its endpoint was stopped")
        elif endpoint.template is not None and not is_same(endpoint.template, worker.spec):
            self._drain(worker, "it is no longer what its endpoint asks for")
        elif self._may_retry(worker, endpoint):
            self._drain(worker, "it failed a while ago and a request waits: try again")
        elif _failed_before_order(worker, endpoint):
            self._drain(worker, "it failed and a start was ordered since: try again")

    def _may_retry(self, worker: KnownWorker, endpoint: WantedEndpoint) -> bool:
        if worker.state is not WorkerState.FAILED or not endpoint.waiting:
            return False
        return self.now - worker.since >= RETRY_FAILED_SECONDS

    def _drain(self, worker: KnownWorker, why: str) -> None:
        self.draining.add(worker.spec.id)
        self._note(Verb.DRAIN, worker.spec.endpoint, worker.spec.id, why)

    def _note(self, verb: Verb, endpoint: str, worker: str | None, why: str) -> None:
        self.decisions.append(Decision(verb=verb, endpoint=endpoint, worker=worker, reason=why))

    def _retire_crowded_out(self) -> None:
        """Take back what has not started and no longer fits, because another program took the memory meanwhile."""
        gone: list[str] = []
        for worker in self.situation.workers:
            if worker.state is not WorkerState.WAITING or worker.spec.id in self.draining:
                continue
            if any(self._free(card, gone) < 0 for card in worker.spec.gpus):
                self._drain(worker, "another program has taken the memory it was to have")
                gone.append(worker.spec.id)

    # rule 1

    def _retire_idle(self, endpoint: WantedEndpoint) -> None:
        wanted = _wanted(endpoint, self.now)
        serving = sorted(self._serving(endpoint.name), key=lambda worker: (worker.last_used, worker.spec.id))
        # one that failed serves nobody: it must not make a healthy one superfluous
        surplus = sum(worker.state is not WorkerState.FAILED for worker in serving) - wanted
        for worker in serving:
            if surplus <= 0:
                return
            idle_at = worker.last_used + endpoint.idle_seconds
            if worker.in_flight or worker.state not in RESTING:
                continue
            if idle_at > self.now:
                self.wake_at.append(idle_at)
                continue
            idle = self.now - worker.last_used
            self._drain(worker, f"no request for {idle:.0f} s, idle_seconds is {endpoint.idle_seconds:.0f}")
            surplus -= 1

    def _serving(self, endpoint: str) -> list[KnownWorker]:
        return [
            worker
            for worker in self.kept.values()
            if worker.spec.endpoint == endpoint and worker.spec.id not in self.draining
        ]

    # rules 3 to 6

    def _supply(self, endpoint: WantedEndpoint) -> None:
        missing = _wanted(endpoint, self.now) - len(self._serving(endpoint.name))
        for _ in range(missing):
            if endpoint.template is None:
                self._note(Verb.WAIT, endpoint.name, None, endpoint.blocked or "its model is not here yet")
                return
            if not self._start(endpoint, endpoint.template):
                return

    def _start(self, endpoint: WantedEndpoint, template: WorkerSpec) -> bool:
        cards = self._place(endpoint)
        if cards is None:
            self._make_room(endpoint)
            return False
        gpus = tuple(card for card in cards if card != HOST_MEMORY)
        promise = self._promise_at(endpoint, cards)
        spec = msgspec.structs.replace(
            template,
            id=self._free_id(template),
            gpus=gpus,
            gpu_memory_mib=promise if gpus else None,
            max_model_len=template.max_model_len or endpoint.max_model_len,
            is_length_chosen=template.max_model_len is None and endpoint.max_model_len is not None,
        )
        self.started.append(spec)
        where = f"on GPU {', '.join(spec.gpus)}" if spec.gpus else "on the CPUs"
        self._note(Verb.START, endpoint.name, spec.id, f"{endpoint.waiting} waiting, {promise} MiB promised {where}")
        return True

    def _promise_at(self, endpoint: WantedEndpoint, cards: list[str]) -> int:
        """MiB for a new worker on each of these cards."""
        free = min(self._free(card) for card in cards)
        if endpoint.whole_card:
            return free
        return max(endpoint.promise_mib, min(free, endpoint.most_mib or 0))

    def _free_id(self, template: WorkerSpec) -> str:
        name = re.sub(r"[^a-z0-9]+", "-", template.endpoint.lower()).strip("-")[:ID_NAME_LENGTH].strip("-") or "worker"
        taken = {*self.kept, *(spec.id for spec in self.started)}
        number = 1
        while f"{name}-{spec_hash(template)[:6]}-{number}" in taken:
            number += 1
        return f"{name}-{spec_hash(template)[:6]}-{number}"

    def _promised(self, card: str, without: Iterable[str] = ()) -> int:
        gone = set(without)
        held = sum(
            self._promise_of(worker.spec)
            for worker in self.kept.values()
            if card in _cards(worker.spec) and worker.spec.id not in gone and worker.holds_memory()
        )
        started = sum(self._promise_of(spec) for spec in self.started if card in _cards(spec))
        return held + started + self.reserved[card]

    def _promise_of(self, spec: WorkerSpec) -> int:
        if spec.gpus:
            return spec.gpu_memory_mib or 0
        return self.situation.host_promises.get(spec.model, self.situation.default_host_promise_mib)

    def _free(self, card: str, without: Iterable[str] = ()) -> int:
        """MiB of a card that are promised to nobody."""
        return self.situation.cards.get(card, 0) - self._promised(card, without)

    def _eligible(self, endpoint: WantedEndpoint) -> list[str]:
        if endpoint.gpus:
            return [card for card in self.situation.cards if card != HOST_MEMORY]
        return [HOST_MEMORY]

    def _place(self, endpoint: WantedEndpoint, without: Iterable[str] = ()) -> list[str] | None:
        gone = tuple(without)
        room = {
            card: self._free(card, gone)
            for card in self._eligible(endpoint)
            if not endpoint.whole_card or self._promised(card, gone) == 0
        }
        needed = max(1, endpoint.gpus)
        # where a card has room for the larger promise, better there than squeezed in
        for least in (endpoint.most_mib or endpoint.promise_mib, endpoint.promise_mib):
            fits = sorted((free, card) for card, free in room.items() if free >= least)
            if len(fits) >= needed:
                return [card for _, card in fits[:needed]]
        return None

    def _make_room(self, endpoint: WantedEndpoint) -> None:
        leaving = [worker.spec.id for worker in self.kept.values() if worker.spec.id in self.draining]
        if self._place(endpoint, leaving) is not None:
            self._note(Verb.WAIT, endpoint.name, None, f"room is being made: {', '.join(sorted(leaving))} is leaving")
            self._reserve_leaving(endpoint, leaving)
            return
        victims = self._victims(endpoint, leaving)
        if victims is None:
            self._note(
                Verb.WAIT, endpoint.name, None, f"{endpoint.promise_mib} MiB are free nowhere, and nothing is idle"
            )
            return
        for victim in victims:
            self._drain(victim, f"makes room for {endpoint.name}, which has {endpoint.waiting} waiting")
        self._reserve_leaving(endpoint, [*leaving, *(victim.spec.id for victim in victims)])

    def _reserve_leaving(self, endpoint: WantedEndpoint, leaving: list[str]) -> None:
        """Let nobody behind in the queue evict for, or start on, what this endpoint is waiting for."""
        cards = self._place(endpoint, leaving) or []
        for card in cards:
            self.reserved[card] += self._free(card, leaving) if endpoint.whole_card else max(1, endpoint.promise_mib)

    def _victims(self, endpoint: WantedEndpoint, leaving: list[str]) -> list[KnownWorker] | None:
        """The fewest cheapest workers whose leaving makes room, or None."""
        chosen: list[KnownWorker] = []
        for worker in self._candidates(endpoint):
            if self._spare(worker, chosen) <= 0:
                continue
            chosen.append(worker)
            gone = [*leaving, *(victim.spec.id for victim in chosen)]
            if self._place(endpoint, gone) is not None:
                return self._needed(endpoint, leaving, chosen)
        return None

    def _spare(self, worker: KnownWorker, chosen: list[KnownWorker]) -> int:
        """How many workers its endpoint could still lose beside the chosen ones."""
        name = worker.spec.endpoint
        owner = self.endpoints.get(name)
        alive = sum(known.state is not WorkerState.FAILED for known in self._serving(name))
        taken = sum(victim.spec.endpoint == name for victim in chosen)
        return alive - taken - (owner.min_workers if owner is not None else 0)

    def _needed(self, endpoint: WantedEndpoint, leaving: list[str], chosen: list[KnownWorker]) -> list[KnownWorker]:
        """Drop from the chosen whoever turned out not to be needed (it sat on another card)."""
        for worker in list(chosen):
            rest = [victim for victim in chosen if victim is not worker]
            if self._place(endpoint, [*leaving, *(victim.spec.id for victim in rest)]) is not None:
                chosen = rest
        return chosen

    def _candidates(self, endpoint: WantedEndpoint) -> list[KnownWorker]:
        starving = endpoint.waiting_since is not None and (
            self.now - endpoint.waiting_since >= self.situation.starvation_seconds
        )
        if endpoint.waiting_since is not None and not starving:
            self.wake_at.append(endpoint.waiting_since + self.situation.starvation_seconds)
        eligible = set(self._eligible(endpoint))
        found = [
            worker
            for worker in self.kept.values()
            if worker.spec.id not in self.draining
            and worker.spec.endpoint != endpoint.name
            and eligible & set(_cards(worker.spec))
            and worker.holds_memory()
            and self._may_evict(worker, endpoint, starving=starving)
        ]
        return sorted(found, key=lambda worker: (worker.in_flight > 0, self._priority(worker), worker.last_used))

    def _priority(self, worker: KnownWorker) -> int:
        owner = self.endpoints.get(worker.spec.endpoint)
        return owner.priority if owner else -1000

    def _may_evict(self, worker: KnownWorker, endpoint: WantedEndpoint, *, starving: bool) -> bool:
        owner = self.endpoints.get(worker.spec.endpoint)
        if owner is None:
            return True
        if owner.priority > endpoint.priority or self._spare(worker, []) <= 0:
            return False
        if worker.state not in RESTING:
            return False
        stays_until = worker.since + self.situation.minimum_residency_seconds
        if worker.state is WorkerState.READY and stays_until > self.now:
            self.wake_at.append(stays_until)
            return False
        return starving or (worker.in_flight == 0 and owner.waiting == 0)


def _failed_before_order(worker: KnownWorker, endpoint: WantedEndpoint) -> bool:
    failed = worker.state in (WorkerState.FAILED, WorkerState.BACKOFF)
    return failed and endpoint.ordered_at is not None and worker.since <= endpoint.ordered_at


def _wanted(endpoint: WantedEndpoint, now: float) -> int:
    if endpoint.stopped:
        return 0
    busy = math.ceil((endpoint.in_flight + endpoint.waiting) / endpoint.per_worker)
    kept_warm = 1 if endpoint.warm_until is not None and endpoint.warm_until > now else 0
    return min(max(busy, kept_warm, endpoint.min_workers), endpoint.max_workers)


def _urgency(endpoint: WantedEndpoint) -> tuple[float, float, str]:
    since = endpoint.waiting_since if endpoint.waiting_since is not None else math.inf
    return (-endpoint.priority, since, endpoint.name)


def is_same(template: WorkerSpec, spec: WorkerSpec) -> bool:
    """Whether a worker is what its endpoint asks for; its GPUs, and what was left open and chosen, do not matter."""
    placed = msgspec.structs.replace(
        spec,
        gpus=(),
        gpu_memory_mib=spec.gpu_memory_mib if template.gpu_memory_mib is not None else None,
        max_model_len=None if spec.is_length_chosen else spec.max_model_len,
        is_length_chosen=False,
    )
    return spec_hash(placed) == spec_hash(template)


def _cards(spec: WorkerSpec) -> tuple[str, ...]:
    return spec.gpus or (HOST_MEMORY,)
