"""Succession: a change of how an endpoint is served brings the new workers up before the old ones go. Pure.

One successor at a time starts beside the old workers, where memory allows. For each that serves, as many of the old go
as are then too many. Where there is no room beside them, as many of the old as are in the way go first; where not even
that makes room, idle workers of others do, and until then the old ones serve on.
"""

from gateway.scheduling import generations
from gateway.scheduling.board import Board, Need, cards_of
from gateway.scheduling.eviction import Eviction
from gateway.scheduling.types import KnownWorker, Verb, WantedEndpoint
from worker_manager.contract import Residency, WorkerSpec

OUTDATED = "it is no longer what its endpoint asks for"


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
        if not old or template is None or self._is_one_coming(endpoint):
            return None
        need = self.board.need(endpoint)
        cards = self.board.place(need)
        if cards is not None:
            return template, cards, f"to succeed {old[0].spec.id}, which serves until then"
        self._make_room(endpoint, need, old)
        return None

    def _is_one_coming(self, endpoint: WantedEndpoint) -> bool:
        """Whether a successor is on its way, or has failed: then no further one is tried."""
        waits = not all(
            generations.is_awake(worker) for worker in generations.newer(endpoint, self.board.serving(endpoint.name))
        )
        return waits or any(spec.endpoint == endpoint.name for spec in self.board.started)

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
