"""What is kept in memory and written soon after: the loop that writes it."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from gateway.database.connection import DatabaseError

log = structlog.get_logger(__name__)

RETRY_SECONDS = 5.0


async def save_whenever(wake: asyncio.Event, save: Callable[[], Awaitable[None]], failure: str) -> None:
    """Call `save` each time that `wake` is set, until cancelled.

    After a DatabaseError, logged as `failure`, it is called again in a while; it keeps what it could not write.
    """
    while True:
        await wake.wait()
        wake.clear()
        try:
            await save()
        except DatabaseError as problem:
            log.warning(failure, problem=str(problem))
            await asyncio.sleep(RETRY_SECONDS)
            wake.set()
