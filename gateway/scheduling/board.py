"""The board: what exists, what has been decided so far, and who holds how much of which card. No rules.

A worker holds its promise on each of its cards from the moment it is desired until it has left the observed set. One
that is asleep holds what is left of it, and its promise again from the moment it is asked to wake. Room that is being
made for somebody is reserved, so that nobody behind in the queue takes it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from gateway.scheduling import ladder
from gateway.scheduling.types import (
    HOST_MEMORY,
    Decision,
    KnownWorker,
    Plan,
    Situation,
    Verb,
    WantedEndpoint,
)
from worker_manager.contract import Residency, WorkerSpec, WorkerState, spec_hash

ID_NAME_LENGTH = 24
NOBODY: Mapping[str, int] = {}


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """Memory that somebody is after: so many cards out of these, with so much room on each."""

    cards: tuple[str, ...]
    count: int
    mib: int
    rather_mib: int = 0
    """Where a card has so much, better there."""
    empty: bool = False
    """Only cards on which nobody is awake."""
    waking: str | None = None
    """The sleeper that is to wake there."""


class Board:
    """One plan in the making."""

    def __init__(self, situation: Situation) -> None:
        self.situation = situation
        self.now = situation.now
        self.endpoints = {endpoint.name: endpoint for endpoint in situation.endpoints}
        self.kept: dict[str, KnownWorker] = {worker.spec.id: worker for worker in situation.workers}
        self.asked: dict[str, Residency] = {worker.spec.id: worker.asked for worker in situation.workers}
        self.leaving: dict[str, Residency] = {}
        """Who is on the way off its cards, and how it will be then: asleep or gone."""
        self.reserved: Counter[str] = Counter()
        self.started: list[WorkerSpec] = []
        self.soon: dict[str, None] = {}
        """Paths of models that wait for room to be started in, in order."""
        self.decisions: list[Decision] = []
        self.wake_at: list[float] = []
        self.crowded = self._is_crowded()

    def _is_crowded(self) -> bool:
        """Whether the endpoints for GPUs would not all fit at once."""
        room = sum(mib for card, mib in self.situation.cards.items() if card != HOST_MEMORY)
        whole = max((mib for card, mib in self.situation.cards.items() if card != HOST_MEMORY), default=0)
        asked = sum(
            (whole if endpoint.whole_card else endpoint.promise_mib) * endpoint.gpus
            for endpoint in self.situation.endpoints
            if not endpoint.stopped
        )
        return asked > room

    def note(self, verb: Verb, endpoint: str, worker: str | None, why: str) -> None:
        """Write a decision down."""
        numbers = self.numbers(endpoint, worker)
        self.decisions.append(Decision(verb=verb, endpoint=endpoint, worker=worker, reason=why, numbers=numbers))

    def numbers(self, endpoint: str, worker: str | None) -> dict[str, float]:
        """What a decision about them was made with: demand, how long, and whose memory is how much.

        `free_mib` is what is nobody's of the worker's cards, or of the best card where it is about none, after all
        that was decided so far.
        """
        asks, has = self.endpoints.get(endpoint), self.kept.get(worker or "")
        found: dict[str, float] = {}
        cards: tuple[str, ...] = ()
        if asks is not None:
            found = {"in_flight": asks.in_flight, "waiting": asks.waiting, "workers": len(self.serving(endpoint))}
            found["needs_mib"] = asks.promise_mib
            since = {"waited_seconds": asks.waiting_since, "unserved_seconds": asks.unserved_since}
            found |= {name: round(self.now - at, 3) for name, at in since.items() if at is not None}
            cards = self.need(asks).cards
        if has is not None:
            found |= {"worker_in_flight": has.in_flight, "idle_seconds": round(self.now - has.last_used, 3)}
            found["state_seconds"] = round(self.now - has.since, 3)
        spec = has.spec if has is not None else next((one for one in self.started if one.id == worker), None)
        if spec is not None:
            found |= {"promise_mib": self.promise_of(spec), "free_mib": min(map(self.free, cards_of(spec)))}
        elif cards:
            found["free_mib"] = max(map(self.free, cards))
        return found

    # who there is

    def owner(self, worker: KnownWorker) -> WantedEndpoint | None:
        """Its endpoint, if that still exists."""
        return self.endpoints.get(worker.spec.endpoint)

    def serving(self, endpoint: str) -> list[KnownWorker]:
        """Its workers that serve, or will without further ado."""
        return [
            worker
            for worker in self.kept.values()
            if worker.spec.endpoint == endpoint
            and worker.spec.id not in self.leaving
            and self.asked[worker.spec.id] is Residency.HOT
        ]

    def resting(self, endpoint: str) -> list[KnownWorker]:
        """Its workers that sleep or fall asleep, and will go on existing."""
        return [
            worker
            for worker in self.kept.values()
            if worker.spec.endpoint == endpoint
            and self.asked[worker.spec.id] is not Residency.HOT
            and self.leaving.get(worker.spec.id) is not Residency.GONE
        ]

    # memory

    def promise_of(self, spec: WorkerSpec) -> int:
        """MiB on each of its cards while it is awake."""
        if spec.gpus:
            return spec.gpu_memory_mib or 0
        return self.situation.host_promises.get(spec.model, self.situation.default_host_promise_mib)

    def holds(self, worker: KnownWorker) -> int:
        """MiB that count as its own on each of its cards now."""
        if not worker.holds_memory():
            return 0
        promise = self.promise_of(worker.spec)
        if self.rests(worker):
            return ladder.residue_mib(worker, promise)
        if worker.state is WorkerState.STOPPING and worker.memory_mib is not None:
            return min(promise, worker.memory_mib)  # it takes no more; a sleeper never had it all
        return promise

    def after(self, leaving: Mapping[str, Residency]) -> dict[str, int]:
        """MiB that these will hold on each of their cards once they have left them."""
        return {
            one: 0
            if how is Residency.GONE
            else ladder.expected_residue_mib(self.kept[one], self.promise_of(self.kept[one].spec))
            for one, how in leaving.items()
        }

    def held(self, card: str, after: Mapping[str, int] = NOBODY) -> int:
        """MiB of a card that are somebody's; `after` says who will hold how much by then."""
        total = self.reserved[card]
        for one, worker in self.kept.items():
            if card in cards_of(worker.spec):
                total += after[one] if one in after else self.holds(worker)
            elif card == HOST_MEMORY:
                total += self.host_mib(worker)
        return total + sum(self.promise_of(spec) for spec in self.started if card in cards_of(spec))

    def host_mib(self, worker: KnownWorker) -> int:
        """MiB of host memory that a worker on GPUs has for its sleep."""
        one = worker.spec.id
        if self.leaving.get(one) is Residency.GONE and worker.state is WorkerState.READY:
            return ladder.kept_host_mib(worker, self.owner(worker), Residency.HOT)
        return ladder.kept_host_mib(worker, self.owner(worker), self.asked[one])

    def free(self, card: str, after: Mapping[str, int] = NOBODY) -> int:
        """MiB of a card that are nobody's."""
        return self.situation.cards.get(card, 0) - self.held(card, after)

    def sleep_budget_left(self) -> int:
        """MiB of host memory that further sleepers may take."""
        used = sum(self.host_mib(worker) for worker in self.kept.values() if worker.spec.gpus)
        really = self.situation.host_available_mib
        left = min(self.situation.sleep_memory_mib - used, self.free(HOST_MEMORY))
        return left if really is None else min(left, really)

    # room

    def need(self, endpoint: WantedEndpoint) -> Need:
        """What a new worker of an endpoint needs at least."""
        eligible = [card for card in self.situation.cards if (card == HOST_MEMORY) == (endpoint.gpus == 0)]
        return Need(
            cards=tuple(eligible),
            count=max(1, endpoint.gpus),
            mib=endpoint.promise_mib,
            rather_mib=endpoint.most_mib or 0,
            empty=endpoint.whole_card,
        )

    def need_to_wake(self, worker: KnownWorker) -> Need:
        """What a sleeper needs beside what it has kept, on the cards it has."""
        cards = cards_of(worker.spec)
        return Need(
            cards=cards, count=len(cards), mib=self.promise_of(worker.spec) - self.holds(worker), waking=worker.spec.id
        )

    def has_room(self, need: Need, card: str, after: Mapping[str, int] = NOBODY) -> bool:
        """Whether a card has what is needed of it."""
        return self.free(card, after) >= need.mib and not (need.empty and self._is_occupied(card, after))

    def _is_occupied(self, card: str, after: Mapping[str, int]) -> bool:
        awake = any(
            card in cards_of(worker.spec) and one not in after and worker.holds_memory() and not self.rests(worker)
            for one, worker in self.kept.items()
        )
        return awake or self.reserved[card] > 0 or any(card in cards_of(spec) for spec in self.started)

    def rests(self, worker: KnownWorker) -> bool:
        """Whether it gave its memory back and is not to wake."""
        return worker.state is WorkerState.ASLEEP and self.asked[worker.spec.id] is not Residency.HOT

    def place(self, need: Need, after: Mapping[str, int] = NOBODY) -> list[str] | None:
        """The cards that fit best, or None: large holes stay whole."""
        fits = sorted((self.free(card, after), card) for card in need.cards if self.has_room(need, card, after))
        if len(fits) < need.count:
            return None
        # where a card has room for the larger promise, better there than squeezed in
        ample = [one for one in fits if one[0] >= need.rather_mib]
        return [card for _, card in (ample if len(ample) >= need.count else fits)[: need.count]]

    def reserve(self, need: Need, cards: Iterable[str], after: Mapping[str, int] = NOBODY) -> None:
        """Let nobody behind in the queue evict for, or start on, what somebody ahead is waiting for."""
        for card in cards:
            self.reserved[card] += max(1, self.free(card, after) if need.empty else need.mib)

    # workers

    def start(self, endpoint: WantedEndpoint, template: WorkerSpec, cards: list[str]) -> WorkerSpec:
        """Desire a new worker there."""
        gpus = tuple(card for card in cards if card != HOST_MEMORY)
        promise = self._size(endpoint, cards) if gpus else None
        spec = msgspec.structs.replace(
            template,
            id=self._free_id(template),
            gpus=gpus,
            gpu_memory_mib=promise,
            max_model_len=template.max_model_len or endpoint.max_model_len,
            is_length_chosen=template.max_model_len is None and endpoint.max_model_len is not None,
        )
        self.started.append(spec)
        return spec

    def _size(self, endpoint: WantedEndpoint, cards: list[str]) -> int:
        """MiB for a new worker on each of these cards."""
        room = min(self.free(card) for card in cards)
        room -= self._left_for_sleepers(endpoint, room)
        if endpoint.whole_card:
            return max(endpoint.promise_mib, room)
        return max(endpoint.promise_mib, min(room, endpoint.most_mib or 0))

    def _left_for_sleepers(self, endpoint: WantedEndpoint, room: int) -> int:
        """What a worker that could take all leaves: others sleep on its cards, and it must wake beside them."""
        if not self.crowded:
            return 0
        others = sum(bool(one.gpus and one.sleep) and one.name != endpoint.name for one in self.endpoints.values())
        return min(others * ladder.RESIDUE_MIB, room // 8)

    def _free_id(self, template: WorkerSpec) -> str:
        name = re.sub(r"[^a-z0-9]+", "-", template.endpoint.lower()).strip("-")[:ID_NAME_LENGTH].strip("-") or "worker"
        taken = {*self.kept, *(spec.id for spec in self.started)}
        number = 1
        while f"{name}-{spec_hash(template)[:6]}-{number}" in taken:
            number += 1
        return f"{name}-{spec_hash(template)[:6]}-{number}"

    # the end

    def plan(self) -> Plan:
        """What has been decided, as a whole."""
        kept = [worker for worker in self.kept.values() if not self._is_over(worker)]
        asleep = {
            one: how for worker in kept if (how := self._rung(worker)) is not Residency.HOT for one in [worker.spec.id]
        }
        desired = [*(worker.spec for worker in kept), *self.started]
        return Plan(
            desired=tuple(sorted(desired, key=lambda spec: spec.id)),
            draining=frozenset(
                worker.spec.id for worker in kept if worker.spec.id in self.leaving and worker.spec.id not in asleep
            ),
            decisions=tuple(self.decisions),
            wake_at=min(self.wake_at, default=None),
            residencies=dict(sorted(asleep.items())),
            soon=tuple(self.soon),
        )

    def _is_over(self, worker: KnownWorker) -> bool:
        return self.leaving.get(worker.spec.id) is Residency.GONE and worker.in_flight == 0

    def _rung(self, worker: KnownWorker) -> Residency:
        how = self.leaving.get(worker.spec.id)
        if how in (None, Residency.GONE):
            return self.asked[worker.spec.id] if how is None else Residency.HOT
        return how if worker.in_flight == 0 and how is not None else Residency.HOT


def cards_of(spec: WorkerSpec) -> tuple[str, ...]:
    """The cards a worker is on: its GPUs, or the machine's own memory."""
    return spec.gpus or (HOST_MEMORY,)
