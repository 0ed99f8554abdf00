"""Succession: a change of how an endpoint is served brings the new workers up before the old ones go. Pure.

One successor at a time starts beside the old workers, where memory allows. For each that serves, as many of the old go
as are then too many. Where there is no room beside them, as many of the old as are in the way go first; where not even
that makes room, idle workers of others do, and until then the old ones serve on.
"""

from gateway.scheduling import generations
from gateway.scheduling.board import Board, Need, cards_of
from gateway.scheduling.eviction import Eviction
from gateway.scheduling.types import KnownWorker, Verb, WantedEndpoint
from worker_manager.contract import Residency, WorkerSpec, WorkerState

OUTDATED = "it is no longer what its endpoint asks for"
RETRY_SECONDS = 300.0
"""After a successor was given up another one is tried so much later, if it has room beside the old ones."""


class Succession:
    """The rules, for one plan. `wanted`: how many workers an endpoint is to have."""

    def __init__(self, board: Board) -> None:
        self.board = board

    def retire(self, worker: KnownWorker, endpoint: WantedEndpoint) -> bool:
        """Let one go that is outdated and serves nobody; whether it was."""
        if generations.is_current(endpoint, worker.spec) or generations.serves_on(endpoint, worker):
            return False
        rejected = generations.is_rejected(endpoint, worker.spec)
        self._go(worker, "the change it was started for was rolled back" if rejected else OUTDATED)
        return True

    def _go(self, worker: KnownWorker, why: str) -> None:
        self.board.leaving[worker.spec.id] = Residency.GONE
        self.board.note(Verb.DRAIN, worker.spec.endpoint, worker.spec.id, why)

    def _old(self, endpoint: WantedEndpoint) -> list[KnownWorker]:
        return generations.older(endpoint, self.board.serving(endpoint.name))

    def hand_over(self, endpoint: WantedEndpoint, wanted: int) -> None:
        """Let those old ones go whose place is taken, or whom nobody asks for any more."""
        old = self._old(endpoint)
        if not old:
            return
        taken_by = [
            worker.spec.id
            for worker in generations.newer(endpoint, self.board.serving(endpoint.name))
            if generations.is_awake(worker)
        ]
        # one that was used a moment ago is succeeded as well: whoever asks next finds a worker, as before the change
        idle_at = max(worker.last_used for worker in old) + endpoint.idle_seconds
        if idle_at > self.board.now:
            self.board.wake_at.append(idle_at)
            wanted = max(wanted, 1)
        why = f"{', '.join(taken_by)} serves in its place" if taken_by else f"{OUTDATED}, and nobody asks for it"
        for worker in old[: max(0, len(old) - max(0, wanted - len(taken_by)))]:
            self._go(worker, why)

    def bring_up(self, endpoint: WantedEndpoint) -> tuple[WorkerSpec, list[str], str] | None:
        """The template, cards and reason of a successor that is to start now; None: none is."""
        old, template = self._old(endpoint), endpoint.template
        if not old or template is None or any(spec.endpoint == endpoint.name for spec in self.board.started):
            return None
        newer = generations.newer(endpoint, self.board.serving(endpoint.name))
        pending = [worker for worker in newer if not generations.is_awake(worker)]
        if not all(self._may_be_tried_again(worker) for worker in pending):
            return None  # one is on its way, or has just failed
        need = self.board.need(endpoint)
        cards = self.board.place(need)
        if cards is not None:
            for failed in pending:
                self._go(failed, f"it failed {self.board.now - failed.since:.0f} s ago: another successor is tried")
            return template, cards, f"to succeed {old[0].spec.id}, which serves until then"
        if not pending:  # nobody who serves goes for a second try
            self._make_room(endpoint, need, old)
        return None

    def _may_be_tried_again(self, worker: KnownWorker) -> bool:
        """Whether a successor was given up a while ago: others of its kind have served, so it may go better now."""
        if worker.state is not WorkerState.FAILED:
            return False
        if worker.since + RETRY_SECONDS > self.board.now:
            self.board.wake_at.append(worker.since + RETRY_SECONDS)
            return False
        return True

    def _make_room(self, endpoint: WantedEndpoint, need: Need, old: list[KnownWorker]) -> None:
        board, name = self.board, endpoint.name
        if board.place(need, board.after(board.leaving)) is not None:
            board.note(Verb.WAIT, name, None, "a successor starts as soon as those that are leaving are gone")
            return
        first = self._in_the_way(need, old)
        if first:
            for worker in first:
                self._go(worker, f"its successor has no room beside it ({need.mib} MiB): it goes first, requests wait")
            return
        if not self._evict(endpoint, need, old):
            why = f"its change waits for {need.mib} MiB, which nobody can make free now: the old workers serve on"
            board.note(Verb.WAIT, name, None, why)

    def _in_the_way(self, need: Need, old: list[KnownWorker]) -> list[KnownWorker]:
        """The fewest of the old ones without which a successor fits; none: it does not even then."""
        board = self.board
        for count in range(1, len(old) + 1):
            gone = dict.fromkeys((worker.spec.id for worker in old[:count]), Residency.GONE)
            cards = board.place(need, board.after({**board.leaving, **gone}))
            if cards is not None:
                # whoever is not on these cards is in nobody's way
                return [worker for worker in old[:count] if set(cards) & set(cards_of(worker.spec))]
        return []

    def _evict(self, endpoint: WantedEndpoint, need: Need, old: list[KnownWorker]) -> bool:
        """Have idle workers of others make room, beside the old ones or, where that is too little, with them."""
        board = self.board
        before = dict(board.leaving)
        for going in ([], old):
            board.leaving.update(dict.fromkeys((worker.spec.id for worker in going), Residency.GONE))
            way = Eviction(board, endpoint).way(need)
            if way is None:
                continue
            for one, how in way.leaving.items():
                board.leaving[one] = how
                verb = Verb.DRAIN if how is Residency.GONE else Verb.SLEEP
                board.note(verb, board.kept[one].spec.endpoint, one, f"makes room for {endpoint.name}, which changes")
            for worker in going:
                self._go(worker, f"its successor has no room beside it ({need.mib} MiB): it goes first, requests wait")
            board.reserve(need, way.cards, board.after(board.leaving))
            return True
        board.leaving.clear()
        board.leaving.update(before)
        return False
