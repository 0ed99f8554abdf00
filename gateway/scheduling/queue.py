"""Who waits for an endpoint's workers, and in which order they are served."""

import asyncio
import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterator

import msgspec

from gateway.scheduling.slots import Slot
from gateway.types import Priority, Wish

AVOID_SECONDS = 1.0
"""For so long a request is kept from a worker that has just failed it; by then it is known whether the worker lives."""
BATCH_PATIENCE_SECONDS = 60.0
"""A batch request that has waited for so long counts as interactive: it is put behind others, but not for ever."""


class Waiter(msgspec.Struct, eq=False):
    """A request in an endpoint's queue."""

    granted: asyncio.Future[Slot]
    since: float
    wish: Wish
    avoid: frozenset[str] = frozenset()
    """Incarnations of workers that have failed this request just now."""

    def avoided(self, now: float) -> frozenset[str]:
        """Whom to avoid still: a worker that lives on after all may be asked once more after a moment."""
        return self.avoid if self.avoid and now - self.since < AVOID_SECONDS else frozenset()


class Line:
    """Waiters in their order: by priority, and within one priority the oldest first."""

    def __init__(self) -> None:
        self._lines: tuple[OrderedDict[Waiter, None], ...] = tuple(OrderedDict() for _ in Priority)

    def __len__(self) -> int:
        return sum(map(len, self._lines))

    def __iter__(self) -> Iterator[Waiter]:
        """All of them, in no order that matters."""
        return itertools.chain(*self._lines)

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter in self._lines[waiter.wish.priority]

    def add(self, waiter: Waiter) -> None:
        """Put one at the end of its line."""
        self._lines[waiter.wish.priority][waiter] = None

    def discard(self, waiter: Waiter) -> bool:
        """Take one out; whether it was there."""
        line = self._lines[waiter.wish.priority]
        if waiter not in line:
            return False
        del line[waiter]
        return True

    def oldest_since(self) -> float | None:
        """Since when the one that has waited longest has; None where nobody waits."""
        return min((next(iter(line)).since for line in self._lines if line), default=None)

    def in_order(self, now: float) -> Iterator[Waiter]:
        """The waiters as they are to be served; the line must not change meanwhile."""
        waiting = [line for line in self._lines if line]
        if len(waiting) == 1:
            return iter(waiting[0])

        def turn(waiter: Waiter) -> tuple[int, float]:
            patient = now - waiter.since < BATCH_PATIENCE_SECONDS
            return (waiter.wish.priority if patient else Priority.INTERACTIVE), waiter.since

        # each line is sorted by this key already: who has lost patience stands in front
        return heapq.merge(*waiting, key=turn)


class Queue(msgspec.Struct):
    """An endpoint as requests see it."""

    per_worker: int
    waiters: Line = msgspec.field(default_factory=Line)
    warm_until: float | None = None
    ordered_at: float | None = None
    """When somebody last asked for a start; failures before that no longer count."""
    stopped: bool = False
    """Somebody asked for its workers to go; the next request that waits ends that."""
    last_load_seconds: float | None = None
    """How long its last worker took to become ready: what Retry-After and ETA are made of."""
