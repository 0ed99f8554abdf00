"""The planner: which workers should exist, and how warm. A pure function: no clock, no randomness, no I/O.

    plan(situation) -> Plan

Rules, in order (docs/design.md, "The planner", has the reasons and the bound):
1. An endpoint wants clamp(ceil((in flight + waiting) / per_worker), min_workers, max_workers) workers awake. One it has
   and does not need leaves its cards after `idle_seconds` without a request; where not all endpoints fit at once, it
   sleeps after `sleep_after_seconds`, ahead of need.
2. A worker whose endpoint is gone drains and goes. One that is no longer what its endpoint asks for serves until its
   successor does (`succession`).
3. Cheapest first: a sleeper wakes where its memory is free, else a worker starts where its promise fits (best fit),
   else others make room (`eviction`): whoever is cheapest to have back, asleep if that is as quick as a stop.
4. A waiter past the starvation bound may have busy workers of its own or lower priority drained for it. Where they must
   stay a while yet, their cards are held for it, so that nobody who came later takes them.
5. Who goes first: higher priority, then who has no worker at all, then who has been without one the longest.
"""

import math

from gateway.scheduling import ladder
from gateway.scheduling.board import Board, Need
from gateway.scheduling.eviction import RESTING, Eviction, Way, exit_of
from gateway.scheduling.generations import newer
from gateway.scheduling.succession import Succession
from gateway.scheduling.types import (
    RETRY_FAILED_SECONDS,
    KnownWorker,
    Plan,
    Situation,
    Verb,
    WantedEndpoint,
)
from worker_manager.contract import Residency, WorkerSpec, WorkerState

WAIT_FOR_CARD_LOADS = 1.0
"""For so long, in loads, a waiter waits for the card of its sleeper before another worker is started elsewhere."""
SLEEP_ORDER_SECONDS = 60.0
"""A worker that was asked to sleep and does not begin to, though nothing loads beside it, is stopped."""
SLEEP_ORDER_LIMIT_SECONDS = 900.0
"""And after so long in any case."""
LOADS = frozenset({WorkerState.CREATING, WorkerState.LOADING})
AWAKE_OR_ASLEEP = frozenset({WorkerState.READY, WorkerState.SLEEPING, WorkerState.ASLEEP})


def plan(situation: Situation) -> Plan:
    """Decide. Planning again from the result of a plan that was carried out changes nothing."""
    return _Planner(situation).run()


class _Planner:
    """One run of the planner: the rules; the board keeps what they decide."""

    def __init__(self, situation: Situation) -> None:
        self.now = situation.now
        self.situation = situation
        self.board = Board(situation)
        self.succession = Succession(self.board)

    def run(self) -> Plan:
        for worker in self.situation.workers:
            self._go_on(worker)
        for worker in self.situation.workers:
            self._retire_outdated(worker)
        self._retire_crowded_out()
        for endpoint in self.situation.endpoints:
            self._retire_idle(endpoint)
            self.succession.hand_over(endpoint, _wanted(endpoint, self.now))
        for endpoint in sorted(self.situation.endpoints, key=self._urgency):
            self._supply(endpoint)
        for endpoint in sorted(self.situation.endpoints, key=self._urgency):
            self._succeed(endpoint)
        self._look_at_sleep_orders()
        return self.board.plan()

    def _urgency(self, endpoint: WantedEndpoint) -> tuple[float, bool, float, str]:
        since = endpoint.unserved_since if endpoint.unserved_since is not None else endpoint.waiting_since
        return (
            -endpoint.priority,
            bool(self.board.serving(endpoint.name)),
            math.inf if since is None else since,
            endpoint.name,
        )

    # what is under way

    def _go_on(self, worker: KnownWorker) -> None:
        """Whoever was leaving goes on leaving."""
        one = worker.spec.id
        if worker.state is WorkerState.STOPPING:
            self.board.leaving[one] = Residency.GONE
        elif worker.asked is not Residency.HOT:
            self._go_on_resting(worker)
        elif worker.draining:
            self.board.leaving[one] = exit_of(self.board, worker, hurried=True)

    def _go_on_resting(self, worker: KnownWorker) -> None:
        if worker.state not in AWAKE_OR_ASLEEP:
            self._leave(worker, Residency.GONE, "it was to sleep and does not run any more")
        elif worker.state is WorkerState.READY and not worker.can_sleep:
            self._leave(worker, Residency.GONE, "it was to sleep and can not")
        elif worker.state is WorkerState.READY and self.now > self._late_at(worker):
            late = self.now - worker.asked_at
            self._leave(worker, Residency.GONE, f"it was to sleep {late:.0f} s ago and is not doing so")
        elif worker.state is not WorkerState.ASLEEP:
            self.board.leaving[worker.spec.id] = worker.asked

    def _late_at(self, worker: KnownWorker) -> float:
        """Until when one that was asked to sleep may take to begin: nobody can beside a load."""
        beside = [other for other in self.situation.workers if set(other.spec.gpus) & set(worker.spec.gpus)]
        latest = worker.asked_at + SLEEP_ORDER_LIMIT_SECONDS
        if any(other.state in LOADS for other in beside):
            return latest
        since = max(worker.asked_at, *(other.since for other in beside))
        return min(since, latest) + SLEEP_ORDER_SECONDS

    def _look_at_sleep_orders(self) -> None:
        """Look again when one that is to fall asleep has not: it may be all that others wait for."""
        for worker in self.situation.workers:
            ordered = self.board.leaving.get(worker.spec.id, Residency.GONE) is not Residency.GONE
            if ordered and worker.state is WorkerState.READY:
                is_new = worker.asked is Residency.HOT
                self.board.wake_at.append(self.now + SLEEP_ORDER_SECONDS if is_new else self._late_at(worker))

    # rule 2

    def _retire_outdated(self, worker: KnownWorker) -> None:
        if self.board.leaving.get(worker.spec.id) is Residency.GONE:
            return
        endpoint = self.board.owner(worker)
        if endpoint is None:
            self._leave(worker, Residency.GONE, "its endpoint is gone")
        elif endpoint.stopped:
            self._leave(worker, Residency.GONE, "its endpoint was stopped")
        elif self.succession.retire(worker, endpoint):
            return
        elif self._may_retry(worker, endpoint):
            self._leave(worker, Residency.GONE, "it failed a while ago and a request waits: try again")
        elif _failed_before_order(worker, endpoint):
            self._leave(worker, Residency.GONE, "it failed and a start was ordered since: try again")
        elif self.board.rests(worker) and not endpoint.sleep:
            self._leave(worker, Residency.GONE, "its endpoint does not let it sleep any more")

    def _may_retry(self, worker: KnownWorker, endpoint: WantedEndpoint) -> bool:
        if worker.state is not WorkerState.FAILED or not endpoint.waiting:
            return False
        return self.now - worker.since >= RETRY_FAILED_SECONDS

    def _leave(self, worker: KnownWorker, how: Residency, why: str) -> None:
        self.board.leaving[worker.spec.id] = how
        verb = Verb.DRAIN if how is Residency.GONE else Verb.SLEEP
        self.board.note(verb, worker.spec.endpoint, worker.spec.id, why)

    def _retire_crowded_out(self) -> None:
        """Take back what has not started or woken and no longer fits: another program took the memory meanwhile."""
        gone: dict[str, int] = {}
        for worker in self.situation.workers:
            is_back = worker.state is WorkerState.ASLEEP and worker.asked is Residency.HOT
            if worker.spec.id in self.board.leaving or not (worker.state is WorkerState.WAITING or is_back):
                continue
            if any(self.board.free(card, gone) < 0 for card in worker.spec.gpus):
                self._leave(worker, Residency.GONE, "another program has taken the memory it was to have")
                gone[worker.spec.id] = 0

    # rule 1

    def _retire_idle(self, endpoint: WantedEndpoint) -> None:
        wanted = _wanted(endpoint, self.now)
        serving = newer(endpoint, self.board.serving(endpoint.name))
        serving.sort(key=lambda worker: (worker.last_used, worker.spec.id))
        # one that failed serves nobody: it must not make a healthy one superfluous
        surplus = sum(worker.state is not WorkerState.FAILED for worker in serving) - wanted
        for worker in serving:
            if surplus <= 0:
                return
            if worker.in_flight or worker.on_trial or worker.state not in RESTING:
                continue
            surplus -= self._retire_if_idle(worker, endpoint)

    def _retire_if_idle(self, worker: KnownWorker, endpoint: WantedEndpoint) -> bool:
        how = exit_of(self.board, worker, hurried=False)
        older = self._older_sleepers(worker, endpoint) if how is Residency.GONE else None
        sleeps = how is not Residency.GONE or older is not None
        ahead = sleeps and self.board.crowded
        limit = min(endpoint.idle_seconds, _sleeps_after(worker, endpoint)) if ahead else endpoint.idle_seconds
        idle = self.now - worker.last_used
        if idle < limit:
            self.board.wake_at.append(worker.last_used + limit)
            return False
        if older is not None:
            for sleeper in older:
                self._leave(sleeper, Residency.GONE, f"{worker.spec.id}, used since, is to sleep in its host memory")
            return False
        if limit == endpoint.idle_seconds:
            why = f"idle_seconds is {limit:.0f}"
        elif worker.sleep is None:
            why = "others may need its memory, and its first sleep is the slow one"
        else:
            why = f"others may need its memory, sleep_after_seconds is {limit:.0f}"
        self._leave(worker, how, f"no request for {idle:.0f} s, {why}")
        return True

    def _older_sleepers(self, worker: KnownWorker, endpoint: WantedEndpoint) -> list[KnownWorker] | None:
        """The longest unused sleepers whose host memory it could sleep in; none: wait for those that are going."""
        if not worker.can_sleep or worker.state is not WorkerState.READY or Residency.ASLEEP_1 not in endpoint.sleep:
            return None
        board = self.board
        going = [one for one, how in board.leaving.items() if how is Residency.GONE and board.rests(board.kept[one])]
        room = board.sleep_budget_left() + sum(board.host_mib(board.kept[one]) for one in going)
        chosen: list[KnownWorker] = []
        asleep = [
            one
            for one in board.kept.values()
            if board.rests(one)
            and one.spec.id not in going
            and not ((owner := board.owner(one)) is not None and owner.waiting)
        ]
        for sleeper in sorted(asleep, key=lambda one: (one.last_used, one.spec.id)):
            if room >= ladder.sleeping_host_mib(worker, endpoint) or sleeper.last_used >= worker.last_used:
                break
            chosen.append(sleeper)
            room += board.host_mib(sleeper)
        return chosen if room >= ladder.sleeping_host_mib(worker, endpoint) else None

    # rules 3 to 5

    def _supply(self, endpoint: WantedEndpoint) -> None:
        missing = _wanted(endpoint, self.now) - len(self.board.serving(endpoint.name))
        for _ in range(missing):
            if endpoint.template is None:
                why = endpoint.blocked or "its model is not here yet"
                self.board.note(Verb.WAIT, endpoint.name, None, why)
                return
            if not self._bring(endpoint, endpoint.template):
                return

    def _bring(self, endpoint: WantedEndpoint, template: WorkerSpec) -> bool:
        """One worker more, awake: the cheapest way. False where it has to wait for room."""
        board = self.board
        sleepers = sorted(
            board.resting(endpoint.name),
            key=lambda one: (ladder.wake_seconds(one, board.asked[one.spec.id]), one.spec.id),
        )
        for sleeper in sleepers:
            if board.place(board.need_to_wake(sleeper)) is not None:
                self._wake(sleeper, endpoint)
                return True
        need = board.need(endpoint)
        needs = [*(board.need_to_wake(sleeper) for sleeper in sleepers), need]
        if sleepers and self._waits_for_its_card(endpoint):
            self._make_room(endpoint, needs[:-1])
            return False
        cards = board.place(need)
        if cards is None:
            if not sleepers:  # else it most likely wakes, and reads nothing
                board.soon[template.model] = None
            self._make_room(endpoint, needs)
            return False
        self._start(endpoint, template, cards, f"{endpoint.waiting} waiting")
        return True

    def _succeed(self, endpoint: WantedEndpoint) -> None:
        successor = self.succession.bring_up(endpoint)
        if successor is not None:
            self._start(endpoint, *successor)

    def _wake(self, sleeper: KnownWorker, endpoint: WantedEndpoint) -> None:
        one = sleeper.spec.id
        seconds = ladder.wake_seconds(sleeper, self.board.asked[one])
        self.board.asked[one] = Residency.HOT
        self.board.leaving.pop(one, None)
        where = f"its {self.board.promise_of(sleeper.spec)} MiB are free on GPU {', '.join(sleeper.spec.gpus)}"
        self.board.note(
            Verb.WAKE, endpoint.name, one, f"{endpoint.waiting} waiting, {where}, waking takes about {seconds:.0f} s"
        )

    def _start(self, endpoint: WantedEndpoint, template: WorkerSpec, cards: list[str], why: str) -> None:
        board = self.board
        made = sum(spec.endpoint == endpoint.name for spec in board.started)
        resting = board.resting(endpoint.name)
        if resting and len(board.serving(endpoint.name)) + len(resting) + made >= endpoint.max_workers:
            self._leave(resting[0], Residency.GONE, "it can not wake where it is, and another one starts")
        spec = board.start(endpoint, template, cards)
        promise = board.promise_of(spec)
        where = f"on GPU {', '.join(spec.gpus)}" if spec.gpus else "on the CPUs"
        board.note(Verb.START, endpoint.name, spec.id, f"{why}, {promise} MiB promised {where}")

    def _waits_for_its_card(self, endpoint: WantedEndpoint) -> bool:
        """Whether it is too early to start another one because the sleeper's card may be had soon.

        A start elsewhere is a load; waiting half as long for the card first loses little and mostly saves the load.
        """
        since = endpoint.unserved_since if endpoint.unserved_since is not None else endpoint.waiting_since
        until = (self.now if since is None else since) + ladder.load_seconds(endpoint) * WAIT_FOR_CARD_LOADS
        if until > self.now:
            self.board.wake_at.append(until)
        return until > self.now

    def _make_room(self, endpoint: WantedEndpoint, needs: list[Need]) -> None:
        """See to it that one of these needs can be met later, the first if they cost the same."""
        board = self.board
        for need in needs:
            if self._is_coming(endpoint, need):
                return
        eviction = Eviction(board, endpoint)
        ways = [
            (way.cost.busy, way.cost.priority, number, way)
            for number, need in enumerate(needs)
            if (way := eviction.way(need))
        ]
        if ways:
            *_, number, way = min(ways, key=lambda one: one[:3])
            self._evict(endpoint, needs[number], way)
            return
        self._hold(endpoint, eviction, needs)

    def _is_coming(self, endpoint: WantedEndpoint, need: Need) -> bool:
        """Whether those that are leaving make the room already."""
        board = self.board
        for leaving in (board.leaving, dict.fromkeys(board.leaving, Residency.GONE)):
            after = board.after(leaving)
            cards = board.place(need, after)
            if cards is None:
                continue
            self._hurry(endpoint, cards, all_of_them=leaving is not board.leaving)
            names = ", ".join(sorted(board.leaving))
            board.note(Verb.WAIT, endpoint.name, None, f"room is being made: {names} is leaving")
            board.reserve(need, cards, after)
            return True
        return False

    def _hurry(self, endpoint: WantedEndpoint, cards: list[str], *, all_of_them: bool) -> None:
        """Nobody waits for a sleep where a stop is quicker, nor for what a sleeper would keep."""
        for one, how in list(self.board.leaving.items()):
            worker = self.board.kept[one]
            if how is Residency.GONE or worker.in_flight or not set(cards) & set(worker.spec.gpus):
                continue
            slept = self.now - worker.since if worker.state is WorkerState.SLEEPING else 0.0
            left = ladder.sleep_seconds(worker, self.board.owner(worker)) - slept
            if all_of_them or left > ladder.STOP_SECONDS:
                self._leave(worker, Residency.GONE, f"{endpoint.name} waits, and stopping it is quicker than its sleep")

    def _evict(self, endpoint: WantedEndpoint, need: Need, way: Way) -> None:
        for one, how in way.leaving.items():
            worker = self.board.kept[one]
            back = ladder.bring_back_seconds(worker, self.board.owner(worker), how)
            why = f"makes room for {endpoint.name}, which has {endpoint.waiting} waiting"
            self._leave(worker, how, f"{why}; {back:.0f} s to have it back")
        self.board.reserve(need, way.cards, self.board.after(self.board.leaving))

    def _hold(self, endpoint: WantedEndpoint, eviction: Eviction, needs: list[Need]) -> None:
        board = self.board
        for need in needs:
            cards = eviction.hold(need)
            if cards:
                board.reserve(need, cards)
                on = "the CPUs" if not endpoint.gpus else f"GPU {', '.join(cards)}"
                board.note(
                    Verb.WAIT, endpoint.name, None, f"{on} is held for it until those on it have stayed their time"
                )
                return
        board.note(Verb.WAIT, endpoint.name, None, f"{endpoint.promise_mib} MiB are free nowhere, and nothing is idle")


def _sleeps_after(worker: KnownWorker, endpoint: WantedEndpoint) -> float:
    """Seconds without a request after which it sleeps ahead of need."""
    after = endpoint.sleep_after_seconds
    return min(ladder.REHEARSE_SECONDS, after) if worker.sleep is None else after


def _failed_before_order(worker: KnownWorker, endpoint: WantedEndpoint) -> bool:
    failed = worker.state in (WorkerState.FAILED, WorkerState.BACKOFF)
    return failed and endpoint.ordered_at is not None and worker.since <= endpoint.ordered_at


def _wanted(endpoint: WantedEndpoint, now: float) -> int:
    if endpoint.stopped:
        return 0
    busy = math.ceil((endpoint.in_flight + endpoint.waiting) / endpoint.per_worker)
    kept_warm = 1 if endpoint.warm_until is not None and endpoint.warm_until > now else 0
    return min(max(busy, kept_warm, endpoint.min_workers), endpoint.max_workers)
