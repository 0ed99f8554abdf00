"""Who decides: the real planner, and the two that everybody else uses, on equal terms.

Equal terms: the same machine, the same memory arithmetic, no request refused. The others know no priorities, no
minimum residency and no bound.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from gateway.scheduling.planner import plan
from gateway.scheduling.types import HOST_MEMORY, KnownWorker, Plan, Situation, WantedEndpoint
from tests.simulation.scenario import Request
from worker_manager.contract import WorkerSpec, WorkerState


class Policy(Protocol):
    """Decides which workers should exist, and whose requests are let through."""

    name: str
    strict: bool
    """Whether no request may overtake another, not even one of another model."""

    def decide(self, situation: Situation) -> Plan:
        """Which workers should exist."""
        ...

    def turns(self, queues: Mapping[str, deque[Request]]) -> Iterable[str]:
        """Models whose oldest request may be sent to a worker now."""
        ...


class Planner:
    """The real thing: `gateway.scheduling.planner.plan`."""

    name = "planner"
    strict = False

    def decide(self, situation: Situation) -> Plan:
        """Ask it."""
        return plan(situation)

    def turns(self, queues: Mapping[str, deque[Request]]) -> Iterable[str]:
        """All: the gateway's queues are one for each endpoint."""
        return queues


class Stopping(Planner):
    """The planner where nothing can sleep: every swap is a stop and a start, as with the others."""

    name = "no-sleep"

    def decide(self, situation: Situation) -> Plan:
        """Ask it, and hide that engines can sleep."""
        ends = tuple(msgspec.structs.replace(one, sleep=()) for one in situation.endpoints)
        return plan(msgspec.structs.replace(situation, endpoints=ends))


class Lru:
    """As llama-swap and Ollama do it: what is not loaded replaces the longest unused model that serves nobody.

    A request for a loaded model goes straight on, whoever waits; nothing busy is ever drained.
    """

    name = "lru"
    strict = False

    def turns(self, queues: Mapping[str, deque[Request]]) -> Iterable[str]:
        """All."""
        return queues

    def decide(self, situation: Situation) -> Plan:
        """Serve the waiting, longest first."""
        board = _Board(situation)
        board.drop_idle()
        asking = [one for one in situation.endpoints if one.waiting and not board.has(one.name)]
        for endpoint in sorted(asking, key=lambda one: (one.waiting_since or 0.0, one.name)):
            victims = [worker for worker in board.evictable(endpoint.name) if not board.wants(worker)]
            board.bring(endpoint, victims, drain_busy=False)
        return board.plan()


class Fcfs:
    """First come, first served: no request overtakes another; the head of the one queue gets the machine it needs."""

    name = "fcfs"
    strict = True

    def turns(self, queues: Mapping[str, deque[Request]]) -> Iterable[str]:
        """The model of the request that came first."""
        waiting = [queue[0] for queue in queues.values() if queue]
        return [min(waiting).model] if waiting else []

    def decide(self, situation: Situation) -> Plan:
        """Serve the head."""
        board = _Board(situation)
        board.drop_idle()
        asking = [one for one in situation.endpoints if one.waiting]
        head = min(asking, key=lambda one: (one.waiting_since or 0.0, one.name), default=None)
        if head is not None and not board.has(head.name):
            board.bring(head, board.evictable(head.name), drain_busy=True)
        return board.plan()


class _Board:
    """One worker for each endpoint at most, and the arithmetic of who fits where."""

    def __init__(self, situation: Situation) -> None:
        self.situation = situation
        self.kept = {worker.spec.id: worker for worker in situation.workers}
        self.leaving = {worker.spec.id for worker in situation.workers if worker.is_leaving()}
        self.started: list[WorkerSpec] = []
        self.wake_at: list[float] = []
        self.endpoints = {endpoint.name: endpoint for endpoint in situation.endpoints}

    def has(self, name: str) -> bool:
        return any(worker.spec.endpoint == name and worker.spec.id not in self.leaving for worker in self.kept.values())

    def wants(self, worker: KnownWorker) -> bool:
        """Whether somebody waits for it or is on it."""
        owner = self.endpoints[worker.spec.endpoint]
        return bool(worker.in_flight or owner.waiting)

    def drop_idle(self) -> None:
        """After `idle_seconds` a model goes, as the time to live of both."""
        for worker in self.kept.values():
            if worker.state is not WorkerState.READY or worker.in_flight:
                continue
            over = worker.last_used + self.endpoints[worker.spec.endpoint].idle_seconds
            if over <= self.situation.now:
                self.leaving.add(worker.spec.id)
            else:
                self.wake_at.append(over)

    def evictable(self, name: str) -> list[KnownWorker]:
        """Workers of other endpoints that are ready, longest unused first."""
        found = [
            worker
            for worker in self.kept.values()
            if worker.spec.endpoint != name and worker.spec.id not in self.leaving and worker.state is WorkerState.READY
        ]
        return sorted(found, key=lambda worker: (worker.in_flight > 0, worker.last_used, worker.spec.id))

    def bring(self, endpoint: WantedEndpoint, victims: list[KnownWorker], *, drain_busy: bool) -> None:
        """Start a worker, or make room for one."""
        cards = self._place(endpoint, frozenset())
        if cards is not None:
            self._start(endpoint, cards)
            return
        leaving = set(self.leaving)
        for victim in victims:
            if self._place(endpoint, frozenset(leaving)) is not None:
                break
            if drain_busy or not victim.in_flight:
                leaving.add(victim.spec.id)
        if self._place(endpoint, frozenset(leaving)) is not None:
            self.leaving = leaving

    def _place(self, endpoint: WantedEndpoint, without: frozenset[str]) -> list[str] | None:
        cards = [card for card in self.situation.cards if (card == HOST_MEMORY) == (endpoint.gpus == 0)]
        free = {card: self.situation.cards[card] - self._held(card, without) for card in cards}
        if endpoint.whole_card:
            free = {card: room for card, room in free.items() if room == self.situation.cards[card]}
        fits = sorted((room, card) for card, room in free.items() if room >= endpoint.promise_mib)
        needed = max(1, endpoint.gpus)
        return [card for _, card in fits[:needed]] if len(fits) >= needed else None

    def _held(self, card: str, without: frozenset[str]) -> int:
        there = [worker.spec for worker in self.kept.values() if worker.spec.id not in without] + self.started
        return sum(self._promise(spec) for spec in there if card in (spec.gpus or (HOST_MEMORY,)))

    def _promise(self, spec: WorkerSpec) -> int:
        return (spec.gpu_memory_mib or 0) if spec.gpus else self.situation.host_promises.get(spec.model, 0)

    def _start(self, endpoint: WantedEndpoint, cards: list[str]) -> None:
        assert endpoint.template is not None
        gpus = tuple(card for card in cards if card != HOST_MEMORY)
        size = min(self.situation.cards[card] for card in cards) if endpoint.whole_card else endpoint.promise_mib
        number = 1 + max((int(one.rsplit("-", 1)[1]) for one in self.kept), default=0) + len(self.started)
        self.started.append(
            msgspec.structs.replace(
                endpoint.template,
                id=f"{endpoint.name}-{number}",
                gpus=gpus,
                gpu_memory_mib=size if gpus else None,
            )
        )

    def plan(self) -> Plan:
        """What has been decided."""
        over = {one for one in self.leaving if not self.kept[one].in_flight}
        kept = [worker.spec for worker in self.kept.values() if worker.spec.id not in over]
        return Plan(
            desired=tuple(sorted([*kept, *self.started], key=lambda spec: spec.id)),
            draining=frozenset(self.leaving - over),
            decisions=(),
            wake_at=min(self.wake_at, default=None),
        )
