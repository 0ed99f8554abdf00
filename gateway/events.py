"""What has happened lately, numbered: a ring that any number of listeners read, each at its own place.

A listener holds nothing but the number of the last event it has seen, so a slow one costs no memory; what it is too
slow for it misses, and is told so. Numbers begin anew with each life of the process, whose name goes with them.
"""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import msgspec

KEPT = 2000


class Kind(StrEnum):
    """What an event is about."""

    ENDPOINT = "endpoint"
    WORKER = "worker"
    DECISION = "decision"
    DOWNLOAD = "download"
    MANAGER = "manager"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened."""

    number: int
    at: float
    """Unix time, seconds."""
    kind: Kind
    endpoint: str | None
    """The endpoint it is about, where it is about one."""
    what: dict[str, Any]


class Events:
    """The ring. Belongs to one event loop."""

    def __init__(self, kept: int = KEPT, clock: Callable[[], float] = time.time) -> None:
        self.life = uuid.uuid4().hex[:8]
        self.newest = 0
        self.listeners = 0
        self.closed = False
        self._ring: deque[Event] = deque(maxlen=kept)
        self._clock = clock
        self._news = asyncio.Event()

    def publish(self, kind: Kind, endpoint: str | None, **what: Any) -> None:
        """Add an event, and wake all who wait for one."""
        self.newest += 1
        self._ring.append(Event(number=self.newest, at=self._clock(), kind=kind, endpoint=endpoint, what=what))
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def after(self, number: int) -> tuple[list[Event], bool]:
        """The events behind this number that are still kept, and whether some between are not."""
        oldest = self._ring[0].number if self._ring else self.newest + 1
        behind = min(self.newest - max(number, oldest - 1), len(self._ring))
        first = len(self._ring) - behind
        return [self._ring[place] for place in range(first, len(self._ring))], number < oldest - 1

    async def wait(self, number: int, seconds: float) -> None:
        """Return once there is an event behind this number, the ring is closed, or the time is up."""
        if self.newest > number or self.closed:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return

    def close(self) -> None:
        """The process stops: whoever listens is to end."""
        self.closed = True
        self._wake()
