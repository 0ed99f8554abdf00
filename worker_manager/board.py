"""The board on which every worker stands: the only place where their state changes."""

from collections.abc import Callable

import msgspec
import structlog

from worker_manager.tracked import Tracked

logger = structlog.get_logger()


class Board:
    """All workers by id. Whoever listens hears of every change, after it was made."""

    def __init__(self) -> None:
        self.workers: dict[str, Tracked] = {}
        self._listeners: list[Callable[[str, Tracked | None], None]] = []

    def listen(self, listener: Callable[[str, Tracked | None], None]) -> None:
        """Call this with each worker that changed; None where it is gone."""
        self._listeners.append(listener)

    def say(self, worker: str, reason: str) -> None:
        """It stays as it is, for this reason."""
        if (known := self.workers.get(worker)) is not None:
            self.set(worker, msgspec.structs.replace(known, reason=reason))

    def set(self, worker: str, known: Tracked | None) -> None:
        """The worker is this from now on."""
        before = self.workers.get(worker)
        if known == before:
            return
        if known is None:
            del self.workers[worker]
        else:
            self.workers[worker] = known
            if before is None or before.state is not known.state:
                logger.info("worker_state", worker=worker, state=known.state, reason=known.reason)
        for listener in self._listeners:
            listener(worker, known)
