"""Notices that a client has gone, or has stopped sending, in every phase of a request."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from gateway.errors import ClientGone, RequestTimeout

QUIET_SECONDS = 0.02
"""A request that is answered sooner is never watched."""

Receive = Callable[[], Awaitable[Any]]


@asynccontextmanager
async def abandoned_with_client(receive: Receive) -> AsyncIterator[None]:
    """Cancel the block when the client hangs up, and raise ClientGone out of it.

    The request's body must have been read whole: the next thing `receive` tells is the end of the connection.
    """
    loop = asyncio.get_running_loop()
    handler = asyncio.current_task()
    watcher: asyncio.Task[None] | None = None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        if handler is not None:
            handler.cancel()

    def begin() -> None:
        nonlocal watcher
        watcher = loop.create_task(watch())

    timer = loop.call_later(QUIET_SECONDS, begin)
    try:
        yield
    except asyncio.CancelledError:
        if gone and handler is not None and handler.uncancel() == 0:
            raise ClientGone("The client hung up before its answer was whole") from None
        raise
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()


def impatient(receive: Receive, seconds: float) -> Receive:
    """The same `receive`, which raises RequestTimeout once a body has stopped coming for so long."""
    whole = False

    async def bounded() -> Any:
        nonlocal whole
        if whole:
            return await receive()
        try:
            async with asyncio.timeout(seconds):
                message = await receive()
        except TimeoutError:
            raise RequestTimeout(f"The request's body stopped coming for {seconds:g} s: send it whole") from None
        whole = not message.get("more_body", False)
        return message

    return bounded
