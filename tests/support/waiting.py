"""Waiting for a condition with a deadline: the tests' only way of waiting."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE_SECONDS = 10.0
INTERVAL_SECONDS = 0.005


class DeadlineMissedError(AssertionError):
    """The condition did not come true in time; the message says which and what was seen last."""


def wait_until(
    condition: Callable[[], T],
    what: str = "the condition",
    *,
    seconds: float = DEADLINE_SECONDS,
    interval: float = INTERVAL_SECONDS,
) -> T:
    """Return the condition's first truthy answer; asked every `interval` seconds. Raises `DeadlineMissedError`."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise DeadlineMissedError(f"{what}: not within {seconds:g} s; last seen: {answer!r}")
        time.sleep(interval)
    return answer


async def wait_until_async(
    condition: Callable[[], T | Awaitable[T]],
    what: str = "the condition",
    *,
    seconds: float = DEADLINE_SECONDS,
    interval: float = INTERVAL_SECONDS,
) -> T:
    """`wait_until` for a running event loop; the condition may be a function or a coroutine function."""
    deadline = time.monotonic() + seconds
    while True:
        asked = condition()
        answer: T = await asked if isinstance(asked, Awaitable) else asked
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise DeadlineMissedError(f"{what}: not within {seconds:g} s; last seen: {answer!r}")
        await asyncio.sleep(interval)
