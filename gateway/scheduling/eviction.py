"""Who makes room for whom, and how: the cheapest workers to have back go first. Pure.

For each card the cheapest set of workers whose leaving makes enough room is found; of the cards the cheapest are taken.
Cheap is, in this order: nobody is being served, the priority is low, and what it costs to have the worker back, in
seconds, is little for how long it has not been used: a worker that loads for 60 s is kept ten times as long as one that
wakes in 6 s.
"""

import math
from collections.abc import Iterable

import msgspec

from gateway.scheduling import ladder
from gateway.scheduling.board import Board, Need, cards_of
from gateway.scheduling.generations import is_awake, serves_on
from gateway.scheduling.types import KnownWorker, WantedEndpoint
from worker_manager.contract import Residency, WorkerState

RESTING = frozenset({WorkerState.READY, WorkerState.WAITING, WorkerState.BACKOFF})
"""States in which a worker may be let go. A load is never broken off: its memory is paid for."""
ON_THEIR_WAY = frozenset(
    {
        WorkerState.CREATING,
        WorkerState.LOADING,
        WorkerState.SLEEPING,
        WorkerState.ASLEEP,
        WorkerState.WAKING,
    }
)
"""States of a worker that is asked to be awake and is not yet, and holds its memory."""
GONE_ENDPOINT_PRIORITY = -1000
BUSY_STAYS_FOR_BRING_BACKS = 1.0
"""Who is serving stays at least this many times as long as it takes to have it back: swaps cost no more than they
give."""


class Cost(msgspec.Struct, frozen=True, order=True):
    """What it costs that somebody leaves. Ordered."""

    busy: int = 0
    priority: int = GONE_ENDPOINT_PRIORITY
    regret: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.busy + other.busy, max(self.priority, other.priority), self.regret + other.regret)


class Way(msgspec.Struct, frozen=True):
    """A way to make room: on which cards, who leaves and how."""

    cost: Cost
    cards: tuple[str, ...]
    leaving: dict[str, Residency]


class Eviction:
    """Looks for room for one endpoint."""

    def __init__(self, board: Board, endpoint: WantedEndpoint) -> None:
        self.board = board
        self.endpoint = endpoint
        self.own = len(board.serving(endpoint.name))
        since = endpoint.waiting_since if self.own else endpoint.unserved_since or endpoint.waiting_since
        self.starving = since is not None and board.now - since >= board.situation.starvation_seconds
        if since is not None and not self.starving:
            board.wake_at.append(since + board.situation.starvation_seconds)

    def way(self, need: Need) -> Way | None:
        """The cheapest way to make room, or None."""
        found = sorted(
            (one for card in need.cards if (one := self._on_card(need, card)) is not None),
            key=lambda one: (one.cost, one.cards),
        )
        chosen: dict[str, Residency] = {}
        cost = Cost()
        cards: list[str] = []
        for one in found:
            if len(cards) == need.count:
                break
            if self._keeps_least({**chosen, **one.leaving}):
                chosen |= one.leaving
                cost, cards = cost + one.cost, [*cards, *one.cards]
        return Way(cost, tuple(cards), chosen) if len(cards) == need.count else None

    def _on_card(self, need: Need, card: str) -> Way | None:
        """The cheapest set of workers whose leaving makes room on one card."""
        chosen: dict[str, Residency] = {}
        candidates = [one for one in self._candidates(card) if one.spec.id != need.waking]
        for worker in candidates:
            if self._fits(need, card, chosen):
                break
            if self._keeps_least({**chosen, worker.spec.id: Residency.GONE}):
                chosen[worker.spec.id] = exit_of(self.board, worker, hurried=True)
        if not self._fits(need, card, chosen):
            # what sleepers would leave behind may be what is lacking
            chosen = dict.fromkeys(chosen, Residency.GONE)
        if not self._fits(need, card, chosen):
            return None
        for worker in candidates:
            rest = {one: how for one, how in chosen.items() if one != worker.spec.id}
            if worker.spec.id in chosen and self._fits(need, card, rest):
                chosen = rest
        cost = sum((self._cost(self.board.kept[one], how) for one, how in chosen.items()), Cost())
        return Way(cost, (card,), chosen)

    def _fits(self, need: Need, card: str, chosen: dict[str, Residency]) -> bool:
        return self.board.has_room(need, card, self.board.after({**self.board.leaving, **chosen}))

    def _keeps_least(self, chosen: dict[str, Residency]) -> bool:
        """Whether every endpoint keeps its min_workers, and its share, if these leave."""
        awake = [one for one in chosen if self.board.asked[one] is Residency.HOT]
        owners = {self.board.kept[one].spec.endpoint for one in awake}
        return all(self._spare(name, awake) >= 0 for name in owners)

    def _spare(self, name: str, leaving: Iterable[str] = ()) -> int:
        """How many workers an endpoint could lose beside those that leave."""
        owner = self.board.endpoints.get(name)
        alive = [known for known in self.board.serving(name) if known.state is not WorkerState.FAILED]
        if owner is not None and any(serves_on(owner, known) for known in alive):
            alive = [known for known in alive if is_awake(known)]  # a successor replaces nobody before it serves
        gone = set(leaving)
        left = sum(known.spec.id not in gone for known in alive)
        return left - (owner.min_workers if owner is not None else 0)

    def _candidates(self, card: str) -> list[KnownWorker]:
        found = [
            worker
            for worker in self.board.kept.values()
            if card in cards_of(worker.spec)
            and worker.spec.id not in self.board.leaving
            and worker.holds_memory()
            and self._evictable_at(worker) <= self.board.now
        ]
        return sorted(
            found,
            key=lambda worker: (self._cost(worker, exit_of(self.board, worker, hurried=True)), worker.spec.id),
        )

    def _cost(self, worker: KnownWorker, how: Residency) -> Cost:
        owner = self.board.owner(worker)
        seconds = ladder.bring_back_seconds(worker, owner, how)
        if self.board.rests(worker):
            seconds -= ladder.wake_seconds(worker, worker.asked)
        idle = max(1.0, self.board.now - worker.last_used)
        busy = worker.in_flight > 0 or (owner is not None and owner.waiting > 0 and not self.board.rests(worker))
        return Cost(int(busy), owner.priority if owner else GONE_ENDPOINT_PRIORITY, max(0.0, seconds) ** 2 / idle)

    def _evictable_at(self, worker: KnownWorker) -> float:
        """When this worker may be made to leave for this endpoint; never: infinity. Asks to be woken then."""
        owner = self.board.owner(worker)
        if owner is None:
            return -math.inf
        if owner.priority > self.endpoint.priority:
            return math.inf
        if self.board.rests(worker):
            return -math.inf
        if owner.name == self.endpoint.name or self._spare(owner.name) <= 0:
            return math.inf
        idle = worker.in_flight == 0 and owner.waiting == 0
        if not idle and not self._may_drain_busy(owner):
            return math.inf
        return self._stays_until(worker, idle=idle)

    def _may_drain_busy(self, owner: WantedEndpoint) -> bool:
        """A starving endpoint without a worker may; one with some only where it ends up with no more than the other."""
        if not self.starving:
            return False
        return self.own == 0 or len(self.board.serving(owner.name)) >= self.own + 2

    def _stays_until(self, worker: KnownWorker, *, idle: bool) -> float:
        """The end of its minimum residency; a load is taken to last as long as it is known to."""
        board, owner = self.board, self.board.owner(worker)
        least = board.situation.minimum_residency_seconds
        if not idle:
            left_as = exit_of(board, worker, hurried=True)
            least = max(least, BUSY_STAYS_FOR_BRING_BACKS * ladder.bring_back_seconds(worker, owner, left_as))
        if worker.state in ON_THEIR_WAY:
            return max(worker.since + ladder.load_seconds(owner), board.now + 1.0) + least
        if worker.state is not WorkerState.READY:
            return -math.inf
        until = worker.since + least
        if until > board.now:
            board.wake_at.append(until)
        return until

    def hold(self, need: Need) -> tuple[str, ...]:
        """The cards where room can be made soonest, once those on them have stayed their time; empty: nowhere."""
        if not self.starving:
            return ()
        found = sorted((at, card) for card in need.cards if (at := self._room_at(need, card)) < math.inf)
        return tuple(card for _, card in found[: need.count]) if len(found) >= need.count else ()

    def _room_at(self, need: Need, card: str) -> float:
        there = [
            worker
            for one, worker in self.board.kept.items()
            if card in cards_of(worker.spec) and one not in {*self.board.leaving, need.waking} and worker.holds_memory()
        ]
        times = {worker.spec.id: self._evictable_at(worker) for worker in there}
        movable = {one: Residency.GONE for one, at in times.items() if at < math.inf}
        if not self._fits(need, card, movable):
            return math.inf
        return max((times[one] for one in movable), default=self.board.now)


def exit_of(board: Board, worker: KnownWorker, *, hurried: bool) -> Residency:
    """How a worker should leave its cards: asleep, as deep as its endpoint and the budget allow, or gone.

    Hurried: somebody waits for the memory, so it sleeps only if that is known to take no longer than a stop.
    """
    owner = board.owner(worker)
    if owner is None or owner.stopped or not worker.can_sleep or not worker.spec.gpus:
        return Residency.GONE
    if worker.state is not WorkerState.READY or (hurried and not ladder.is_quick(worker, owner)):
        return Residency.GONE
    for level in owner.sleep:
        if worker.can_sleep_deep if level is Residency.ASLEEP_2 else _has_host_memory(board, worker, owner):
            return level
    return Residency.GONE


def _has_host_memory(board: Board, worker: KnownWorker, owner: WantedEndpoint) -> bool:
    kept = ladder.kept_host_mib(worker, owner, board.asked[worker.spec.id])
    return ladder.sleeping_host_mib(worker, owner) - kept <= board.sleep_budget_left()
