"""What was asked of the manager and refused: counted, logged, and shown in sums that no flood makes large.

The log is the record that the gateway can't touch; the gateway writes the same sums into its audit trail. Of each kind
the log tells the first one within a minute, and then every doubling of their number.
"""

import asyncio
import time
from collections.abc import Callable

import structlog

from worker_manager.contract import Refused

MESSAGE_MAX = 300
"""Characters kept of a message: parts of it are the asker's own words."""
LOG_SECONDS = 60.0
TELL_SECONDS = 1.0
"""Between two times that the observed set changes for the sake of refusals."""

logger = structlog.get_logger()


class Refusals:
    """The sums of one manager's life, one for each kind of refusal. Belongs to one event loop."""

    def __init__(self, on_change: Callable[[], None], clock: Callable[[], float] = time.time) -> None:
        self._on_change = on_change
        self._clock = clock
        self._sums: dict[str, Refused] = {}
        self._logged: dict[str, tuple[float, int]] = {}
        """When the minute began for which the log tells doublings, and how many there were in it."""
        self._pause: asyncio.TimerHandle | None = None
        self._untold = False

    def note(self, kind: str, message: str) -> None:
        """Something was refused; `kind` is one of a few words of ours, `message` says what and why."""
        now, said = self._clock(), message[:MESSAGE_MAX]
        count = self._sums[kind].count + 1 if kind in self._sums else 1
        self._sums[kind] = Refused(kind=kind, count=count, message=said, at=now)
        began, within = self._logged.get(kind, (now, 0))
        began, within = (now, 1) if now - began >= LOG_SECONDS else (began, within + 1)
        self._logged[kind] = began, within
        if within & (within - 1) == 0:  # 1, 2, 4, 8 ...
            logger.warning("refused", kind=kind, count=count, cause=said)
        self._untold = True
        if self._pause is None:
            self._tell()

    def sums(self) -> tuple[Refused, ...]:
        """One sum for each kind that there was, by kind."""
        return tuple(self._sums[kind] for kind in sorted(self._sums))

    def _tell(self) -> None:
        self._pause = None
        if self._untold:
            self._untold = False
            self._pause = asyncio.get_running_loop().call_later(TELL_SECONDS, self._tell)
            self._on_change()
