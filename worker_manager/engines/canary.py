"""The canary: a READY engine that generates nothing behind a green /health is found by asking it for one token.

It keeps out of the way. While the engine's own figures move, nothing is asked; an idle one is asked once an interval;
one that has requests and does not move is asked sooner. A question that is not answered counts only as long as the
figures stand still as well: an engine that reads a very long prompt answers late and is well.
"""

import asyncio
import time
from pathlib import Path

import httpx
import msgspec

from worker_manager.contract import FailureKind
from worker_manager.engines import sleeping
from worker_manager.engines.engine_metrics import Load
from worker_manager.engines.questions import question
from worker_manager.engines.readiness import RUNG_SECONDS, open_client

LOOKS = 6
"""Looks at the engine's figures in one interval."""
REFUSED_SECONDS = 2.0
"""What a question takes at least that meets no connection. An engine that was killed takes none before the launcher
tells of its end, and that says more than that it can not be reached."""


class Rhythm(msgspec.Struct, frozen=True, kw_only=True):
    """How often, how patiently and how many times in a row; seconds. An interval of 0: never."""

    interval: float
    timeout: float
    tries: int


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with the engine."""

    kind: FailureKind
    message: str


class Canary:
    """Watches one engine. `route` is the one that made it ready; without one only /health is asked."""

    def __init__(self, socket: Path, served_name: str, route: str, rhythm: Rhythm) -> None:
        self._socket = socket
        self._served_name = served_name
        self._route = route
        self._rhythm = rhythm
        self._seen: Load | None = None
        self._asked_at = time.monotonic()
        self._misses = 0

    async def watch(self) -> Verdict:
        """Returns once the engine has failed so many times in a row that it counts as hung. Never raises for it."""
        while True:
            await asyncio.sleep(self._rhythm.interval / LOOKS)
            async with open_client(self._socket, RUNG_SECONDS) as client:
                found = await self._look(client)
                if found is not None:
                    return found

    async def _look(self, client: httpx.AsyncClient) -> Verdict | None:
        before, now = self._seen, await figures(client)
        self._seen = now or before
        if has_worked(before, now):
            self._misses, self._asked_at = 0, time.monotonic()
            return None
        since = time.monotonic() - self._asked_at
        if is_quiet(now) and self._misses == 0 and since < self._rhythm.interval:
            return None
        self._asked_at = time.monotonic()
        problem = await self._ask(client)
        self._misses = self._misses + 1 if problem else 0
        return self._verdict(problem, now) if self._misses >= self._rhythm.tries else None

    async def _ask(self, client: httpx.AsyncClient) -> str:
        """What went wrong with one question; empty if it was answered."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._rhythm.timeout):
                if self._route:
                    body = question(self._route, self._served_name, "a")
                    reply = await client.post(self._route, json=body, timeout=self._rhythm.timeout)
                else:
                    reply = await client.get("/health")
        except (TimeoutError, httpx.TimeoutException):
            return f"no answer within {self._rhythm.timeout:g} s"
        except (httpx.HTTPError, OSError) as error:
            await asyncio.sleep(began + min(self._rhythm.timeout, REFUSED_SECONDS) - time.monotonic())
            return f"no connection ({type(error).__name__})"
        return "" if reply.is_success else f"{self._route or '/health'} answers {reply.status_code}"

    def _verdict(self, problem: str, now: Load | None) -> Verdict:
        """Where even /metrics is silent, the process itself hangs; else only what generates does."""
        kind = FailureKind.UNREACHABLE if now is None else FailureKind.HUNG
        what = "it answers nothing" if now is None else "its /health is green and it generates nothing"
        return Verdict(kind=kind, message=f"{what}: {self._misses} one-token requests in a row failed ({problem})")


def has_worked(before: Load | None, now: Load | None) -> bool:
    """Whether the engine is seen to work without being asked: its figures have moved, or are new to us."""
    return now is not None and (before is None or now.is_ahead_of(before))


def is_quiet(now: Load | None) -> bool:
    """Whether nothing speaks for asking at once: it answers and has no requests."""
    return now is not None and now.live == 0


async def figures(client: httpx.AsyncClient) -> Load | None:
    """How far the engine has come; None where it does not tell."""
    try:
        return await sleeping.load(client)
    except (httpx.HTTPError, OSError):
        return None
