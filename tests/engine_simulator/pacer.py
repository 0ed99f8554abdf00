"""One timer for every stream: a wheel of 1 ms slots, armed only while something is due."""

import asyncio
import heapq
import time
from typing import Protocol

TICK_SECONDS = 0.001


class Paced(Protocol):
    """Something that happens in steps."""

    def step(self, now: float) -> float | None:
        """Do what is due at `now` (monotonic seconds); when the next step is due, or None when there is none."""
        ...


class Pacer:
    """Calls `step` of each item when it is due, many items per wake-up of the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, list[Paced]] = {}
        self._order: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_slot = 0

    def add(self, item: Paced, due: float) -> None:
        """Have the item stepped at `due` (monotonic seconds), a tick late at most."""
        slot = int(due / TICK_SECONDS) + 1
        items = self._slots.get(slot)
        if items is None:
            self._slots[slot] = [item]
            heapq.heappush(self._order, slot)
            if self._timer is None or slot < self._timer_slot:
                self._arm(slot)
        else:
            items.append(item)

    def _arm(self, slot: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_slot = slot
        delay = max(0.0, slot * TICK_SECONDS - time.monotonic())
        self._timer = self._loop.call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = time.monotonic()
        current = int(now / TICK_SECONDS)
        while self._order and self._order[0] <= current:
            for item in self._slots.pop(heapq.heappop(self._order)):
                due = item.step(now)
                if due is not None:
                    self.add(item, due)
        if self._order:
            self._arm(self._order[0])
