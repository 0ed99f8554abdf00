"""Notices that a client has stopped sending."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.errors import RequestTimeout

Receive = Callable[[], Awaitable[Any]]


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
